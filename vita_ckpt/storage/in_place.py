"""The other way out: a checkpoint changed where it is, at the cost of what changes, and back.

Old bytes are saved and synced before new ones are written; a run that dies in between leaves a
journal that says so (``storage/journal.py``), and putting back what it saved can be done over and
over. Not promised: what other programs that read the files meanwhile will see.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.core.plan import Plan
from vita_ckpt.errors import InputError, MalformedFileError, OutputError
from vita_ckpt.storage import journal as journals
from vita_ckpt.storage.digests import file_digests, tensor_digests
from vita_ckpt.storage.directory import check_inside, check_unchanged
from vita_ckpt.storage.interrupts import deferred_interrupts
from vita_ckpt.storage.journal import Journal, PatchedFile, ReplacedFile, SavedRange
from vita_ckpt.storage.layout import InPlaceLayout, PatchedShard, WrittenText
from vita_ckpt.storage.outputs import Finish, Outputs, io_error, require_space
from vita_ckpt.storage.reread import check_patched, check_staged
from vita_ckpt.storage.safetensors_file import read_safetensors
from vita_ckpt.storage.source import identify, opened, os_reason, read_at
from vita_ckpt.storage.stream import Inputs, Progress, Writer, no_progress, tensor_bytes
from vita_ckpt.storage.syscalls import sync, sync_directory
from vita_ckpt.storage.wholeness import HOME, active, check_whole, home, is_mid_surgery

_STEP: Final = 4 << 20
# Room for what is small: texts, the journal, directories.
_ROOM: Final = 1 << 20
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def shared_shards(base: Checkpoint, donors: Iterable[Checkpoint]) -> frozenset[str]:
    """The shards of ``base`` whose bytes other names lead to, or from which a donor is read.

    Links as in the hub cache: what is written into such a file would change elsewhere too.
    """
    read = {_inode(file.path) for donor in donors for file in donor.fingerprint}
    return frozenset(
        shard.name
        for shard in base.shards
        if os.path.islink(shard.file.path)
        or os.stat(shard.file.path).st_nlink > 1
        or _inode(shard.file.path) in read
    )


def write_in_place(
    plan: Plan,
    layout: InPlaceLayout,
    finish: Finish,
    *,
    time: str,
    check: bool = True,
    known: Mapping[str, FileDigest] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Make the base of ``plan`` its target, or leave it as it was.

    ``finish`` gives the files that say what was done, ``time`` is when; with ``check`` what was
    written is read again and compared before the old bytes are given up. ``known`` are digests of
    the base's files, which undo data is checked by. Raises StaleInputError if an input changed
    since the plan was computed, InputError if another surgery of the base is under way, CastError
    where a conversion loses a value, OutputError if the disk fails.
    """
    root = os.path.realpath(plan.base.root)
    check_whole(root)
    sweep(root)
    surgery = _Surgery(plan, layout, root, dict(known or {}), progress)
    with _said(plan.base.root, "the checkpoint is as it was"):
        check_unchanged(plan.preconditions)
        stage = surgery.prepare(finish, time, check)
        try:
            with deferred_interrupts():
                surgery.activate(stage)
            surgery.write()
            if check:
                check_patched(layout.patched)
            with deferred_interrupts():
                surgery.commit()
        except BaseException as error:
            with deferred_interrupts():
                _remove(stage)
                if surgery.is_active:
                    _roll_back(root, error)
            if surgery.is_done and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("the surgery was done before") from error
            raise


def undo(root: str, *, force: bool = False) -> Journal:
    """Put back what was there before the last in-place surgery; the journal says what that was.

    Raises InputError if nothing can be undone, if a file has changed since (``force`` undoes it all
    the same, as far as the saved bytes fit), or if somebody works on the checkpoint;
    MalformedFileError if what was saved is damaged; OutputError if the disk fails.
    """
    root = os.path.realpath(root)
    check_whole(root)
    kept = journals.undo_data(root)
    if kept is None:
        raise InputError(
            "nothing-to-undo",
            root,
            expected="what an in-place surgery leaves",
            hint="undo data is dropped by the next surgery in place, by undo, and by clean --undo",
        )
    with _claimed(kept, root, force=force):
        journal = journals.read_journal(kept, root)
        _check_saved(kept, root, journal)
        if not force:
            _check_since(root, journal)
        _check_fits(root, journal)
        with deferred_interrupts():
            try:
                os.rename(kept, active(root))
            except OSError as error:
                raise _lost(root, error) from error
            sync_directory(home(root))
            _put_back(root, journal)
    return journal


