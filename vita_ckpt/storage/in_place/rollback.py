"""Putting back what an in-place surgery saved: rolling back, recovering and undoing are one thing.

It can be done over and over: what is already as it was is left alone, so a run that dies in the
middle is followed by one that does the rest.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vita_ckpt.core.manifest import FileDigest
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
from vita_ckpt.storage.in_place.journal import Journal, PatchedFile
from vita_ckpt.storage.reading.in_progress import HOME, active, check_whole, home, is_mid_surgery
from vita_ckpt.storage.stores.local import LOCAL, identify, opened
from vita_ckpt.storage.system.interrupts import deferred_interrupts
from vita_ckpt.storage.system.os_errors import io_error, os_reason
from vita_ckpt.storage.system.syscalls import sync, sync_directory
from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests
from vita_ckpt.storage.tensors.stream import Writer, no_progress


def undo(root: str, *, force: bool = False) -> Journal:
    """Put back what was there before the last in-place surgery; the journal says what that was.

    Raises InputError if nothing can be undone, if a file has changed since (``force`` undoes it all
    the same), or if somebody works on the checkpoint; MalformedFileError if what was saved is
    damaged (``force`` puts it back as far as the journal can be read); OutputError if the disk
    fails.
    """
    root = os.path.realpath(root)
    check_whole(LOCAL, root)
    kept = journals.undo_data(root)
    if kept is None:
        raise InputError(
            "nothing-to-undo",
            root,
            expected="what an in-place surgery leaves",
            hint="undo data is dropped by the next surgery in place, by undo, and by clean --undo",
        )
    sweep(root)
    hint = f"vita-ckpt undo --force {root}"
    with _claimed(kept, root, hint, force=force):
        journal = journals.read_journal(kept, root)
        if not force:
            _check_saved(kept, root, journal)
            _check_since(root, journal)
        _check_fits(kept, root, journal)
        with _to_the_end(root, f"what was there before {journal.operation} is back"):
            _activate(kept, root, journal, force=force)
            put_back(root, journal)
    return journal


def recover(root: str, *, force: bool = False) -> Journal | None:
    """Make a directory whole that an in-place surgery left in the middle: as it was before.

    An undo that died is brought to its end, which is the same. None if there is nothing to do.
    ``force`` takes over from a process of another host, and puts back what is damaged. Raises
    InputError, MalformedFileError and OutputError as :func:`undo` does.
    """
    root = os.path.realpath(root)
    if not is_mid_surgery(LOCAL, root):
        return None
    sweep(root)
    path = active(root)
    with _claimed(path, root, f"vita-ckpt recover --force {root}", force=force):
        journal = journals.read_journal(path, root)
        if not force:
            _check_saved(path, root, journal)
        _check_fits(path, root, journal)
        with _to_the_end(root, f"what was there before {journal.operation} is back"):
            put_back(root, journal)
    return journal


def roll_back(root: str, error: BaseException) -> None:
    """Put back what was there after ``error``; OutputError says what to do if that fails too."""
    path = active(root)
    try:
        put_back(root, journals.read_journal(path, root))
    except (OSError, InputError) as worse:
        journals.disown(path)
        reason = os_reason(worse) if isinstance(worse, OSError) else str(worse)
        raise OutputError(
            "rollback-failed",
            root,
            expected="to put back what was there",
            got=reason,
            hint=f"once the disk works: vita-ckpt recover {root}",
        ) from error


def put_back(root: str, journal: Journal) -> None:
    """Every byte and name as it was before, synced; the journal goes."""
    path = active(root)
    with _saved_ranges(path, journal) as source:
        for number, patched in enumerate(journal.patched):
            _unpatch(path, os.path.join(root, patched.name), patched, source, number)
    for number, file in enumerate(journal.replaced):
        target, old = os.path.join(root, file.name), journals.old_file(path, number)
        if os.path.lexists(old):
            os.rename(old, target)
        elif file.before is None:
            with suppress(FileNotFoundError):
                os.unlink(target)
    for folder in sorted({os.path.dirname(os.path.join(root, n)) for n in journal.names}):
        sync_directory(folder)
    sync_directory(os.path.join(path, journals.OLD))
    retire(root, path)


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
    """Remove a directory that counts for nothing, and the one around it if it was the last."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))


def taken(root: str, error: OSError) -> Exception:
    """The error for a rename to ``active`` that failed: another surgery is there, or the disk."""
    return journals.busy(root) if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error


def damaged(path: str, root: str, journal: Journal, *, deep: bool) -> Iterator[str]:
    """What of the saved bytes in a directory of ours is not what its digests say.

    With ``deep`` the tensors of saved files are looked at too, as far as their digests are known.
    """
    ranges = os.path.join(path, journals.RANGES)
    with _saved_ranges(path, journal) as source:
        for patched in journal.patched:
            for saved in patched.ranges:
                if saved.before != digest_at(source, saved.at, saved.size, ranges):
                    yield f"{ranges}: {patched.name} at {saved.offset}"
    for number, file in enumerate(journal.replaced):
        if file.before is None:
            continue
        place, old = os.path.join(root, file.name), journals.old_file(path, number)
        if not os.path.lexists(old):
            # It was put back before, or there are no hard links and it has not been moved yet.
            if not _is_like(place, file.before, deep=False):
                yield f"{old}: {file.name} is gone"
        elif os.path.islink(old):  # it leads where it led from its place
            led = os.path.join(os.path.dirname(place), os.readlink(old))
            if not _is_like(led, file.before, deep=deep):
                yield f"{old}: what {file.name} leads to"
        elif not _is_like(old, file.before, deep=deep):
            yield f"{old}: {file.name}"


