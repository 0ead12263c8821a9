"""Putting back what an in-place surgery saved: rolling back, recovering and undoing are one thing.

It can be done over and over: what is already as it was is left alone, so a run that dies in the
middle is followed by one that does the rest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from shlex import quote

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.filenames import HOME
from vita_ckpt.core.journal import Journal, PatchedFile, SavedRange
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.errors import InputError, MalformedFileError, OutputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.in_place import journal as journals
from vita_ckpt.storage.in_place.byte_ranges import (
    digest_at,
    exclusively,
    pieces,
    same_range,
    write_at,
)
from vita_ckpt.storage.reading.in_progress import active, check_whole, home, is_mid_surgery
from vita_ckpt.storage.reading.signed_journal import (
    NEW,
    OLD,
    RANGES,
    check_own,
    is_directory,
    is_own,
    is_plain_file,
    read_journal,
)
from vita_ckpt.storage.stores.local import LOCAL, identify, opened
from vita_ckpt.storage.system.access import access_of, keep
from vita_ckpt.storage.system.interrupts import deferred_interrupts
from vita_ckpt.storage.system.os_errors import io_error, os_reason
from vita_ckpt.storage.system.syscalls import sync, sync_directory
from vita_ckpt.storage.system.workers import Progress, no_progress
from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests
from vita_ckpt.storage.tensors.stream import Writer


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put back: the journal that says what had been done, and the files that stayed.

    A surgery's new file is removed only as it was written; ``kept`` are those that have changed.
    """

    journal: Journal
    kept: tuple[str, ...]


def undo(root: str, *, force: bool = False, on_progress: OnProgress = unwatched) -> Restored:
    """Put back what was there before the last in-place surgery; the journal says what that was.

    Raises InputError if nothing can be undone, if the journal is foreign or a file has changed
    since (``force`` undoes it all the same), or if somebody works on the checkpoint;
    MalformedFileError if what was saved is damaged (``force`` puts it back as far as the journal
    can be read); OutputError if the disk fails.
    """
    root = os.path.realpath(root)
    check_whole(LOCAL, root)
    kept = journals.undo_data(root)
    if kept is None:
        raise InputError(
            "nothing-to-undo",
            root,
            expected="the undo data of a surgery in place",
            hint="undo data is dropped by the next surgery in place, by undo, and by clean --undo",
        )
    _check_may_take(kept, root, force=force)
    sweep(root)
    hint = f"vita-ckpt undo --force {quote(root)}"
    with _claimed(kept, root, hint, force=force):
        journal = _read(kept, root, force=force)
        if not force:
            _check_saved(kept, root, journal, on_progress)
            _check_since(root, journal, on_progress)
        _check_fits(kept, root, journal)
        with _to_the_end(root, f"what was there before {journal.operation} is back"):
            _activate(kept, root, journal, on_progress, force=force)
            return Restored(journal, put_back(root, journal, on_progress))


def recover(
    root: str, *, force: bool = False, on_progress: OnProgress = unwatched
) -> Restored | None:
    """Make a directory whole that an in-place surgery left in the middle: as it was before.

    An undo that died is brought to its end, which is the same. None if there is nothing to do.
    ``force`` takes over from a process of another host, trusts a foreign journal, and puts back
    what is damaged. Raises InputError, MalformedFileError and OutputError as :func:`undo` does.
    """
    root = os.path.realpath(root)
    if not is_mid_surgery(LOCAL, root):
        return None
    path = active(root)
    _check_may_take(path, root, force=force)
    sweep(root)
    with _claimed(path, root, f"vita-ckpt recover --force {quote(root)}", force=force):
        journal = _read(path, root, force=force)
        if not force:
            _check_saved(path, root, journal, on_progress)
            _check_added(root, journal, on_progress)
        _check_fits(path, root, journal)
        with _to_the_end(root, f"what was there before {journal.operation} is back"):
            return Restored(journal, put_back(root, journal, on_progress))


def roll_back(root: str, error: BaseException) -> None:
    """Put back what was there after ``error``; OutputError says what to do if that fails too."""
    path = active(root)
    try:
        put_back(root, read_journal(path, root))  # untold: who watches may be what failed
    except (OSError, InputError) as worse:
        journals.disown(path)
        reason = os_reason(worse) if isinstance(worse, OSError) else str(worse)
        raise OutputError(
            "rollback-failed",
            root,
            expected="to put back what was there",
            got=reason,
            hint=f"once the disk works: vita-ckpt recover {quote(root)}",
        ) from error


