"""The journal of an in-place surgery: what was there before, and the four names it goes by.

All of it lies in ``.vita-ckpt/`` in the checkpoint, a directory for each surgery::

    prepare-…   being written: nothing of the checkpoint has been touched
    active      the checkpoint is mid-surgery: whoever finds it puts back what was there
    undo-N      the surgery is done, and can be undone as long as this is kept
    trash-…     being removed

A surgery goes from one name to the next by a rename; an undo renames ``undo-N`` to ``active`` and
puts back what was there, which is also what recovering does.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from vita_ckpt.core.checksummed_json import seal, unseal
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.reading.in_progress import HOME, NOBODY, home, owner_file, who
from vita_ckpt.storage.stores.local import opened, read_at
from vita_ckpt.storage.system.owner import Fate, current, parse
from vita_ckpt.storage.system.syscalls import sync, sync_directory

JOURNAL: Final = "journal.json"
RANGES: Final = "ranges"
OLD: Final = "old"
NEW: Final = "new"

_KIND: Final = "vita-ckpt-journal"
_UNDO: Final = re.compile(r"undo-([0-9]{1,9})", re.ASCII)
_TEMPORARY: Final = re.compile(r"(prepare|trash)-[0-9a-f]{12}-(?P<tag>.+)", re.ASCII)
_LARGEST: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class SavedRange:
    """Bytes of a patched file: where they were, where they are saved, what they were and became.

    ``offset`` in the file, ``at`` in the file of saved ranges, ``size`` in bytes; ``before`` and
    ``after`` are SHA-256 digests in hex.
    """

    offset: int
    size: int
    at: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PatchedFile:
    """A file that kept its size and got other bytes in some ranges."""

    name: str
    size: int
    ranges: tuple[SavedRange, ...]


@dataclass(frozen=True, slots=True)
class ReplacedFile:
    """A file that another took the place of, that came (``before`` is None) or went (``after``).

    The old one is kept as ``old/N``, the new one was staged as ``new/N``, for the N-th of these.
    """

    name: str
    before: FileDigest | None
    after: FileDigest | None


@dataclass(frozen=True, slots=True)
class Journal:
    """What an in-place surgery changed, with all that is needed to put it back."""

    operation: str
    time: str
    patched: tuple[PatchedFile, ...]
    replaced: tuple[ReplacedFile, ...]

    @property
    def names(self) -> list[str]:
        """Every file that the surgery changed."""
        return [file.name for file in self.patched] + [file.name for file in self.replaced]

    def encode(self) -> bytes:
        """The journal as a file, with a digest of itself."""
        return seal(
            _KIND,
            {
                "operation": self.operation,
                "time": self.time,
                "patched": [
                    {
                        "name": file.name,
                        "size": file.size,
                        "ranges": [
                            [r.offset, r.size, r.at, r.before, r.after] for r in file.ranges
                        ],
                    }
                    for file in self.patched
                ],
                "replaced": [
                    {
                        "name": file.name,
                        "before": None if file.before is None else file.before.to_json(),
                        "after": None if file.after is None else file.after.to_json(),
                    }
                    for file in self.replaced
                ],
            },
        )


def undo_data(root: str) -> str | None:
    """The directory of what undoes the last in-place surgery; None if there is none."""
    kept = [name for name in _entries(root) if _UNDO.fullmatch(name)]
    return max((os.path.join(home(root), name) for name in kept), key=_number, default=None)


def next_undo(root: str) -> str:
    """The name of the undo data that a surgery leaves when it is done.

    Raises MalformedFileError where somebody has counted up to the end.
    """
    last = undo_data(root)
    name = f"undo-{1 if last is None else _number(last) + 1}"
    if not _UNDO.fullmatch(name):
        raise _damaged(last or name, root, "a number that is too large")
    return os.path.join(home(root), name)


def leftovers(root: str) -> Iterator[tuple[str, Fate]]:
    """What dead surgeries left, and superseded undo data, with what became of its owner."""
    last = undo_data(root)
    for name in _entries(root):
        path = os.path.join(home(root), name)
        found = _TEMPORARY.fullmatch(name)
        if found is not None:
            owner = parse(found["tag"])
            yield path, owner.fate() if owner is not None else "elsewhere"
        elif _UNDO.fullmatch(name) and path != last:
            yield path, _fate(path)


def temporary(root: str, what: str) -> str:
    """A new name of ours, ``prepare-…`` or ``trash-…``."""
    return os.path.join(home(root), f"{what}-{os.urandom(6).hex()}-{current().tag}")


def own(directory: str) -> None:
    """Make this process the owner of a new journal."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(os.path.join(directory, f"owner-{current().tag}"), flags, 0o666))


def disown(directory: str) -> None:
    """Nobody works on this journal any more; it does not matter if that cannot be said."""
    with suppress(OSError):
        os.rename(
            os.path.join(directory, f"owner-{current().tag}"), os.path.join(directory, NOBODY)
        )