def recover(root: str, *, force: bool = False) -> Journal | None:
    """Make a directory whole that an in-place surgery left in the middle: as it was before.

    An undo that died is brought to its end, which is the same. None if there is nothing to do.
    ``force`` takes over from a process of another host. Raises InputError, MalformedFileError and
    OutputError as :func:`undo` does.
    """
    root = os.path.realpath(root)
    if not is_mid_surgery(root):
        return None
    path = active(root)
    with _claimed(path, root, force=force):
        journal = journals.read_journal(path, root)
        _check_saved(path, root, journal)
        _check_fits(root, journal)
        with deferred_interrupts():
            _put_back(root, journal)
    return journal


def drop_undo(root: str) -> int:
    """Remove the undo data of a checkpoint; the bytes of its files, 0 if there was none.

    Raises InputError if somebody works on it.
    """
    root = os.path.realpath(root)
    kept = journals.undo_data(root)
    if kept is None:
        return 0
    size = journals.size_of(kept)
    with _claimed(kept, root):
        _retire(root, kept)
    return size


def sweep(root: str) -> None:
    """Remove what dead surgeries left beside the journal that counts; nobody misses it."""
    for path, fate in list(journals.leftovers(root)):
        if fate == "dead":
            _remove(path)


@dataclass(slots=True)
class _Surgery:
    plan: Plan
    layout: InPlaceLayout
    root: str
    known: dict[str, FileDigest]
    progress: Progress
    names: tuple[str, ...] = ()  # of the files that are replaced, in the journal's order
    is_active: bool = False
    is_done: bool = False

    def prepare(self, finish: Finish, time: str, check: bool) -> str:
        """Everything that is needed, written and synced beside the journal that counts."""
        stage = journals.temporary(self.root, "prepare")
        saved = sum(shard.nbytes for shard in self.layout.patched)
        require_space(self.root, saved + self.layout.bytes_written + _ROOM)
        _make(stage)
        try:
            self._prepare(stage, finish, time, check)
        except BaseException:
            with deferred_interrupts():
                _remove(stage)
            raise
        return stage

    def _prepare(self, stage: str, finish: Finish, time: str, check: bool) -> None:
        journals.own(stage)
        wanted = {name: t for shard in self.layout.patched for _, name, t in shard.entries}
        digests = tensor_digests(wanted)
        patched = self._save_ranges(stage, digests)
        replaced = self._stage_files(stage, finish, digests, check)
        self._save_files(stage, replaced)
        journal = Journal(self.plan.operation, time, patched, replaced)
        _write(os.path.join(stage, journals.JOURNAL), journal.encode())
        sync_directory(stage)
        sync_directory(home(self.root))
        sync_directory(self.root)

    def _save_ranges(self, stage: str, digests: Mapping[str, str]) -> tuple[PatchedFile, ...]:
        """The bytes that patches will go over, in one file."""
        files: list[PatchedFile] = []
        at = 0
        with _new_file(os.path.join(stage, journals.RANGES)) as target:
            writer = Writer(target, no_progress)
            for shard in self.layout.patched:
                ranges: list[SavedRange] = []
                with opened(shard.file.path) as (source, _):
                    for offset, size, after in _ranges(shard, digests):
                        before = hashlib.sha256()
                        for piece in _pieces(source, offset, size, shard.file.path):
                            before.update(piece)
                            writer.write(piece)
                        ranges.append(SavedRange(offset, size, at, before.hexdigest(), after))
                        at += size
                files.append(PatchedFile(shard.name, shard.file.size, tuple(ranges)))
        return tuple(files)

    def _stage_files(
        self, stage: str, finish: Finish, digests: Mapping[str, str], check: bool
    ) -> tuple[ReplacedFile, ...]:
        """New files under numbers, since upstream takes names for weights by how they end."""
        os.mkdir(os.path.join(stage, journals.OLD), 0o777)
        new = os.path.join(stage, journals.NEW)
        os.mkdir(new, 0o777)
        layout = self.layout
        named = {name for shard in layout.shards for name, _ in shard.entries}
        named &= {e.name for e in self.plan.tensor_edits}
        shards = [replace(s, name=str(i)) for i, s in enumerate(layout.shards)]
        with (
            Inputs() as inputs,
            Outputs(new, self.progress, layout.bytes_written, digested=named) as outputs,
        ):
            for shard in shards:
                outputs.write_shard(shard, inputs)
            written = {**digests, **outputs.digests}
            texts = (*layout.texts, *finish(written))
            staged = [WrittenText(str(i), t.data) for i, t in enumerate(texts, len(shards))]
            for text in staged:
                outputs.write(text.name, [text.data])
            self.names = (
                *(s.name for s in layout.shards),
                *(text.name for text in texts),
                *layout.removed,
            )
            self._copy_modes(stage, len(shards) + len(staged))
            outputs.sync()
        if check:
            check_staged(new, shards, staged)
        after = [self._digest_of_shard(new, s.name, outputs.digests) for s in shards]
        after += [FileDigest(len(t.data), hashlib.sha256(t.data).hexdigest()) for t in texts]
        afters = (*after, *(None for _ in layout.removed))
        return tuple(
            ReplacedFile(name, self._before(name), digest)
            for name, digest in zip(self.names, afters, strict=True)
        )

    def _digest_of_shard(self, folder: str, name: str, digests: Mapping[str, str]) -> FileDigest:
        found = read_safetensors(os.path.join(folder, name))
        known = {n: digests[n] for n in found.tensors if n in digests}
        return FileDigest(found.file.size, found.file.digest, known)

    def _before(self, name: str) -> FileDigest | None:
        """What a file is by which it will be known again; None if there is none of this name."""
        path = os.path.join(self.root, name)
        if not os.path.lexists(path):
            return None
        if name in self.known:
            return self.known[name]
        shard = next((s for s in self.plan.base.shards if s.name == name), None)
        if shard is not None and shard.format == "safetensors":
            return FileDigest(shard.file.size, shard.file.digest, {})
        if shard is not None:  # reading all of it would cost what it weighs
            return FileDigest(shard.file.size, "")
        return file_digests({name: path})[name]

    def _copy_modes(self, stage: str, count: int) -> None:
        for number in range(count):
            old = os.path.join(self.root, self.names[number])
            if os.path.exists(old):
                shutil.copymode(old, journals.new_file(stage, number))

    def _save_files(self, stage: str, replaced: tuple[ReplacedFile, ...]) -> None:
        """A second name for every file that will be replaced or removed."""
        for number, file in enumerate(replaced):
            if file.before is None:
                continue
            path = os.path.join(self.root, file.name)
            _sync_file(path)
            try:
                os.link(path, journals.old_file(stage, number), follow_symlinks=False)
            except OSError as error:
                # Where there are no such links they are moved there, once the journal counts.
                if error.errno not in _NO_LINKS:
                    raise
        for folder in (journals.OLD, journals.NEW):
            sync_directory(os.path.join(stage, folder))

    def activate(self, stage: str) -> None:
        """From here on the checkpoint is mid-surgery. Of several surgeries one gets here."""
        check_unchanged(self.plan.preconditions)
        path = active(self.root)
        try:
            os.rename(stage, path)
        except OSError as error:
            raise _lost(self.root, error) from error
        try:
            sync_directory(home(self.root))
            # Another surgery may have come and gone between the look and the rename: then what
            # was saved is not what is there.
            check_unchanged(self.plan.preconditions)
        except BaseException:
            _retire(self.root, path)
            raise
        self.is_active = True

    def write(self) -> None:
        """Patch and replace what changes, and sync it."""
        with Inputs() as inputs:
            for shard in self.layout.patched:
                self._patch(shard, inputs)
        # All that is read has been read; the base may be read by a second name, as a donor.
        own = self.plan.base.fingerprint
        check_unchanged(file for file in self.plan.preconditions if file not in own)
        path = active(self.root)
        self._move_unsaved(path)
        staged = len(self.names) - len(self.layout.removed)
        for number, name in enumerate(self.names):
            target = os.path.join(self.root, name)
            if number < staged:
                os.rename(journals.new_file(path, number), target)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(target)
        _sync_parents(self.root, self.names)
        sync_directory(os.path.join(path, journals.NEW))

    def _move_unsaved(self, path: str) -> None:
        """Keep the old files that could not be given a second name."""
        moved = False
        for number, name in enumerate(self.names):
            source, old = os.path.join(self.root, name), journals.old_file(path, number)
            if os.path.lexists(source) and not os.path.lexists(old):
                os.rename(source, old)
                moved = True
        if moved:
            sync_directory(os.path.join(path, journals.OLD))
            _sync_parents(self.root, self.names)

    def commit(self) -> None:
        """The surgery is done: its journal becomes undo data, and that of the last one goes."""
        earlier = journals.undo_data(self.root)
        path, kept = active(self.root), journals.next_undo(self.root)
        os.rename(path, kept)
        try:
            sync_directory(home(self.root))
        except OSError:
            os.rename(kept, path)
            raise
        self.is_active, self.is_done = False, True
        journals.disown(kept)
        if earlier is not None:
            with suppress(OSError):
                _retire(self.root, earlier)

    def _patch(self, shard: PatchedShard, inputs: Inputs) -> None:
        with _exclusively(shard.file.path, shard.file.size) as target:
            if shard.header:
                _write_at(target, shard.header, 0)
            for start, name, tensor in shard.entries:
                offset = start
                for data in tensor_bytes(tensor, inputs, name):
                    _write_at(target, data, offset)
                    offset += len(data)
                    self.progress(len(data))
            sync(target)