def put_back(root: str, journal: Journal, on_progress: OnProgress = unwatched) -> tuple[str, ...]:
    """Bring every byte and name back, synced; the journal goes. Returns new files that stay.

    A file that the surgery added is removed if it is, as far as the journal knows its bytes, what
    was written. Otherwise it is somebody else's by now.
    """
    path = active(root)
    kept: list[str] = []
    restoring = Tally(on_progress, "restoring", _patched_bytes(journal))
    with _saved_ranges(path, journal) as source:
        for number, patched in enumerate(journal.patched):
            target = os.path.join(root, patched.name)
            _unpatch(path, target, patched, source, number, restoring)
    checking = Tally(on_progress, "checking", _added_bytes(journal))
    for number, file in enumerate(journal.replaced):
        target, old = os.path.join(root, file.name), journals.old_file(path, number)
        if os.path.lexists(old):
            os.rename(old, target)
        elif file.before is None and os.path.lexists(target):
            if _is_as_written(target, file.after, checking):
                os.unlink(target)
            else:
                kept.append(file.name)
    sync_directory(root)
    sync_directory(os.path.join(path, OLD))
    retire(root, path)
    return tuple(kept)


def drop_undo(root: str) -> int:
    """Remove the undo data of a checkpoint; the bytes of its files, 0 if there was none.

    Raises InputError if somebody works on it.
    """
    root = os.path.realpath(root)
    kept = journals.undo_data(root)
    if kept is None:
        return 0
    size = journals.size_of(kept)
    with _claimed(kept, root, f"remove {kept}"):
        retire(root, kept)
    return size


def drop_foreign(root: str, *, dry_run: bool = False) -> list[tuple[str, int]]:
    """Remove journals that are not known to be this user's for this directory, with their bytes.

    The checkpoint stays as it is. Raises InputError if the process of one is at work, OutputError
    if the system refuses.
    """
    root = os.path.realpath(root)
    found = [path for path in _journals(root) if not _is_own(path, root)]
    sizes = [(path, journals.size_of(path)) for path in found]
    for path in found:
        journals.check_idle(path, root)
    if dry_run:
        return sizes
    for path in found:
        try:
            if path == home(root):
                os.unlink(path)
                sync_directory(root)
            else:
                retire(root, path)
        except OSError as error:
            raise io_error(error, path, "it is still there") from error
    return sizes


def sweep(root: str) -> None:
    """Remove what dead surgeries left beside the journal that counts; nobody misses it."""
    for path, fate in list(journals.leftovers(root)):
        if fate == "dead":
            remove(path)


def retire(root: str, path: str) -> None:
    """Take a journal out of use, in one step, and remove it."""
    trash = journals.temporary(root, "trash")
    os.rename(path, trash)
    sync_directory(home(root))
    remove(trash)


def remove(path: str) -> None:
    """Remove what counts for nothing, and the directory around it if it was the last."""
    if is_directory(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))


def taken(root: str, error: OSError) -> Exception:
    """Return the error for a failed rename to ``active``: another surgery, or the disk."""
    return journals.busy(root) if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error


def damaged(
    path: str, root: str, journal: Journal, progress: Progress = no_progress, *, deep: bool
) -> Iterator[str]:
    """List the saved bytes in one of our directories that do not match their digests.

    With ``deep`` the tensors of saved files are looked at too, as far as their digests are known.
    ``progress`` is called with the bytes of ranges that were read.
    """
    ranges = os.path.join(path, RANGES)
    with _saved_ranges(path, journal) as source:
        for patched in journal.patched:
            for saved in patched.ranges:
                if saved.before != digest_at(source, saved.at, saved.size, ranges, progress):
                    yield f"{ranges}: {patched.name} at {saved.offset}"
    for number, file in enumerate(journal.replaced):
        if file.before is None:
            continue
        place, old = os.path.join(root, file.name), journals.old_file(path, number)
        if not os.path.lexists(old):
            # It was put back before, or there are no hard links and it has not been moved yet.
            if not _is_like(place, file.before, deep=False):
                yield f"{old}: {file.name} is gone"
        elif not is_plain_file(old):
            yield f"{old}: {file.name} is no file"
        elif os.path.islink(old):  # it leads where it led from its place
            led = os.path.join(os.path.dirname(place), os.readlink(old))
            if not _is_like(led, file.before, deep=deep):
                yield f"{old}: what {file.name} leads to"
        elif not _is_like(old, file.before, deep=deep):
            yield f"{old}: {file.name}"


