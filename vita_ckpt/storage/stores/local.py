"""Read the local disk: regular files only, in bounded reads, with the files' identities."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from vita_ckpt.core.address import is_inside
from vita_ckpt.core.checkpoint import LocalFile
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.stores.base import Entry, Kind, Range, Source
from vita_ckpt.storage.system.os_errors import (
    dangling,
    os_reason,
    unreadable,
    unreadable_directory,
)

# Large reads go to the same offset in a page as in the file: at a slightly higher offset some
# processors copy at a sixth of the speed.
PAGE: Final = 4096


class LocalStore:
    """The local disk. It has no state: :data:`LOCAL` is shared."""

    @property
    def is_local(self) -> bool:
        """Return True: paths are those of the operating system."""
        return True

    def absolute(self, path: str) -> str:
        """Return the absolute form of ``path``."""
        return os.path.abspath(path)

    def look(self, path: str) -> Entry | None:
        """Return what is at ``path``; None if there is nothing or it cannot be reached."""
        try:
            is_link = os.path.islink(path)
            status = os.stat(path)
        except (OSError, ValueError):
            return Entry(Kind.BROKEN_LINK) if os.path.islink(path) else None
        if stat.S_ISREG(status.st_mode):
            return Entry(Kind.FILE, LocalFile(path, status.st_size, status.st_mtime_ns))
        if not stat.S_ISDIR(status.st_mode):
            return Entry(Kind.OTHER)
        return Entry(Kind.DIRECTORY_LINK if is_link else Kind.DIRECTORY)

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. Raises InputError if it cannot be listed."""
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise unreadable_directory(path, error) from error

    @contextmanager
    def open(self, path: str) -> Iterator[Source]:
        """Open the regular file at ``path``, as :func:`opened` does."""
        with opened(path) as (descriptor, file):
            yield _OpenFile(descriptor, file)

    def prefetch(self, paths: Collection[str], read: Callable[[str], object]) -> None:
        """Do nothing: prefetching from the disk saves nothing."""

    def check_known(self, path: str) -> None:
        """Do nothing: the disk always knows what it holds."""

    def why_absent(self, path: str) -> str:
        """Return the system's reason why nothing was found at ``path``."""
        try:
            os.stat(path)
        except OSError as error:
            return dangling(path) or os_reason(error)
        except ValueError as error:
            return str(error)
        return "nothing there"

    def folder_of(self, path: str) -> str:
        """Return the directory of a file, with links resolved."""
        return os.path.dirname(os.path.realpath(path))

    def stays_below(self, root: str, name: str) -> bool:
        """Return whether ``name`` is that of a file below ``root``, with links resolved."""
        if not name or not is_inside(name):
            return False
        top = os.path.realpath(root)
        folder = os.path.realpath(os.path.join(root, *name.split("/")[:-1]))
        return os.path.commonpath([top, folder]) == top

    def reached_from(self, root: str, path: str) -> str | None:
        """Return what a path in a config resolves to; None if there is nothing.

        ``root`` is the config's directory or a file beside it. The path is looked up in the working
        directory, as upstream does, then beside the checkpoint's directory, then in it.
        """
        if "\0" in path:
            return None
        folder = os.path.dirname(root) if os.path.isfile(root) else root
        for start in ("", os.path.dirname(folder), folder):
            found = os.path.abspath(os.path.join(start, path))
            if os.path.exists(found):
                return found
        return None


LOCAL: Final = LocalStore()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _OpenFile:
    """A file on the disk."""

    descriptor: int
    file: LocalFile

    def read(self, size: int, offset: int) -> bytes:
        return read_at(self.descriptor, size, offset, self.file.path)

    def expect(self, ranges: Iterable[Range]) -> None:
        """Do nothing: local reads need no announcement."""


@contextmanager
def opened(path: str) -> Iterator[tuple[int, LocalFile]]:
    """Yield a read-only descriptor of the regular file at ``path``, and its identity.

    Symbolic links to regular files are followed, as in the hub cache. A directory, a pipe or a
    device is rejected without being read.
    """
    try:
        # O_NONBLOCK: opening a pipe without a writer must not hang.
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
    """Return exactly ``size`` bytes at ``offset``.

    Raises MalformedFileError if the file ends before.
    """
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
    """Fill ``memory`` from ``offset``. Raises MalformedFileError if the file ends before."""
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
    """Return the identity of a regular file without reading its content."""
    with opened(path) as (_, file):
        return file


def check_same(file: LocalFile, seen: LocalFile) -> None:
    """Raise StaleInputError unless size and time, and the digest if known, are unchanged."""
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