def _roll_back(root: str, error: BaseException) -> None:
    """Put back what was there after ``error``; if that fails too, say what to do."""
    path = active(root)
    try:
        _put_back(root, journals.read_journal(path, root))
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


def _put_back(root: str, journal: Journal) -> None:
    """Every byte and name as it was before; doing it again changes nothing."""
    path = active(root)
    for patched in journal.patched:
        with (
            opened(os.path.join(path, journals.RANGES)) as (source, _),
            _exclusively(os.path.join(root, patched.name), patched.size) as target,
        ):
            for saved in patched.ranges:
                offset = saved.offset
                for piece in _pieces(source, saved.at, saved.size, path):
                    _write_at(target, piece, offset)
                    offset += len(piece)
            sync(target)
    for number, file in enumerate(journal.replaced):
        target_path, old = os.path.join(root, file.name), journals.old_file(path, number)
        if os.path.lexists(old):
            os.rename(old, target_path)
        elif file.before is None:
            with suppress(FileNotFoundError):
                os.unlink(target_path)
    _sync_parents(root, [file.name for file in journal.replaced])
    sync_directory(os.path.join(path, journals.OLD))
    _retire(root, path)


def _retire(root: str, path: str) -> None:
    """Take a journal out of use, in one step, and remove it."""
    trash = journals.temporary(root, "trash")
    os.rename(path, trash)
    sync_directory(home(root))
    _remove(trash)