def _activate(
    kept: str, root: str, journal: Journal, on_progress: OnProgress, *, force: bool
) -> None:
    """Activate the journal. Nothing may come between the checks and this."""
    path = active(root)
    try:
        os.rename(kept, path)
    except OSError as error:
        raise taken(root, error) from error
    try:
        sync_directory(home(root))
        if journals.undo_data(root) is not None:  # a surgery that was at work has ended
            raise journals.busy(root)
        if not force:
            _check_since(root, journal, on_progress)
    except BaseException:
        os.rename(path, kept)
        raise


def _unpatch(
    path: str, target: str, patched: PatchedFile, source: int, number: int, progress: Progress
) -> None:
    """Put saved ranges back into a file, or into a copy of it where others would see that."""
    with opened(target) as (there, _):
        changed = [
            r for r in patched.ranges if not same_range(source, r.at, there, r.offset, r.size)
        ]
        progress(sum(r.size for r in patched.ranges) - sum(r.size for r in changed))
        if not changed:
            sync(there)
            return
        status = os.fstat(there)
        own = status.st_nlink == 1 and not os.path.islink(target) and os.access(target, os.W_OK)
        if own:
            with exclusively(target, patched.size) as descriptor:
                _write_ranges(descriptor, changed, source, path, progress)
            return
        copy = os.path.join(path, NEW, f"copy-{number}")
        with suppress(FileNotFoundError):
            os.unlink(copy)
        with journals.new_descriptor(copy) as descriptor:
            Writer(descriptor, no_progress).copy(there, 0, patched.size, target)
            keep(descriptor, access_of(target))
            _write_ranges(descriptor, changed, source, path, progress)
        os.rename(copy, target)


def _write_ranges(
    descriptor: int, ranges: list[SavedRange], source: int, path: str, progress: Progress
) -> None:
    for saved in ranges:
        offset = saved.offset
        for piece in pieces(source, saved.at, saved.size, path):
            write_at(descriptor, piece, offset)
            offset += len(piece)
            progress(len(piece))
    sync(descriptor)


@contextmanager
def _saved_ranges(path: str, journal: Journal) -> Iterator[int]:
    """Open the saved ranges. Raises MalformedFileError if some are missing."""
    name = os.path.join(path, RANGES)
    with opened(name) as (source, file):
        if file.size != _patched_bytes(journal):
            raise _damage(name, path, f"{file.size} bytes")
        yield source


def _check_saved(path: str, root: str, journal: Journal, on_progress: OnProgress) -> None:
    """Raise MalformedFileError unless everything that was saved is as it was."""
    step = Tally(on_progress, "checking", _patched_bytes(journal))
    for subject in damaged(path, root, journal, step, deep=False):
        raise _damage(subject, path, "others")


def _damage(subject: str, path: str, got: str) -> MalformedFileError:
    return MalformedFileError(
        "damaged-journal",
        subject,
        expected="the bytes that were saved",
        got=got,
        hint="nothing was put back; --force puts back what there is, or, to take the checkpoint "
        f"as it is, remove {os.path.dirname(path)}",
    )


def _check_fits(path: str, root: str, journal: Journal) -> None:
    """Raise InputError unless what is there can take the saved bytes, before any is put back."""
    with _saved_ranges(path, journal):
        pass
    for number, file in enumerate(journal.replaced):
        old, target = journals.old_file(path, number), os.path.join(root, file.name)
        if os.path.lexists(old) and not is_plain_file(old):
            raise _damage(old, path, "something that is no file")
        if is_directory(target):
            raise _not_the_same(target, "a directory")
    for patched in journal.patched:
        target = os.path.join(root, patched.name)
        try:
            size = identify(target).size
        except InputError as error:
            raise _not_the_same(target, error.got, patched.size) from error
        if size != patched.size:
            raise _not_the_same(target, f"one of {size} bytes", patched.size)


def _not_the_same(path: str, got: str, size: int | None = None) -> InputError:
    return InputError(
        "not-the-same-file",
        path,
        expected="the file that was written"
        if size is None
        else f"the file of {size} bytes that was patched",
        got=got,
        hint="another program replaced it: put that file back, or, to take the checkpoint as it "
        f"is, remove its {HOME} directory",
    )


