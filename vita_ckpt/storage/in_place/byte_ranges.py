"""Ranges of files that are written into where they lie: read, compared, digested, written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vita_ckpt.errors import InputError
from vita_ckpt.storage.stores.local import read_at
from vita_ckpt.storage.system.workers import Progress, no_progress

_STEP: Final = 4 << 20


def pieces(descriptor: int, offset: int, size: int, path: str) -> Iterator[bytes]:
    """Yield the bytes of a range, a few megabytes at a time. A file that ends early is an error."""
    while size:
        piece = read_at(descriptor, min(size, _STEP), offset, path)
        yield piece
        offset += len(piece)
        size -= len(piece)


def digest_at(
    descriptor: int, offset: int, size: int, path: str, progress: Progress = no_progress
) -> str:
    """SHA-256, in hex, of a range. ``progress`` is called with the bytes of each step."""
    found = hashlib.sha256()
    for piece in pieces(descriptor, offset, size, path):
        found.update(piece)
        progress(len(piece))
    return found.hexdigest()


def same_range(a: int, a_offset: int, b: int, b_offset: int, size: int) -> bool:
    """Return whether two ranges of ``size`` bytes are equal."""
    pairs = zip(pieces(a, a_offset, size, ""), pieces(b, b_offset, size, ""), strict=True)
    return all(mine == theirs for mine, theirs in pairs)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        offset += count
        view = view[count:]


@contextmanager
def exclusively(path: str, size: int) -> Iterator[int]:
    """Open for writing a regular file of ``size`` bytes that has no other name.

    Raises InputError if it is another one, OSError if it may not be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size != size:
            raise InputError(
                "not-the-same-file",
                path,
                expected=f"a regular file of {size} bytes with one name",
                got=f"one of {status.st_size} bytes with {status.st_nlink} names",
                hint="another program replaced or linked it meanwhile: run the command again",
            )
        yield descriptor
    finally:
        os.close(descriptor)