def _remove(path: str) -> None:
    """Remove a directory that counts for nothing, and the one around it if it was the last."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        os.rmdir(os.path.dirname(path))


def _make(stage: str) -> None:
    """A new directory of ours; the one around it may go away meanwhile."""
    folder = os.path.dirname(stage)
    for attempts_left in reversed(range(8)):
        with suppress(FileExistsError):
            os.mkdir(folder, 0o777)
        if os.path.islink(folder):
            raise InputError("not-a-directory", folder, expected="a directory", got="a link")
        try:
            os.mkdir(stage, 0o777)
        except FileNotFoundError:
            if not attempts_left:
                raise
        else:
            return


def damaged(path: str, root: str, journal: Journal, *, deep: bool) -> Iterator[str]:
    """What of the saved bytes in a directory of ours is not what its digests say.

    With ``deep`` the tensors of saved files are looked at too, as far as their digests are known.
    """
    ranges = os.path.join(path, journals.RANGES)
    if journal.patched:
        with opened(ranges) as (source, file):
            for patched in journal.patched:
                for saved in patched.ranges:
                    if saved.at + saved.size > file.size or saved.before != _digest_at(
                        source, saved.at, saved.size, ranges
                    ):
                        yield f"{ranges}: {patched.name} at {saved.offset}"
    for number, replaced in enumerate(journal.replaced):
        old = journals.old_file(path, number)
        if replaced.before is None or not os.path.lexists(old):
            continue
        if os.path.islink(old):  # it is a link seen from where it was
            place = os.path.dirname(os.path.join(root, replaced.name))
            if not _is_like(os.path.join(place, os.readlink(old)), replaced.before, deep=deep):
                yield f"{old}: what {replaced.name} leads to"
        elif not _is_like(old, replaced.before, deep=deep):
            yield f"{old}: {replaced.name}"


def _check_saved(path: str, root: str, journal: Journal) -> None:
    """Raise MalformedFileError unless everything that was saved is as it was."""
    for subject in damaged(path, root, journal, deep=False):
        raise MalformedFileError(
            "damaged-journal",
            subject,
            expected="the bytes that were saved",
            got="others",
            hint=f"nothing was put back; to take {root} as it is, remove its {HOME} directory",
        )


def _check_fits(root: str, journal: Journal) -> None:
    """Raise InputError unless what is there can take the saved bytes, before any is put back."""
    for patched in journal.patched:
        _check_name(root, patched.name)
        with _exclusively(os.path.join(root, patched.name), patched.size):
            pass
    for replaced in journal.replaced:
        _check_name(root, replaced.name)


def _check_since(root: str, journal: Journal) -> None:
    """Raise InputError if a file is no longer what the surgery made of it."""
    changed: str | None = None
    for patched in journal.patched:
        path = os.path.join(root, patched.name)
        _check_name(root, patched.name)
        with opened(path) as (source, file):
            same = file.size == patched.size and all(
                saved.after == _digest_at(source, saved.offset, saved.size, path)
                for saved in patched.ranges
            )
        changed = changed if same else path
    for replaced in journal.replaced:
        path = os.path.join(root, replaced.name)
        if replaced.after is None:
            same = not os.path.lexists(path)
        else:
            same = _is_like(path, replaced.after, deep=False)
        changed = changed if same else path
    if changed is not None:
        raise InputError(
            "changed-since",
            changed,
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
        found = read_safetensors(path)
        if (found.file.size, found.file.digest) != (digest.size, digest.sha256):
            return False
        known = digest.tensors if deep else {}
        seen = tensor_digests({n: t for n, t in found.tensors.items() if n in known})
    except InputError:
        return False
    return seen == dict(known)


def _ranges(shard: PatchedShard, digests: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """Offset, size and digest afterwards of what a patch goes over."""
    if shard.header:
        yield 0, len(shard.header), hashlib.sha256(shard.header).hexdigest()
    for offset, name, tensor in shard.entries:
        yield offset, tensor.nbytes, digests[name]


def _check_name(root: str, name: str) -> None:
    check_inside(root, name, os.path.join(home(root), journals.JOURNAL))


@contextmanager
def _exclusively(path: str, size: int) -> Iterator[int]:
    """A descriptor to write into a file of ``size`` bytes that has no other name."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise _not_the_same(path, size, os_reason(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size != size:
            got = f"one of {status.st_size} bytes with {status.st_nlink} names"
            raise _not_the_same(path, size, got)
        yield descriptor
    finally:
        os.close(descriptor)