def _check_since(root: str, journal: Journal, on_progress: OnProgress) -> None:
    """Raise InputError if a file is no longer what the surgery made of it."""
    step = Tally(on_progress, "checking", _patched_bytes(journal))
    for patched in journal.patched:
        path = os.path.join(root, patched.name)
        with opened(path) as (source, file):
            same = file.size == patched.size and all(
                saved.after == digest_at(source, saved.offset, saved.size, path, step)
                for saved in patched.ranges
            )
        if not same:
            raise _changed(path, journal)
    for replaced in journal.replaced:
        path = os.path.join(root, replaced.name)
        if replaced.after is None:
            same = not os.path.lexists(path)
        else:
            same = _is_like(path, replaced.after, deep=False)
        if not same:
            raise _changed(path, journal)


def _check_added(root: str, journal: Journal, on_progress: OnProgress) -> None:
    """Raise InputError if there is another file where a surgery in the middle adds one."""
    step = Tally(on_progress, "checking", _added_bytes(journal))
    for file in journal.replaced:
        path = os.path.join(root, file.name)
        is_there = file.before is None and os.path.lexists(path)
        if is_there and not _is_as_written(path, file.after, step):
            raise _changed(path, journal)


def _changed(path: str, journal: Journal) -> InputError:
    return InputError(
        "changed-since",
        path,
        expected=f"the file as {journal.operation} left it",
        got="one that has changed since",
        hint="--force puts old files back all the same, and keeps new ones that have changed",
    )


def _is_as_written(path: str, digest: FileDigest | None, progress: Progress) -> bool:
    """Return whether a file is one that a surgery wrote, which is never a link."""
    return (
        digest is not None
        and not os.path.islink(path)
        and _is_like(path, digest, progress, deep=True)
    )


def _is_like(
    path: str, digest: FileDigest, progress: Progress = no_progress, *, deep: bool
) -> bool:
    """Return whether a file matches ``digest``. Tensors are read only with ``deep``."""
    try:
        if not digest.sha256:
            return identify(path).size == digest.size
        if digest.tensors is None:
            return file_digests({path: path}, progress)[path] == digest
        with LOCAL.open(path) as source:
            found = read_safetensors(source)
        if (found.file.size, found.file.digest) != (digest.size, digest.sha256):
            return False
        known = digest.tensors if deep else {}
        chosen = {n: t for n, t in found.tensors.items() if n in known}
        seen = tensor_digests(chosen, progress)
    except InputError:
        return False
    return seen == dict(known)


def _patched_bytes(journal: Journal) -> int:
    return sum(saved.size for patched in journal.patched for saved in patched.ranges)


def _added_bytes(journal: Journal) -> int:
    added = (file.after for file in journal.replaced if file.before is None)
    return sum(digest.size for digest in added if digest is not None)


def _check_may_take(path: str, root: str, *, force: bool) -> None:
    """Raise InputError unless a journal may be put back; nothing has been touched then."""
    journals.check_idle(path, root)
    _read(path, root, force=force)


def _read(path: str, root: str, *, force: bool) -> Journal:
    journal = read_journal(path, root)
    if not force:
        check_own(journal, root)
    return journal


def _journals(root: str) -> list[str]:
    """Return the journals that count in a checkpoint, or what stands in the place of all."""
    if os.path.lexists(home(root)) and not is_directory(home(root)):
        return [home(root)]
    kept = journals.undo_data(root)
    paths = (active(root), *(() if kept is None else (kept,)))
    return [path for path in paths if os.path.lexists(path)]


def _is_own(path: str, root: str) -> bool:
    try:
        return is_own(read_journal(path, root), root)
    except (InputError, OSError):
        return False


@contextmanager
def _to_the_end(root: str, done: str) -> Iterator[None]:
    """Defer interrupts until the block is done, and then say that it is."""
    try:
        with deferred_interrupts():
            yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{root}: {done}") from error


@contextmanager
def _claimed(path: str, root: str, hint: str, *, force: bool = False) -> Iterator[None]:
    """Claim a journal for this process alone, and release it on failure."""
    try:
        journals.claim(path, root, hint, force=force)
    except OSError as error:
        raise io_error(error, root, "nothing was done") from error
    try:
        yield
    except BaseException as error:
        for place in (path, active(root)):  # it may have become active meanwhile
            journals.disown(place)
        if isinstance(error, OSError):
            raise io_error(error, root, f"then: vita-ckpt recover {quote(root)}") from error
        raise