def claim(directory: str, root: str, hint: str, *, force: bool = False) -> None:
    """Make this process the owner of a journal whose owner is dead: of several, one succeeds.

    Raises InputError if its owner lives, or may live elsewhere and ``force`` is not set; ``hint``
    is what to do then if that owner is dead.
    """
    name = owner_file(directory)
    if name is None:
        try:
            own(directory)
        except FileExistsError:
            raise _busy(root, "another process that took it over just now") from None
        return
    owner = parse(name.removeprefix("owner-"))
    fate = "dead" if name == NOBODY else "elsewhere" if owner is None else owner.fate()
    if fate == "alive":
        raise _busy(root, f"{owner}, which is at work on it")
    if fate == "elsewhere" and not force:
        raise InputError(
            "owned-elsewhere",
            root,
            expected="a surgery that was run here",
            got=f"one of {owner or name}",
            hint=f"run this there; or, if that process is dead: {hint}",
        )
    try:
        os.rename(os.path.join(directory, name), os.path.join(directory, f"owner-{current().tag}"))
    except FileNotFoundError:
        raise _busy(root, "another process that took it over just now") from None
    sync_directory(directory)


@contextmanager
def new_descriptor(path: str, mode: int = 0o666) -> Iterator[int]:
    """A descriptor of a new file, which is synced once it has been written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        yield descriptor
        sync(descriptor)
    finally:
        os.close(descriptor)


def busy(root: str) -> InputError:
    """The error for a surgery of a directory of which another one is under way."""
    return _busy(root, who(root))


def read_journal(directory: str, root: str) -> Journal:
    """The journal in a directory of ours.

    Raises MalformedFileError if it is not, byte for byte, what was written, or names a place
    outside the checkpoint.
    """
    path = os.path.join(directory, JOURNAL)
    for name in (".", JOURNAL, RANGES, OLD, NEW):
        if os.path.islink(os.path.normpath(os.path.join(directory, name))):
            raise _damaged(os.path.join(directory, name), root, "a link")
    with opened(path) as (descriptor, file):
        data = read_at(descriptor, min(file.size, _LARGEST), 0, path)
    try:
        journal = _decode(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, root, str(error)) from error
    check(journal, root)
    return journal


def check(journal: Journal, root: str) -> None:
    """Raise MalformedFileError for a name that leads out of the checkpoint."""
    top = os.path.realpath(root)
    for name in journal.names:
        parts = name.split("/")
        inside = not {"", ".", ".."} & set(parts) and "\0" not in name and parts[0] != HOME
        folder = os.path.realpath(os.path.join(top, *parts[:-1])) if inside else ""
        if not inside or os.path.commonpath([top, folder]) != top:
            raise MalformedFileError(
                "path-outside-checkpoint",
                f"{os.path.join(home(root), JOURNAL)}: {name!r}",
                expected="a file in the directory",
                hint=f"the journal is hostile: remove {home(root)}",
            )


def old_file(directory: str, number: int) -> str:
    """Where the old file of the N-th replacement lies."""
    return os.path.join(directory, OLD, str(number))


def new_file(directory: str, number: int) -> str:
    """Where the new file of the N-th replacement is staged."""
    return os.path.join(directory, NEW, str(number))


def size_of(directory: str) -> int:
    """Bytes of the files in a directory of ours, links not followed."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _damaged(path: str, root: str, got: str) -> MalformedFileError:
    return MalformedFileError(
        "damaged-journal",
        path,
        expected="the journal as it was written",
        got=got,
        hint=f"nothing was put back; to take {root} as it is, remove its {HOME} directory",
    )


def _decode(data: bytes) -> Journal:
    body = unseal(_KIND, data)
    patched = tuple(
        PatchedFile(
            _text(file["name"]),
            _size(file["size"]),
            tuple(
                SavedRange(_size(offset), _size(size), _size(at), _text(before), _text(after))
                for offset, size, at, before, after in file["ranges"]
            ),
        )
        for file in body["patched"]
    )
    end = 0
    for saved in (saved for file in patched for saved in file.ranges):
        if saved.at != end:
            raise ValueError("ranges that are not saved one after the other")
        end += saved.size
    replaced = tuple(
        ReplacedFile(_text(file["name"]), _digest(file["before"]), _digest(file["after"]))
        for file in body["replaced"]
    )
    return Journal(_text(body["operation"]), _text(body["time"]), patched, replaced)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text that is none")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a size that is none")
    return value


def _digest(entry: Any) -> FileDigest | None:
    return None if entry is None else FileDigest.from_json(entry)


def _entries(root: str) -> list[str]:
    try:
        if not stat.S_ISDIR(os.lstat(home(root)).st_mode):
            return []
        return sorted(os.listdir(home(root)))
    except OSError:
        return []


def _number(path: str) -> int:
    return int(path.rpartition("-")[2])


def _fate(directory: str) -> Fate:
    try:
        name = owner_file(directory) or NOBODY
    except InputError:
        return "elsewhere"
    owner = parse(name.removeprefix("owner-"))
    return "dead" if name == NOBODY else "elsewhere" if owner is None else owner.fate()


def _busy(root: str, got: str) -> InputError:
    return InputError(
        "surgery-under-way",
        root,
        expected="a checkpoint that nobody works on",
        got=got,
        hint="wait until it has ended",
    )