def _not_the_same(path: str, size: int, got: str) -> InputError:
    return InputError(
        "not-the-same-file",
        path,
        expected=f"a regular file of {size} bytes with one name",
        got=got,
        hint="another program replaced or linked it: give it a file of its own (cp and mv), or, to "
        f"take the checkpoint as it is, remove its {HOME} directory",
    )


@contextmanager
def _new_file(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
        sync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: str, data: bytes) -> None:
    with _new_file(path) as target:
        Writer(target, no_progress).write(data)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        offset += count
        view = view[count:]


def _pieces(descriptor: int, offset: int, size: int, path: str) -> Iterator[bytes]:
    while size:
        piece = read_at(descriptor, min(size, _STEP), offset, path)
        yield piece
        offset += len(piece)
        size -= len(piece)


def _digest_at(descriptor: int, offset: int, size: int, path: str) -> str:
    found = hashlib.sha256()
    for piece in _pieces(descriptor, offset, size, path):
        found.update(piece)
    return found.hexdigest()


def _sync_file(path: str) -> None:
    """What is kept must be on the disk, whoever wrote it; what a link leads to is not kept."""
    if not os.path.islink(path):
        with opened(path) as (descriptor, _):
            sync(descriptor)


def _sync_parents(root: str, names: Iterable[str]) -> None:
    for folder in sorted({os.path.dirname(os.path.join(root, name)) for name in names}):
        sync_directory(folder)


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _lost(root: str, error: OSError) -> Exception:
    """The error for a rename to ``active`` that failed: another surgery is there, or the disk."""
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return journals.busy(root)
    return error


@contextmanager
def _claimed(path: str, root: str, *, force: bool = False) -> Iterator[None]:
    """A journal that this process works on, and no other; given up if it fails."""
    try:
        journals.claim(path, root, force=force)
    except OSError as error:
        raise io_error(error, root, "nothing was done") from error
    try:
        yield
    except OSError as error:
        journals.disown(path)
        journals.disown(active(root))
        raise io_error(error, root, f"then: vita-ckpt recover {root}") from error
    except BaseException:
        journals.disown(path)
        raise


@contextmanager
def _said(root: str, left: str) -> Iterator[None]:
    """Errors of the system, and interrupts, say what state the checkpoint is in."""
    try:
        yield
    except OSError as error:
        raise io_error(error, root, left) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*(error.args or (left,))) from error
