"""The one way out: stage beside the output, stream, fsync, and one rename, or nothing is left."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint, LocalFile
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


def no_progress(_count: int) -> None:
    """A progress that nobody looks at."""


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
        with Inputs() as inputs, _Outputs(stage, progress) as outputs:
            outputs.require(layout.bytes_written)
            for text in layout.texts:
                outputs.write(text.name, [text.data])
            for file in sorted(layout.carried, key=lambda file: file.source.size):
                outputs.carry(file)
            for shard in layout.shards:
                outputs.write_shard(shard, inputs)
            outputs.sync()


def write_file(plan: Plan, out: str, progress: Progress = no_progress) -> None:
    """Make the file ``out``, ``.safetensors`` or ``.bin``, hold the tensors of the plan's target.

    Raises as :func:`write_directory` does, and UsageError for a dtype that a ``.bin`` cannot hold.
    """
    tensors = plan.target().tensors
    if out.endswith(".safetensors"):
        shard = WrittenShard("", {"format": "pt"}, storage_order(tensors, {}))
        with _staged(out, plan) as stage, Inputs() as inputs, _Outputs(stage, progress) as outputs:
            outputs.write_shard(shard, inputs)
            outputs.sync()
        return
    entries = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    check_writable(entries, out)
    archive = os.path.splitext(os.path.basename(out))[0]
    with _staged(out, plan) as stage, Inputs() as inputs, open(stage, "xb") as handle:

        def write(index: int, sink: object) -> None:
            name = entries[index][0]
            for data in tensor_bytes(tensors[name], inputs, name):
                sink.write(data)  # type: ignore[attr-defined]
                progress(len(data))

        write_state_dict(handle, archive, entries, write)
        handle.flush()
        os.fsync(handle.fileno())


def check_casts(plan: Plan) -> None:
    """Raise CastError if running ``plan`` would: reads what is converted, writes nothing."""
    with Inputs() as inputs:
        for name, tensor in plan.target().tensors.items():
            if tensor is not plan.base.tensors.get(name):
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


class _Outputs:
    """Files being written below the stage: created, streamed into, synced all together."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage = stage
        self._progress = progress
        self._open: list[int] = []
        self._directories = {stage: None}

    def __enter__(self) -> _Outputs:
        return self

    def __exit__(self, *exc: object) -> None:
        while self._open:
            os.close(self._open.pop())

    def require(self, size: int) -> None:
        """Raise OSError(ENOSPC) before the first byte if ``size`` bytes do not fit."""
        room = os.statvfs(os.path.dirname(self._stage))
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, f"no space left on device for {size} bytes")

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """A file of these bytes."""
        writer = Writer(self._create(name), self._progress)
        for piece in pieces:
            writer.write(piece)

    def carry(self, file: CarriedFile) -> None:
        """A file with the bytes of an input, sharing its blocks where the file system can."""
        with Inputs() as inputs:  # each on its own: there may be more than a process may open
            source = inputs.descriptor(file.source)
            target = self._create(file.name)
            if clone(source, target):
                self._progress(file.source.size)
                return
            self.require(file.source.size)
            Writer(target, self._progress).copy(source, 0, file.source.size, file.source.path)

    def write_shard(self, shard: WrittenShard, inputs: Inputs) -> None:
        """A safetensors file."""
        described = [(name, tensor.dtype, tensor.shape) for name, tensor in shard.entries]
        header, _ = encode_header(described, shard.metadata)
        self.require(len(header) + shard.nbytes)
        writer = Writer(self._create(shard.name), self._progress)
        writer.write(header)
        for name, tensor in shard.entries:
            write_tensor(tensor, inputs, name, writer)

    def sync(self) -> None:
        """Everything written so far is on the disk, as far as the disk tells the truth."""
        while self._open:
            self._sync_one()
        for directory in reversed(self._directories):
            if os.path.isdir(directory):
                _sync_directory(directory)

    def _create(self, name: str) -> int:
        path = os.path.join(self._stage, name) if name else self._stage
        self._make_directories(os.path.dirname(path))
        if len(self._open) >= _MOST_OPEN:
            self._sync_one()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._open.append(os.open(path, flags, 0o666))
        return self._open[-1]

    def _make_directories(self, directory: str) -> None:
        if len(directory) > len(self._stage) and directory not in self._directories:
            self._make_directories(os.path.dirname(directory))
            os.mkdir(directory, 0o777)
            self._directories[directory] = None

    def _sync_one(self) -> None:
        descriptor = self._open.pop(0)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
