"""A source as a stream of Python, for readers that want one."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from vita_ckpt.storage.stores.base import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class SourceStream(io.RawIOBase):
    """A source as a stream, read from its start."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to another position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(f"a position before the file, {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Read as many bytes as there are, at most as many as fit."""
        memory = memoryview(buffer)
        count = max(0, min(len(memory), self._size - self._position))
        memory[:count] = self._source.read(count, self._position)
        self._position += count
        return count

    @property
    def _size(self) -> int:
        return self._source.file.size
