"""The other way out: a checkpoint changed where it is, at the cost of what changes, and back.

Old bytes are saved and synced before new ones are written; a run that dies in between leaves a
journal that says so (``core/journal.py``), and putting back what it saved can be done over and
over. Not promised: what other programs that read the files meanwhile will see.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint, LocalFile, Tensor, refs_of
from vita_ckpt.core.journal import Journal, PatchedFile, ReplacedFile, SavedRange
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.provenance import digested
from vita_ckpt.errors import InputError, OutputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.in_place import journal as journals
from vita_ckpt.storage.in_place.byte_ranges import exclusively, pieces, write_at
from vita_ckpt.storage.in_place.rollback import remove, retire, roll_back, sweep, taken
from vita_ckpt.storage.reading.in_progress import active, check_whole, home
from vita_ckpt.storage.reading.shards import check_unchanged
from vita_ckpt.storage.reading.signed_journal import (
    JOURNAL,
    NEW,
    OLD,
    RANGES,
    check_names,
    directory_number,
    is_directory,
)
from vita_ckpt.storage.stores.local import LOCAL, opened
from vita_ckpt.storage.system.access import Access, access_of, close_directory, keep, make_directory
from vita_ckpt.storage.system.interrupts import deferred_interrupts
from vita_ckpt.storage.system.os_errors import io_error, require_space
from vita_ckpt.storage.system.state import signing_key
from vita_ckpt.storage.system.syscalls import sync, sync_directory
from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests
from vita_ckpt.storage.tensors.stream import (
    Flushed,
    Inputs,
    Writer,
    no_progress,
    not_said,
    tensor_bytes,
)
from vita_ckpt.storage.writing.layout import (
    InPlaceLayout,
    PatchedShard,
    WrittenShard,
    WrittenText,
)
from vita_ckpt.storage.writing.limits import access_in_place, narrowest_of_files
from vita_ckpt.storage.writing.outputs import Finish, Outputs
from vita_ckpt.storage.writing.verify_written import check_patched, check_staged

# Room for what is small: texts, the journal, directories.
_ROOM: Final = 1 << 20
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def shared_shards(base: Checkpoint, donors: Iterable[Checkpoint]) -> frozenset[str]:
    """Return the shards of ``base`` that must be rewritten rather than written into.

    Other names lead to their bytes (links as in the hub cache), or a donor is read from them, or
    they may not be written.
    """
    files = (file for donor in donors for file in donor.fingerprint)
    read = {_inode(file.path) for file in files if isinstance(file, LocalFile)}
    return frozenset(
        shard.name
        for shard in base.shards
        if os.path.islink(shard.file.path)
        or os.stat(shard.file.path).st_nlink > 1
        or _inode(shard.file.path) in read
        or not os.access(shard.file.path, os.W_OK)
    )


def write_in_place(
    plan: Plan,
    layout: InPlaceLayout,
    finish: Finish,
    *,
    time: str,
    check: bool = True,
    known: Mapping[str, FileDigest] | None = None,
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
) -> None:
    """Make the base of ``plan`` its target, or leave it as it was.

    ``finish`` gives the files that say what was done, ``time`` is when; with ``check`` what was
    written is read again and compared before the old bytes are given up. ``known`` are digests of
    the base's files, which undo data is checked by. Raises StaleInputError if an input changed
    since the plan was computed, InputError if another surgery of the base is under way, CastError
    where a conversion loses a value, OutputError if the disk fails, or if there is no place for the
    key that signs journals.
    """
    root = os.path.realpath(plan.base.root)
    check_whole(LOCAL, root)
    key = signing_key()
    sweep(root)
    surgery = _Surgery(plan, layout, root, dict(known or {}), key, on_progress, flushed)
    with _said(plan.base.root, "the checkpoint is as it was"):
        check_unchanged(plan.preconditions)
        stage = surgery.prepare(finish, time, check)
        try:
            with deferred_interrupts():
                surgery.activate(stage)
            surgery.write()
            if check:
                check_patched(layout.patched, surgery.digests, on_progress)
            with deferred_interrupts():
                surgery.commit()
        except BaseException as error:
            with deferred_interrupts():
                remove(stage)
                if surgery.is_active:
                    roll_back(root, error)
            if surgery.is_done and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("the surgery was done before") from error
            raise


@dataclass(slots=True)
class _Surgery:
    plan: Plan
    layout: InPlaceLayout
    root: str
    known: dict[str, FileDigest]
    key: bytes
    on_progress: OnProgress
    flushed: Flushed
    names: tuple[str, ...] = ()  # of the files that are replaced, in the journal's order
    digests: Mapping[str, str] = field(default_factory=dict)  # of the tensors that are patched
    is_active: bool = False
    is_done: bool = False

    def prepare(self, finish: Finish, time: str, check: bool) -> str:
        """Everything that is needed, written and synced beside the journal that counts."""
        stage = journals.temporary(self.root, "prepare")
        saved = sum(shard.nbytes for shard in self.layout.patched)
        require_space(self.root, saved + self.layout.bytes_written + _ROOM)
        _make(stage, access_of(self.root))
        try:
            self._prepare(stage, finish, time, check)
        except BaseException:
            with deferred_interrupts():
                remove(stage)
            raise
        return stage

    def _prepare(self, stage: str, finish: Finish, time: str, check: bool) -> None:
        journals.own(stage)
        patched_shards = self.layout.patched
        wanted = {name: t for shard in patched_shards for _, name, t in shard.entries}
        moved = {name for shard in patched_shards for name in shard.names} & digested(self.plan)
        wanted |= {e.name: e.tensor for e in self.plan.tensor_edits if e.name in moved}
        self.digests = digests = tensor_digests(wanted, self._step("digesting", wanted))
        patched = self._save_ranges(stage, digests)
        replaced = self._stage_files(stage, finish, digests, check)
        self._save_files(stage, replaced)
        journal = Journal(self.plan.operation, time, patched, replaced)
        journal = journal.signed(self.key, directory_number(self.root))
        check_names(journal, self.root)
        with journals.new_descriptor(os.path.join(stage, JOURNAL)) as target:
            keep(target, self._owners(narrowest_of_files(self.plan.base)))
            Writer(target, no_progress).write(journal.encode())
        sync_directory(stage)
        sync_directory(home(self.root))
        sync_directory(self.root)

    def _save_ranges(self, stage: str, digests: Mapping[str, str]) -> tuple[PatchedFile, ...]:
        """Save the bytes that patches will overwrite, in one file."""
        files: list[PatchedFile] = []
        at = 0
        # Whoever may not read the weights may not read what was saved of them.
        with journals.new_descriptor(os.path.join(stage, RANGES)) as target:
            keep(target, self._owners(Access(0o600, 0, 0)))
            size = sum(shard.nbytes for shard in self.layout.patched)
            writer = Writer(target, Tally(self.on_progress, "saving", size))
            for shard in self.layout.patched:
                ranges: list[SavedRange] = []
                with opened(shard.file.path) as (source, _):
                    for offset, size, after in _ranges(shard, digests):
                        before = hashlib.sha256()
                        for piece in pieces(source, offset, size, shard.file.path):
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
        new = os.path.join(stage, NEW)
        for folder in (os.path.join(stage, OLD), new):
            make_directory(folder, access_of(self.root), keep_owner=True)
        layout = self.layout
        named = {name for shard in layout.shards for name, _ in shard.entries}
        named &= digested(self.plan)
        shards = [replace(s, name=str(i)) for i, s in enumerate(layout.shards)]
        with (
            Inputs(self.flushed) as inputs,
            Outputs(
                new,
                Tally(self.on_progress, "writing", sum(s.nbytes for s in shards)),
                layout.bytes_written,
                digested=named,
            ) as outputs,
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
            self._keep_access(stage, len(shards) + len(staged))
            outputs.sync()
        if check:
            check_staged(new, shards, staged, on_progress=self.on_progress)
        after = [self._digest_of_shard(new, s, outputs.digests) for s in shards]
        after += [FileDigest(len(t.data), hashlib.sha256(t.data).hexdigest()) for t in texts]
        afters = (*after, *(None for _ in layout.removed))
        return tuple(
            ReplacedFile(name, self._before(name), digest)
            for name, digest in zip(self.names, afters, strict=True)
        )

    def _digest_of_shard(
        self, folder: str, shard: WrittenShard, digests: Mapping[str, str]
    ) -> FileDigest:
        path = os.path.join(folder, shard.name)
        if shard.format == "torch":
            return file_digests({path: path})[path]
        with LOCAL.open(path) as source:
            found = read_safetensors(source)
        known = {n: digests[n] for n in found.tensors if n in digests}
        return FileDigest(found.file.size, found.file.digest, known)

    def _before(self, name: str) -> FileDigest | None:
        """Return what identifies a file later; None if there is no file of this name."""
        path = os.path.join(self.root, name)
        if not os.path.lexists(path):
            return None
        shard = next((s for s in self.plan.base.shards if s.name == name), None)
        if shard is not None and name in self.known:
            return self.known[name]
        if shard is not None and shard.format == "safetensors":
            return FileDigest(shard.file.size, shard.file.digest, {})
        if shard is not None:  # reading all of it would cost what it weighs
            return FileDigest(shard.file.size, "")
        return file_digests({name: path})[name]

    def _keep_access(self, stage: str, count: int) -> None:
        """Give new files owner, group and mode of those that they replace."""
        for number, name in enumerate(self.names[:count]):
            access = access_in_place(self.plan.base, name)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(journals.new_file(stage, number), flags)
            try:
                is_kept = keep(descriptor, access)
            finally:
                os.close(descriptor)
            path = os.path.join(self.root, name)
            if not is_kept and os.path.lexists(path):
                raise OutputError(
                    "owner-not-kept",
                    path,
                    expected=f"a new file of user {access.owner}, as the old one is",
                    got=f"one of user {os.geteuid()}",
                    hint="run the command as that user, or write to a new path with --out",
                )

    def _owners(self, access: Access) -> Access:
        """Return ``access`` for the owner and group of the checkpoint directory."""
        root = access_of(self.root)
        return replace(access, owner=root.owner, group=root.group)

    def _save_files(self, stage: str, replaced: tuple[ReplacedFile, ...]) -> None:
        """Give a second name to every file that will be replaced or removed."""
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
        for folder in (OLD, NEW):
            sync_directory(os.path.join(stage, folder))

    def activate(self, stage: str) -> None:
        """Activate the journal: the checkpoint is mid-surgery. Of several one succeeds."""
        check_unchanged(self.plan.preconditions)
        for shard in self.layout.patched:
            with exclusively(shard.file.path, shard.file.size):  # or it cannot be written into
                pass
        path = active(self.root)
        try:
            os.rename(stage, path)
        except OSError as error:
            raise taken(self.root, error) from error
        try:
            sync_directory(home(self.root))
            # Another surgery may have come and gone between the look and the rename: then what
            # was saved is not what is there.
            check_unchanged(self.plan.preconditions)
        except BaseException:
            retire(self.root, path)
            raise
        self.is_active = True

    def write(self) -> None:
        """Patch and replace what changes, and sync it."""
        patched = {n: t for shard in self.layout.patched for _, n, t in shard.entries}
        step = self._step("writing", patched)
        with Inputs(self.flushed) as inputs:
            for shard in self.layout.patched:
                self._patch(shard, inputs, step)
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
        sync_directory(os.path.join(path, NEW))

    def _move_unsaved(self, path: str) -> None:
        """Keep the old files that could not be given a second name."""
        moved = False
        for number, name in enumerate(self.names):
            source, old = os.path.join(self.root, name), journals.old_file(path, number)
            if os.path.lexists(source) and not os.path.lexists(old):
                os.rename(source, old)
                moved = True
        if moved:
            sync_directory(os.path.join(path, OLD))
            _sync_parents(self.root, self.names)

    def commit(self) -> None:
        """Commit the surgery: its journal becomes the undo data, in place of the previous one."""
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
                retire(self.root, earlier)

    def _step(self, what: str, tensors: Mapping[str, Tensor]) -> Tally:
        return Tally(self.on_progress, what, sum(tensor.nbytes for tensor in tensors.values()))

    def _patch(self, shard: PatchedShard, inputs: Inputs, step: Tally) -> None:
        for ref in (ref for *_, tensor in shard.entries for ref in refs_of(tensor)):
            inputs.descriptor(ref.source)  # checked before the file itself is written into
        with exclusively(shard.file.path, shard.file.size) as target:
            if shard.header:
                write_at(target, shard.header, 0)
            for start, name, tensor in shard.entries:
                offset = start
                for data in tensor_bytes(tensor, inputs, name):
                    write_at(target, data, offset)
                    offset += len(data)
                    step(len(data))
            sync(target)


def _make(stage: str, access: Access) -> None:
    """Make a new directory. The directory around it may be removed meanwhile."""
    folder = os.path.dirname(stage)
    for attempts_left in reversed(range(8)):
        with suppress(FileExistsError, FileNotFoundError):
            make_directory(folder, access, keep_owner=True)
        if os.path.lexists(folder) and not is_directory(folder):
            raise InputError(
                "not-a-directory",
                folder,
                expected="a directory",
                got="a link or a file",
                hint="vita-ckpt clean --foreign-journal removes it",
            )
        with suppress(OSError):  # it may have come with the checkpoint, open to everybody
            close_directory(folder, access)
        try:
            make_directory(stage, access, keep_owner=True)
        except FileNotFoundError:
            if not attempts_left:
                raise
        else:
            return


def _ranges(shard: PatchedShard, digests: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    """Offset, size and digest afterwards of what a patch goes over."""
    if shard.header:
        yield 0, len(shard.header), hashlib.sha256(shard.header).hexdigest()
    for offset, name, tensor in shard.entries:
        yield offset, tensor.nbytes, digests[name]


def _sync_file(path: str) -> None:
    """Sync a file that is kept, whoever wrote it. The target of a link is not kept."""
    if not os.path.islink(path):
        with opened(path) as (descriptor, _):
            sync(descriptor)


def _sync_parents(root: str, names: Iterable[str]) -> None:
    for folder in sorted({os.path.dirname(os.path.join(root, name)) for name in names}):
        sync_directory(folder)


def _inode(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


@contextmanager
def _said(root: str, left: str) -> Iterator[None]:
    """Add the state of the checkpoint to errors of the system and to interrupts."""
    try:
        yield
    except OSError as error:
        raise io_error(error, root, left) from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(*(error.args or (left,))) from error
