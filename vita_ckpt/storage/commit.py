"""The one way out: stage beside the output, stream, fsync, and one rename, or nothing is left."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Lock, Thread
from typing import IO, Final

from vita_ckpt.core.checkpoint import Cast, Checkpoint, LocalFile
from vita_ckpt.core.plan import Plan
from vita_ckpt.errors import InputError, OutputError, StaleInputError, UsageError
from vita_ckpt.storage.layout import CarriedFile, DirectoryLayout, WrittenShard, storage_order
from vita_ckpt.storage.safetensors_file import encode_header
from vita_ckpt.storage.source import identify, os_reason
from vita_ckpt.storage.stream import (
    Inputs,
    Progress,
    Writer,
    check_same,
    no_progress,
    tensor_bytes,
    write_tensor,
)
from vita_ckpt.storage.syscalls import clone, rename_new
from vita_ckpt.storage.torch_writer import check_writable, write_state_dict

# Files that are written but not yet synced are kept open, so that no error of theirs is missed.
_MOST_OPEN: Final = 128
_CODES: Final = {
    errno.ENOSPC: ("no-space", "free some space, or write to another disk"),
    errno.EDQUOT: ("no-space", "the quota is used up: write elsewhere"),
    errno.EROFS: ("read-only-output", "write to another directory"),
    errno.EACCES: ("output-not-allowed", "check the permissions of the directory"),
    errno.EPERM: ("output-not-allowed", "check the permissions of the directory"),
}


_Job = Callable[[], None]


def check_output(out: str, inputs: Iterable[Checkpoint]) -> str:
    """The absolute path of ``out``, once it is sure that it may be written.

    Raises UsageError if it exists, if its directory does not, or if it is, contains or lies in an
    input.
    """
    parent = os.path.realpath(os.path.dirname(os.path.abspath(out)))
    path = os.path.join(parent, os.path.basename(os.path.abspath(out)))
    for checkpoint in inputs:
        if not checkpoint.root:
            continue
        root = os.path.realpath(checkpoint.root)
        if path == root or f"{path}/".startswith(f"{root}/") or f"{root}/".startswith(f"{path}/"):
            raise UsageError(
                "output-overlaps-input",
                out,
                expected="a path outside every input",
                got=f"one that is, holds or lies in {checkpoint.root}",
                hint="name another output",
            )
    if os.path.lexists(path):
        raise UsageError(
            "output-exists",
            out,
            expected="a path that does not exist yet",
            hint="remove it, or name another output",
        )
    if not os.path.isdir(parent):
        raise UsageError(
            "no-output-directory",
            out,
            expected=f"an existing directory {parent}",
            hint="create it first",
        )
    return path


def write_directory(
    plan: Plan, layout: DirectoryLayout, out: str, progress: Progress = no_progress
) -> None:
    """Make the directory ``out`` hold the target of ``plan``, complete and synced, or not exist.

    Raises StaleInputError if an input changed since the plan was computed (or changes while it is
    read), CastError where a conversion loses a value, OutputError if the disk fails. Not promised:
    disks that lie about fsync, file systems whose rename is not atomic.
    """
    with _staged(out, plan) as stage:
        os.mkdir(stage, 0o777)
        left = layout.bytes_carried + layout.bytes_written
        with Inputs() as inputs, _Outputs(stage, progress, left) as outputs:
            outputs.require(layout.bytes_written)
            for text in layout.texts:
                outputs.write(text.name, [text.data])
            jobs: list[tuple[int, _Job]] = [
                (file.source.size, partial(outputs.carry, file)) for file in layout.carried
            ]
            jobs += [(s.nbytes, partial(outputs.write_shard, s, inputs)) for s in layout.shards]
            jobs.sort(key=lambda job: -job[0])
            outputs.run([job for _, job in jobs])
            outputs.sync()


def write_file(plan: Plan, out: str, progress: Progress = no_progress) -> None:
    """Make the file ``out``, ``.safetensors`` or ``.bin``, hold the tensors of the plan's target.

    Raises as :func:`write_directory` does, and UsageError for a dtype that a ``.bin`` cannot hold.
    """
    tensors = plan.target().tensors
    if out.endswith(".safetensors"):
        shard = WrittenShard("", {"format": "pt"}, storage_order(tensors, {}))
        with (
            _staged(out, plan) as stage,
            Inputs() as inputs,
            _Outputs(stage, progress, shard.nbytes) as outputs,
        ):
            outputs.write_shard(shard, inputs)
            outputs.sync()
        return
    entries = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    check_writable(entries, out)
    with _staged(out, plan) as stage, Inputs() as inputs, open(stage, "xb") as handle:

        def write(index: int, sink: IO[bytes]) -> None:
            name = entries[index][0]
            for data in tensor_bytes(tensors[name], inputs, name):
                sink.write(data)
                progress(len(data))

        write_state_dict(handle, entries, write)
        handle.flush()
        os.fsync(handle.fileno())


def replace_config(plan: Plan, layout: DirectoryLayout) -> None:
    """Give the base of ``plan`` the files of its target in place, where those are one small file.

    The file is written beside the old one, synced, and renamed over it: a reader finds the old
    or the new one, whole. A link is replaced, not what it leads to. Nothing to change is fine.
    Raises UsageError for a plan that changes more, and as :func:`write_directory` does.
    """
    if layout.shards or len(layout.texts) > 1:
        raise UsageError(
            "more-than-config",
            plan.operation,
            expected="a plan that changes config.json and nothing else",
            hint="write the result to a new directory",
        )
    if not layout.texts:
        return
    text = layout.texts[0]
    path = os.path.join(plan.base.root, text.name)
    stage = os.path.join(plan.base.root, f".vita-ckpt-{secrets.token_hex(6)}.tmp")
    try:
        _check_unchanged(plan.preconditions)
        with open(stage, "xb") as file:
            shutil.copymode(path, stage)
            file.write(text.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(stage, path)
        _sync_directory(plan.base.root)
    except OSError as error:
        code, hint = _CODES.get(error.errno or 0, ("write-failed", "check the disk"))
        raise OutputError(code, path, got=os_reason(error), hint=hint) from error
    finally:
        with suppress(OSError):
            os.unlink(stage)


def check_casts(plan: Plan) -> None:
    """Raise CastError if running ``plan`` would: reads what is converted, writes nothing."""
    with Inputs() as inputs:
        for name, tensor in plan.target().tensors.items():
            if isinstance(tensor, Cast):
                for _ in tensor_bytes(tensor, inputs, name):
                    pass


@contextmanager
def _staged(out: str, plan: Plan) -> Iterator[str]:
    """A name beside ``out`` to write to: it becomes ``out``, or on failure it is removed."""
    parent = os.path.dirname(out)
    stage = os.path.join(parent, f".vita-ckpt-{secrets.token_hex(6)}.tmp")
    try:
        _check_unchanged(plan.preconditions)
        yield stage
        _check_unchanged(plan.preconditions)
        rename_new(stage, out)
        try:
            _sync_directory(parent)
        except OSError:
            _remove(out)
            raise
    except FileExistsError as error:
        raise UsageError(
            "output-exists",
            out,
            expected="a path that does not exist yet",
            got="one that appeared meanwhile",
            hint="name another output",
        ) from error
    except OSError as error:
        code, hint = _CODES.get(error.errno or 0, ("write-failed", "check the disk"))
        raise OutputError(
            code, out, got=os_reason(error), hint=f"{hint}; nothing is left"
        ) from error
    finally:
        _remove(stage)


class _StoppedError(Exception):
    """The other thread has failed, and says why."""


class _Outputs:
    """Files below the stage: created, streamed into by two threads, synced all together.

    Two, because copying costs as much processor time as disk time: one thread copies while the
    other waits for the disk.
    """

    def __init__(self, stage: str, progress: Progress, left: int) -> None:
        self._stage = stage
        self._progress = progress
        self._left = left
        self._lock = Lock()
        self._helping = Lock()
        self._stopped = Event()
        self._unsynced: list[int] = []
        self._directories = {stage: None}

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._unsynced:
            os.close(self._unsynced.pop())

    def require(self, size: int) -> None:
        """Raise OSError(ENOSPC) before they are written if ``size`` bytes do not fit."""
        room = os.statvfs(os.path.dirname(self._stage))
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, f"no space left on device for {size} bytes")

    def run(self, jobs: Iterable[_Job]) -> None:
        """Do all the jobs, or stop them all with the first error or interrupt.

        On return, however it comes about, the helper does nothing any more and will do nothing:
        it works only while it holds its lock, and looks for a stop each time it has taken it.
        """
        waiting = deque(jobs)
        errors: list[BaseException] = []
        helper = Thread(target=self._help, args=(waiting, errors), daemon=True)
        try:
            helper.start()
            with suppress(_StoppedError):
                while (job := _next(waiting)) is not None:
                    job()
        except BaseException:
            self._stopped.set()
            raise
        finally:
            with self._helping:
                pass
        if errors:
            raise errors[0]

    def _help(self, waiting: deque[_Job], errors: list[BaseException]) -> None:
        while True:
            with self._helping:
                job = None if self._stopped.is_set() else _next(waiting)
                if job is None:
                    return
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 - raised again by run()
                    errors.append(error)
                    self._stopped.set()

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """A file of these bytes."""
        with self._file(name) as target:
            writer = Writer(target, self._step)
            for piece in pieces:
                writer.write(piece)

    def carry(self, file: CarriedFile) -> None:
        """A file with the bytes of an input, sharing its blocks where the file system can."""
        # Its own inputs: a checkpoint may carry more files than a process may open.
        with Inputs() as inputs, self._file(file.name) as target:
            source = inputs.descriptor(file.source)
            if clone(source, target):
                self._step(file.source.size)
                return
            self.require(self._left)
            Writer(target, self._step).copy(source, 0, file.source.size, file.source.path)

    def write_shard(self, shard: WrittenShard, inputs: Inputs) -> None:
        """A safetensors file."""
        described = [(name, tensor.dtype, tensor.shape) for name, tensor in shard.entries]
        header, size = encode_header(described, shard.metadata)
        self.require(len(header) + size)
        with self._file(shard.name) as target:
            writer = Writer(target, self._step)
            writer.write(header)
            for name, tensor in shard.entries:
                write_tensor(tensor, inputs, name, writer)

    def sync(self) -> None:
        """Everything written so far is on the disk, as far as the disk tells the truth."""
        while self._unsynced:
            self._sync_oldest()
        for directory in reversed(self._directories):
            if os.path.isdir(directory):
                _sync_directory(directory)

    def _step(self, count: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._left -= count
            self._progress(count)

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        """A new file to write to; once written it is kept open until it is synced."""
        path = os.path.join(self._stage, name) if name else self._stage
        with self._lock:
            self._make_directories(os.path.dirname(path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            yield descriptor
        except BaseException:
            os.close(descriptor)
            raise
        with self._lock:
            self._unsynced.append(descriptor)
            if len(self._unsynced) > _MOST_OPEN:
                self._sync_oldest()

    def _make_directories(self, directory: str) -> None:
        if len(directory) > len(self._stage) and directory not in self._directories:
            self._make_directories(os.path.dirname(directory))
            os.mkdir(directory, 0o777)
            self._directories[directory] = None

    def _sync_oldest(self) -> None:
        descriptor = self._unsynced.pop(0)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _next(waiting: deque[_Job]) -> _Job | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _check_unchanged(files: Iterable[LocalFile]) -> None:
    for file in files:
        try:
            seen = identify(file.path)
        except InputError as error:
            raise StaleInputError(
                "input-changed", file.path, expected="the file as it was", got=error.got
            ) from error
        check_same(file, seen)


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)
