"""Opening input files: regular ones only, bounded reads, the identity of what was seen."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import File, LocalFile
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError

_LARGEST_JSON = 64 << 20
# No config nests as deeply; what does is more than who copies or writes it has stack for.
_DEEPEST_JSON = 100

Range = tuple[int, int]  # offset and size, in bytes


class Source(Protocol):
    """A file that is read here and there, wherever it lies."""

    @property
    def file(self) -> File:
        """Its identity, without a digest."""

    def read(self, size: int, offset: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; a file that ends before is an error."""

    def expect(self, ranges: Iterable[Range]) -> None:
        """Say what will be read soon, so that what lies far away can be fetched all at once."""


@contextmanager
def reading(path: str) -> Iterator[Source]:
    """The file at ``path``, or at an address pinned to a commit, for reading."""
    if is_remote(path):
        from vita_ckpt.storage.hub.repository import open_remote  # noqa: PLC0415 - seldom needed

        yield open_remote(path)
    else:
        with opened(path) as (descriptor, file):
            yield _OpenFile(descriptor, file)


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
        raise _unreadable(path, error) from error
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
            raise _unreadable(path, error) from error
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
            raise _unreadable(path, error) from error
        if not count:
            raise _truncated(path, len(memory), offset)
        memory = memory[count:]
        offset += count


def digest(data: bytes) -> str:
    """SHA-256 of ``data``, in hex."""
    return hashlib.sha256(data).hexdigest()


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


def read_json_object(path: str) -> tuple[dict[str, Any], File]:
    """A JSON file that holds an object, with its identity; ``path`` as for :func:`reading`.

    Raises InputError if it cannot be read and MalformedFileError if it is not such a file.
    """
    with reading(path) as source:
        file = source.file
        if file.size > _LARGEST_JSON:
            raise MalformedFileError(
                "json-too-large",
                path,
                expected=f"at most {_LARGEST_JSON} bytes",
                got=str(file.size),
            )
        data = source.read(file.size, 0)
    if data.startswith(b"version https://git-lfs"):
        raise_lfs_pointer(path)
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise MalformedFileError("invalid-json", path, expected="UTF-8", got=str(error)) from error
    except (ValueError, RecursionError) as error:
        got = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedFileError("invalid-json", path, expected="JSON", got=got) from error
    if not isinstance(value, dict):
        raise MalformedFileError(
            "invalid-json", path, expected="a JSON object", got=f"a {type(value).__name__}"
        )
    if data.count(b"[") + data.count(b"{") > _DEEPEST_JSON and _is_deeper(value, _DEEPEST_JSON):
        raise MalformedFileError(
            "invalid-json",
            path,
            expected=f"at most {_DEEPEST_JSON} levels",
            got="nested too deeply",
        )
    return value, replace(file, digest=digest(data))


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [v for values in inner for v in values if isinstance(v, (dict, list))]
    return bool(level)


def raise_lfs_pointer(path: str) -> NoReturn:
    """A git-lfs pointer stands where the file should be."""
    raise InputError(
        "git-lfs-pointer",
        path,
        expected="the file itself",
        got="a git-lfs pointer to it",
        hint="run 'git lfs pull' in the repository",
    )


def _truncated(path: str, size: int, offset: int) -> MalformedFileError:
    return MalformedFileError(
        "truncated-file",
        path,
        expected=f"{size} bytes at {offset}",
        got="the end of it",
        hint="the file is cut off or damaged: copy or download it again",
    )


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(
        "unreadable-file", path, got=os_reason(error), hint="check the path and its permissions"
    )


def unreadable_directory(path: str, error: OSError) -> InputError:
    """What the system said of a directory that cannot be listed."""
    return InputError(
        "unreadable-directory", path, got=os_reason(error), hint="check its permissions"
    )


def os_reason(error: OSError) -> str:
    """What the system says, without the path that the message names already."""
    return (error.strerror or type(error).__name__).lower()
