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
from typing import Final

from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.in_progress import NOBODY, fate_of, home, owner_file, who
from vita_ckpt.storage.reading.signed_journal import NEW, OLD, damaged_journal
from vita_ckpt.storage.system.owner import Fate, current, parse
from vita_ckpt.storage.system.syscalls import sync, sync_directory

_UNDO: Final = re.compile(r"undo-([0-9]{1,9})", re.ASCII)
_TEMPORARY: Final = re.compile(r"(prepare|trash)-[0-9a-f]{12}-(?P<tag>.+)", re.ASCII)


def undo_data(root: str) -> str | None:
    """Return the directory of the undo data of the last in-place surgery; None without one."""
    kept = [name for name in _entries(root) if _UNDO.fullmatch(name)]
    return max((os.path.join(home(root), name) for name in kept), key=_number, default=None)


def next_undo(root: str) -> str:
    """Return the name of the undo data that a surgery leaves when it is done.

    Raises MalformedFileError where somebody has counted up to the end.
    """
    last = undo_data(root)
    name = f"undo-{1 if last is None else _number(last) + 1}"
    if not _UNDO.fullmatch(name):
        raise damaged_journal(last or name, root, "a number that is too large")
    return os.path.join(home(root), name)


def leftovers(root: str) -> Iterator[tuple[str, Fate]]:
    """List what dead surgeries left and superseded undo data, with the fate of the owner."""
    last = undo_data(root)
    for name in _entries(root):
        path = os.path.join(home(root), name)
        found = _TEMPORARY.fullmatch(name)
        if found is not None:
            owner = parse(found["tag"])
            yield path, owner.fate() if owner is not None else "elsewhere"
        elif _UNDO.fullmatch(name) and path != last:
            yield path, fate_of(path)


def temporary(root: str, what: str) -> str:
    """Return a new name, ``prepare-…`` or ``trash-…``."""
    return os.path.join(home(root), f"{what}-{os.urandom(6).hex()}-{current().tag}")


def own(directory: str) -> None:
    """Make this process the owner of a new journal."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(os.path.join(directory, f"owner-{current().tag}"), flags, 0o600))


def disown(directory: str) -> None:
    """Nobody works on this journal any more; it does not matter if that cannot be said."""
    with suppress(OSError):
        os.rename(
            os.path.join(directory, f"owner-{current().tag}"), os.path.join(directory, NOBODY)
        )


def check_idle(directory: str, root: str) -> None:
    """Raise InputError if the process that a journal names is alive."""
    if fate_of(directory) == "alive":
        owner = parse((owner_file(directory) or NOBODY).removeprefix("owner-"))
        raise _busy(root, f"{owner}, which is at work on it")


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
def new_descriptor(path: str) -> Iterator[int]:
    """Open a new file that only its owner can read, and sync it once it has been written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
        sync(descriptor)
    finally:
        os.close(descriptor)


def busy(root: str) -> InputError:
    """Return the error for a directory in which another surgery is running."""
    return _busy(root, who(root))


def old_file(directory: str, number: int) -> str:
    """Return the path of the old file of the N-th replacement."""
    return os.path.join(directory, OLD, str(number))


def new_file(directory: str, number: int) -> str:
    """Return the path where the new file of the N-th replacement is staged."""
    return os.path.join(directory, NEW, str(number))


def size_of(directory: str) -> int:
    """Return the bytes of the files in one of our directories; links are not followed."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _entries(root: str) -> list[str]:
    try:
        if not stat.S_ISDIR(os.lstat(home(root)).st_mode):
            return []
        return sorted(os.listdir(home(root)))
    except OSError:
        return []


def _number(path: str) -> int:
    return int(path.rpartition("-")[2])


def _busy(root: str, got: str) -> InputError:
    return InputError(
        "surgery-under-way",
        root,
        expected="a checkpoint that no other process works on",
        got=got,
        hint="wait until it has ended",
    )