def _activate(kept: str, root: str, journal: Journal, *, force: bool) -> None:
    """From here on the checkpoint is mid-surgery; nothing has come between the checks and this."""
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
            _check_since(root, journal)
    except BaseException:
        os.rename(path, kept)
        raise


def _unpatch(path: str, target: str, patched: PatchedFile, source: int, number: int) -> None:
    """Put saved ranges back into a file, or into a copy of it where others would see that."""
    with opened(target) as (there, _):
        changed = [
            r for r in patched.ranges if not same_range(source, r.at, there, r.offset, r.size)
        ]
        if not changed:
            sync(there)
            return
        status = os.fstat(there)
        own = status.st_nlink == 1 and not os.path.islink(target) and os.access(target, os.W_OK)
        if own:
            with exclusively(target, patched.size) as descriptor:
                _write_ranges(descriptor, patched, source, path)
            return
        copy = os.path.join(path, journals.NEW, f"copy-{number}")
        with suppress(FileNotFoundError):
            os.unlink(copy)
        with journals.new_descriptor(copy) as descriptor:
            Writer(descriptor, no_progress).copy(there, 0, patched.size, target)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            _write_ranges(descriptor, patched, source, path)
        os.rename(copy, target)


def _write_ranges(descriptor: int, patched: PatchedFile, source: int, path: str) -> None:
    for saved in patched.ranges:
        offset = saved.offset
        for piece in pieces(source, saved.at, saved.size, path):
            write_at(descriptor, piece, offset)
            offset += len(piece)
    sync(descriptor)


@contextmanager
def _saved_ranges(path: str, journal: Journal) -> Iterator[int]:
    """A descriptor of the saved ranges. Raises MalformedFileError if they are not all there."""
    name = os.path.join(path, journals.RANGES)
    with opened(name) as (source, file):
        expected = sum(saved.size for patched in journal.patched for saved in patched.ranges)
        if file.size != expected:
            raise _damage(name, path, f"{file.size} bytes")
        yield source


def _check_saved(path: str, root: str, journal: Journal) -> None:
    """Raise MalformedFileError unless everything that was saved is as it was."""
    for subject in damaged(path, root, journal, deep=False):
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
    for patched in journal.patched:
        target = os.path.join(root, patched.name)
        try:
            size = identify(target).size
        except InputError as error:
            raise _not_the_same(target, patched.size, error.got) from error
        if size != patched.size:
            raise _not_the_same(target, patched.size, f"one of {size} bytes")


def _not_the_same(path: str, size: int, got: str) -> InputError:
    return InputError(
        "not-the-same-file",
        path,
        expected=f"the file of {size} bytes that was patched",
        got=got,
        hint="another program replaced it: put that file back, or, to take the checkpoint as it "
        f"is, remove its {HOME} directory",
    )


def _check_since(root: str, journal: Journal) -> None:
    """Raise InputError if a file is no longer what the surgery made of it."""
    for patched in journal.patched:
        path = os.path.join(root, patched.name)
        with opened(path) as (source, file):
            same = file.size == patched.size and all(
                saved.after == digest_at(source, saved.offset, saved.size, path)
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


def _changed(path: str, journal: Journal) -> InputError:
    return InputError(
        "changed-since",
        path,
        expected=f"the file as {journal.operation} left it",
        got="one that has changed since",
        hint="undo --force puts the old one back all the same",
    )


def _is_like(path: str, digest: FileDigest, *, deep: bool) -> bool:
    """Whether a file is as ``digest`` says; of tensors only with ``deep`` more than the header."""
    try:
        if not digest.sha256:
            return identify(path).size == digest.size
        if digest.tensors is None:
            return file_digests({path: path})[path] == digest
        with LOCAL.open(path) as source:
            found = read_safetensors(source)
        if (found.file.size, found.file.digest) != (digest.size, digest.sha256):
            return False
        known = digest.tensors if deep else {}
        seen = tensor_digests({n: t for n, t in found.tensors.items() if n in known})
    except InputError:
        return False
    return seen == dict(known)


@contextmanager
def _to_the_end(root: str, done: str) -> Iterator[None]:
    """What must not stop in the middle; an interrupt that came meanwhile says that it is done."""
    try:
        with deferred_interrupts():
            yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{root}: {done}") from error


@contextmanager
def _claimed(path: str, root: str, hint: str, *, force: bool = False) -> Iterator[None]:
    """A journal that this process works on, and no other; given up if it fails."""
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
            raise io_error(error, root, f"then: vita-ckpt recover {root}") from error
        raise
