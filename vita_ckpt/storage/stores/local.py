"""Opening input files: regular ones only, bounded reads, the identity of what was seen."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vita_ckpt.core.checkpoint import LocalFile
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.stores.base import Range
from vita_ckpt.storage.system.os_errors import unreadable


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file on the disk."""

    descriptor: int
    file: LocalFile

    def read(self, size: int, offset: int) -> bytes:
        return read_at(self.descriptor, size, offset, self.file.path)

    def expect(self, ranges: Iterable[Range]) -> None:
        """Nothing to do: the disk is near."""


@contextmanager
def opened(path: str) -> Iterator[tuple[int, LocalFile]]:
    """A descriptor of the regular file at ``path`` (read-only) and its identity.

    Symbolic links to regular files are followed, as in the hub cache; a directory, a pipe or a
    device is refused without being read from.
    """
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError("unreadable-file", path, got=str(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError("not-a-regular-file", path, expected="a regular file")
        yield descriptor, LocalFile(os.path.abspath(path), status.st_size, status.st_mtime_ns)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, size: int, offset: int, path: str) -> bytes:
    """Exactly ``size`` bytes at ``offset``; a file that ends before is an error."""
    parts: list[bytes] = []
    while size:
        try:
            part = os.pread(descriptor, min(size, 1 << 26), offset)
        except OSError as error:
            raise unreadable(path, error) from error
        except OverflowError:
            part = b""
        if not part:
            raise _truncated(path, size, offset)
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(descriptor: int, memory: memoryview, offset: int, path: str) -> None:
    """Fill ``memory`` from ``offset``; a file that ends before is an error."""
    while memory:
        try:
            count = os.preadv(descriptor, [memory], offset)
        except OSError as error:
            raise unreadable(path, error) from error
        if not count:
            raise _truncated(path, len(memory), offset)
        memory = memory[count:]
        offset += count


def identify(path: str) -> LocalFile:
    """The identity of a regular file whose content is carried, not read."""
    with opened(path) as (_, file):
        return file


def check_same(file: LocalFile, seen: LocalFile) -> None:
    """Raise StaleInputError unless size and time, and the digest if known, are as they were."""
    same = (file.size, file.mtime_ns) == (seen.size, seen.mtime_ns)
    if not same or (seen.digest and file.digest != seen.digest):
        raise StaleInputError(
            "input-changed",
            file.path,
            expected=f"the file as it was ({file.size} bytes)",
            got=f"a file changed since ({seen.size} bytes)",
            hint="run the command again once nothing writes to it",
        )


def _truncated(path: str, size: int, offset: int) -> MalformedFileError:
    return MalformedFileError(
        "truncated-file",
        path,
        expected=f"{size} bytes at {offset}",
        got="the end of it",
        hint="the file is cut off or damaged: copy or download it again",
    )
