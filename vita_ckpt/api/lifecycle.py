"""Tell what was done to a checkpoint, undo it, and clean up after runs that were killed."""

from __future__ import annotations

import os

from vita_ckpt.api.locate import StrPath, local, open_checkpoint
from vita_ckpt.core.filenames import MANIFEST
from vita_ckpt.core.outcomes import History, PutBack, Undoable
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.provenance import needs_alignment, operations
from vita_ckpt.errors import InputError
from vita_ckpt.storage.in_place import journal, rollback
from vita_ckpt.storage.in_place.leftovers import Leftover, leftovers_in, leftovers_of, remove
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.signed_journal import is_own, read_journal
from vita_ckpt.storage.stores.local import LOCAL


def undo(path: StrPath, *, force: bool = False, on_progress: OnProgress = unwatched) -> PutBack:
    """Bring a checkpoint back to what it was before its last in-place surgery, bit for bit.

    If a surgery was interrupted, that one is undone and nothing else. ``force`` undoes
    even what has changed since, takes over from a process of another host, and trusts a foreign
    journal. ``on_progress`` is told what is being done, and how far it is: see
    :mod:`vita_ckpt.core.progress`. Raises InputError if nothing can be undone or the journal is
    foreign, MalformedFileError if what was saved is damaged, OutputError if the disk fails.
    """
    root = _directory(path)
    recovered = recover(root, force=force, on_progress=on_progress)
    if recovered is not None:
        return recovered
    undone = rollback.undo(root, force=force, on_progress=on_progress)
    return PutBack(root, undone.journal.operation, undone.journal.time, False, undone.kept)


def recover(
    path: StrPath, *, force: bool = False, on_progress: OnProgress = unwatched
) -> PutBack | None:
    """Make a checkpoint whole that an in-place surgery left in the middle: as it was before.

    None if there is nothing to do. ``on_progress`` is called as :func:`undo` calls it. Raises
    InputError while the surgery is under way, if it ran on another host or its journal is foreign
    and ``force`` is not set, and otherwise what :func:`undo` raises.
    """
    root = _directory(path)
    found = rollback.recover(root, force=force, on_progress=on_progress)
    if found is None:
        return None
    return PutBack(root, found.journal.operation, found.journal.time, True, found.kept)


def history(path: StrPath, *, stores: Stores | None = None) -> History:
    """List the operations on a checkpoint, and say whether the last one can be undone.

    Raises InputError if the checkpoint cannot be read.
    """
    checkpoint = open_checkpoint(path, stores=stores)
    known = tuple(entry for entry in operations(checkpoint) if isinstance(entry, dict))
    return History(
        checkpoint.root,
        known,
        needs_alignment(checkpoint),
        MANIFEST in checkpoint.files,
        _undoable(checkpoint.root),
    )


def leftovers(path: StrPath) -> list[Leftover]:
    """Find what killed runs left in a directory, beside it, and in it if it is a checkpoint.

    The path itself need not exist: an output that never came is looked for beside its place. Raises
    InputError if neither it nor its directory can be read.
    """
    place = os.path.abspath(local(path))
    parent = os.path.dirname(place)
    if not os.path.isdir(parent):
        raise InputError("not-found", os.fspath(path), expected="a directory", got="nothing")
    found = leftovers_in(parent) if parent != place else []
    if os.path.isdir(place):
        found += [*leftovers_in(place), *leftovers_of(place)]
    return found


def _temporary() -> list[Leftover]:
    """Find what was fetched from the hub and lies where temporary files do.

    Nothing where that is no place, or cannot be read. Python may write there to find that out.
    """
    import tempfile  # noqa: PLC0415 - slow

    try:
        return leftovers_in(os.path.abspath(tempfile.gettempdir()), own=True)
    except (InputError, OSError):
        return []


def clean(path: StrPath, *, dry_run: bool = False) -> list[tuple[Leftover, bool]]:
    """Remove what killed runs left; return each with whether it is gone.

    With ``dry_run`` nothing is removed, and each comes with whether it would be.

    So is what is left of this user in the directory for temporary files. What belongs to a process
    that lives, or that ran where it cannot be looked for, stays.
    """
    found = {leftover.path: leftover for leftover in (*_temporary(), *leftovers(path))}
    gone = (lambda leftover: leftover.fate == "dead") if dry_run else remove
    return [(leftover, gone(leftover)) for leftover in found.values()]


def last_undoable(path: StrPath) -> Undoable | None:
    """Return what :func:`undo` would undo and :func:`drop_undo` remove; None if there is nothing.

    The checkpoint itself need not be readable. Raises InputError if what is kept is not.
    """
    return _undoable(_directory(path))


def drop_undo(path: StrPath) -> int:
    """Remove what is kept to undo the last in-place surgery; return its size in bytes, or 0.

    Raises InputError if another process is changing the checkpoint.
    """
    return rollback.drop_undo(_directory(path))


def drop_foreign(path: StrPath, *, dry_run: bool = False) -> list[tuple[str, int]]:
    """Remove journals of a checkpoint that are foreign or damaged; their paths and bytes.

    The files of the checkpoint stay as they are. With ``dry_run`` nothing is removed. Raises
    InputError if a process is at work on the checkpoint, OutputError if the system refuses.
    """
    return rollback.drop_foreign(_directory(path), dry_run=dry_run)


def _undoable(root: str) -> Undoable | None:
    kept = journal.undo_data(root)
    if kept is None:
        return None
    read = read_journal(kept, root)
    return Undoable(read.operation, read.time, journal.size_of(kept), not is_own(read, root))


def _directory(path: StrPath) -> str:
    root = os.path.abspath(local(path))
    if not os.path.isdir(root):
        raise InputError(
            "not-found",
            os.fspath(path),
            expected="a checkpoint directory",
            got="a file" if os.path.lexists(root) else "nothing",
            hint=f"name the directory {os.path.dirname(root)}"
            if os.path.isfile(root)
            else "check the path",
        )
    LOCAL.listing(root)  # what cannot be read is not whole
    return root
