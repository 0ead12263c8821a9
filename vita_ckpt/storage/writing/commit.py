"""The one way out: stage beside the output, stream, fsync, and one rename, or nothing is left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO

from vita_ckpt.core.checkpoint import Checkpoint, converts
from vita_ckpt.core.options import Link
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.provenance import digested
from vita_ckpt.errors import UsageError
from vita_ckpt.storage.formats.torch_writer import check_writable, write_state_dict
from vita_ckpt.storage.reading.shards import check_unchanged
from vita_ckpt.storage.system.access import limit, make_directory
from vita_ckpt.storage.system.interrupts import deferred_interrupts
from vita_ckpt.storage.system.os_errors import io_error
from vita_ckpt.storage.system.owner import stage_name
from vita_ckpt.storage.system.syscalls import rename_new, sync, sync_directory
from vita_ckpt.storage.tensors.stream import (
    Flushed,
    Inputs,
    not_said,
    tensor_bytes,
)
from vita_ckpt.storage.writing.layout import DirectoryLayout, WrittenShard, storage_order
from vita_ckpt.storage.writing.limits import Limits, sources_of
from vita_ckpt.storage.writing.outputs import Finish, Job, Outputs
from vita_ckpt.storage.writing.verify_written import check_saved, check_staged


def check_output(out: str, inputs: Iterable[Checkpoint]) -> str:
    """Return the absolute path of ``out`` after checking that it may be written.

    Raises UsageError if it exists, if its directory does not, or if it is, contains or lies in an
    input.
    """
    parent = os.path.realpath(os.path.dirname(os.path.abspath(out)))
    path = os.path.join(parent, os.path.basename(os.path.abspath(out)))
    for checkpoint in inputs:
        if not os.path.isabs(checkpoint.root):  # none, or an address on the hub
            continue
        root = os.path.realpath(checkpoint.root)
        if path == root or f"{path}/".startswith(f"{root}/") or f"{root}/".startswith(f"{path}/"):
            raise UsageError(
                "output-overlaps-input",
                out,
                expected="a path outside every input",
                got=f"one that is, contains or lies in {checkpoint.root}",
                hint="name another output",
            )
    if os.path.lexists(path):
        raise UsageError(
            "output-exists",
            out,
            expected="a path that does not exist yet",
            hint="name another output",
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
    plan: Plan,
    layout: DirectoryLayout,
    out: str,
    finish: Finish,
    *,
    link: Link = "auto",
    check: bool = False,
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
) -> None:
    """Make the directory ``out`` hold the target of ``plan``, complete and synced, or not exist.

    ``finish`` gives the files that say what was done. Nothing is more open than what it is made of,
    at any moment. Shards that are carried are linked or copied
    as ``link`` says; with ``check`` all is read again and compared. Raises StaleInputError if an
    input changed since the plan was computed (or changes while it is read), CastError where a
    conversion loses a value, OutputError if the disk fails, UsageError for a link that cannot be.
    Not promised: disks that lie about fsync, file systems whose rename is not atomic.
    """
    shards = {shard.name for shard in plan.base.shards}
    edited = digested(plan) if plan.record is not None else ()
    with _staged(out, plan) as stage:
        limits = Limits(plan)
        make_directory(stage, limits.of_directory())
        left = layout.bytes_carried + layout.bytes_written
        with (
            Inputs(flushed) as inputs,
            Outputs(
                stage,
                Tally(on_progress, "writing", left),
                left,
                digested=edited,
                limits=limits,
            ) as outputs,
        ):
            outputs.require(layout.bytes_written)
            jobs: list[tuple[int, Job]] = [
                (
                    file.source.size,
                    partial(outputs.carry, file, link if file.name in shards else "auto"),
                )
                for file in layout.carried
            ]
            jobs += [(s.nbytes, partial(outputs.write_shard, s, inputs)) for s in layout.shards]
            jobs.sort(key=lambda job: -job[0])
            outputs.run([job for _, job in jobs])
            texts = (*layout.texts, *finish(outputs.digests))
            for text in texts:
                outputs.write(text.name, [text.data])
            on_progress("waiting for the disk", 0, 0)
            outputs.sync()
        if check:
            check_staged(stage, layout.shards, texts, layout.carried, on_progress)


def write_file(
    plan: Plan, out: str, *, check: bool = False, on_progress: OnProgress = unwatched
) -> None:
    """Make the file ``out``, ``.safetensors`` or ``.bin``, hold the tensors of the plan's target.

    Raises as :func:`write_directory` does, and UsageError for a dtype that a ``.bin`` cannot hold.
    """
    tensors = plan.target().tensors
    if out.endswith(".safetensors"):
        shard = WrittenShard("", {"format": "pt"}, storage_order(tensors, {}))
        with _staged(out, plan) as stage:
            with (
                Inputs() as inputs,
                Outputs(
                    stage,
                    Tally(on_progress, "writing", shard.nbytes),
                    shard.nbytes,
                    limits=Limits(plan),
                ) as outputs,
            ):
                outputs.write_shard(shard, inputs)
                outputs.sync()
            if check:
                check_staged(stage, [shard], [], on_progress=on_progress)
        return
    entries = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    check_writable(entries, out)
    with _staged(out, plan) as stage:
        access = Limits(plan).of_file("", sources_of(tensors.values()))
        with Inputs() as inputs, open(stage, "xb", opener=_private) as handle:
            limit(handle.fileno(), access)

            step = Tally(on_progress, "writing", sum(t.nbytes for t in tensors.values()))

            def write(index: int, sink: IO[bytes]) -> None:
                name = entries[index][0]
                for data in tensor_bytes(tensors[name], inputs, name):
                    sink.write(data)
                    step(len(data))

            write_state_dict(handle, entries, write)
            handle.flush()
            sync(handle.fileno())
        if check:
            check_saved(stage, tensors, on_progress)


def check_casts(
    plan: Plan, on_progress: OnProgress = unwatched, flushed: Flushed = not_said
) -> None:
    """Raise CastError if running ``plan`` would: reads what is converted, writes nothing."""
    casts = {name: t for name, t in plan.target().tensors.items() if converts(t)}
    step = Tally(on_progress, "computing", sum(tensor.nbytes for tensor in casts.values()))
    with Inputs(flushed) as inputs:
        for name, tensor in casts.items():
            for data in tensor_bytes(tensor, inputs, name):
                step(len(data))


@contextmanager
def _staged(out: str, plan: Plan) -> Iterator[str]:
    """Yield a name beside ``out`` to write to. It becomes ``out``, or is removed on failure."""
    parent = os.path.dirname(out)
    stage = os.path.join(parent, stage_name())
    state = "nothing was written"
    try:
        check_unchanged(plan.preconditions)
        yield stage
        check_unchanged(plan.preconditions)
        with deferred_interrupts():
            rename_new(stage, out)
            try:
                sync_directory(parent)
            except OSError:
                os.rename(out, stage)
                raise
            state = f"{out} is complete"
    except FileExistsError as error:
        raise UsageError(
            "output-exists",
            out,
            expected="a path that does not exist yet",
            got="one that appeared meanwhile",
            hint="name another output",
        ) from error
    except OSError as error:
        raise io_error(error, out, "nothing is left") from error
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(state) from error
    finally:
        with deferred_interrupts():
            _remove(stage)


def _private(path: str, flags: int) -> int:
    """Open a new file that is for its owner alone."""
    return os.open(path, flags, 0o600)


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)
