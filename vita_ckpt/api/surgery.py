"""Surgery: plans on checkpoints, what they will do, and running them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from typing import Any

from vita_ckpt.api.reading import StrPath, as_checkpoint
from vita_ckpt.checks.inspection import left_out_to_json
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, Tensor
from vita_ckpt.core.diff import diff_config, diff_tensors
from vita_ckpt.core.dtype import SPELLINGS
from vita_ckpt.core.plan import Plan, SetConfig, input_paths, plan_from_json, plan_to_json
from vita_ckpt.errors import InputError, UsageError, VitaCkptError
from vita_ckpt.storage import commit
from vita_ckpt.storage.directory import open_checkpoint
from vita_ckpt.storage.layout import plan_layout
from vita_ckpt.storage.new_file import write_new
from vita_ckpt.storage.source import read_json_object
from vita_ckpt.surgery import projector

Progress = Callable[[int], None]

_WEIGHT_FILES = (".safetensors", ".bin")


def plan_extract_projector(checkpoint: Checkpoint | StrPath, *, bare: bool = False) -> Plan:
    """A plan for a file of the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. Raises InputError if it cannot be read and AdapterError if it has no projector.
    """
    return projector.plan_extract_projector(as_checkpoint(checkpoint), bare=bare)


def plan_merge_projector(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
) -> Plan:
    """A plan that puts the projector of ``adapter`` into ``base``, and leaves all else as it is.

    ``dtype`` (``"bf16"``, ``"float16"``, ``"F32"`` …) is what the projector is written in, by
    default the dtype of the base's. ``extras`` names other tensors of the adapter to take along,
    such as ``embed_tokens``. Raises InputError, AdapterError or CastError where the two do not go
    together, and UsageError for an unknown dtype or an extra that is not there.
    """
    return projector.plan_merge_projector(
        as_checkpoint(base),
        as_checkpoint(adapter),
        dtype=_dtype(dtype),
        extras=(extras,) if isinstance(extras, str) else extras,
    )


def apply(plan: Plan, out: StrPath, *, progress: Progress = commit.no_progress) -> str:
    """Write what ``plan`` makes to ``out``, whole and synced to disk, or nothing at all.

    ``out`` must not exist: a directory for a surgery, a ``.safetensors`` or ``.bin`` file for an
    extraction. ``progress`` is called with the bytes of each step. Returns the absolute path.
    Raises UsageError for an output that may not be written, StaleInputError if an input changed
    since the plan was computed, CastError where a conversion would lose a value, OutputError if
    the disk fails.
    """
    path = commit.check_output(os.fspath(out), (plan.base, *plan.donors))
    makes_file = plan.base.root == EMPTY.root
    if not makes_file and plan.base.layout not in ("safetensors", "torch"):
        raise InputError(
            "not-a-checkpoint",
            plan.base.root,
            expected="a base that is a checkpoint directory",
            hint="compute the plan from the directory",
        )
    if makes_file != path.endswith(_WEIGHT_FILES):
        raise UsageError(
            "wrong-output-kind",
            os.fspath(out),
            expected="a .safetensors or .bin file" if makes_file else "a directory",
            hint="name another output",
        )
    if makes_file:
        commit.write_file(plan, path, progress)
    else:
        commit.write_directory(plan, plan_layout(plan), path, progress)
    return path


def check_plan(plan: Plan) -> None:
    """Raise what :func:`apply` would raise for the values: a conversion that overflows."""
    commit.check_casts(plan)


def check_plan_path(plan: Plan, path: StrPath) -> None:
    """Raise UsageError unless a plan may be saved there: a new file outside every input."""
    commit.check_output(os.fspath(path), (plan.base, *plan.donors))


def save_plan(plan: Plan, path: StrPath) -> None:
    """Write a plan as JSON to a new file outside its inputs; :func:`load_plan` reads it."""
    check_plan_path(plan, path)
    write_new(os.fspath(path), json.dumps(plan_to_json(plan), indent=2) + "\n")


def load_plan(path: StrPath) -> Plan:
    """A plan that :func:`save_plan` wrote, its inputs opened again.

    Raises StaleInputError if one of them is not what the plan was computed from.
    """
    data, _ = read_json_object(os.fspath(path))
    try:
        inputs = [open_checkpoint(root) if root else EMPTY for root in input_paths(data)]
        return plan_from_json(data, inputs)
    except VitaCkptError as error:
        if error.code == "invalid-plan":
            error.subject = os.fspath(path)
        raise


def summarize(plan: Plan) -> dict[str, Any]:
    """What ``plan`` will do, as JSON: tensors and config before and after, files, bytes."""
    target = plan.target()
    reasons = {
        (edit.key if isinstance(edit, SetConfig) else edit.name): edit.reason for edit in plan.edits
    }
    summary: dict[str, Any] = {
        "format": "vita-ckpt-summary",
        "version": 1,
        "operation": plan.operation,
        "base": plan.base.root or None,
        "donors": [donor.root for donor in plan.donors],
        "notes": list(plan.notes),
        "tensors": [
            {
                "name": change.name,
                "change": change.change,
                "before": _described(change.before),
                "after": _described(change.after),
                "reason": reasons[change.name],
            }
            for change in diff_tensors(plan.base, target)
        ],
        "config": [
            {
                "key": change.key,
                "before": change.before,
                "after": change.after,
                "reason": reasons[change.key],
            }
            for change in diff_config(plan.base, target)
        ],
    }
    if plan.base.root == EMPTY.root:
        size = sum(tensor.nbytes for tensor in target.tensors.values())
        return summary | {"rewritten": [], "carried": [], "left_out": [], "bytes_to_write": size}
    layout = plan_layout(plan)
    return summary | {
        "rewritten": [{"name": shard.name, "bytes": shard.nbytes} for shard in layout.shards]
        + [{"name": text.name, "bytes": len(text.data)} for text in layout.texts],
        "carried": [{"name": f.name, "bytes": f.source.size} for f in layout.carried],
        "left_out": left_out_to_json(plan.base.left_out),
        "bytes_to_write": layout.bytes_written + layout.bytes_carried,
    }


def _described(tensor: Tensor | None) -> dict[str, Any] | None:
    if tensor is None:
        return None
    return {"dtype": tensor.dtype, "shape": list(tensor.shape)}


def _dtype(name: str | None) -> str | None:
    if name is None or name in SPELLINGS.values():
        return name
    if name.lower() not in SPELLINGS:
        raise UsageError(
            "unknown-dtype", name, expected=", ".join(sorted(SPELLINGS)), hint="name one of these"
        )
    return SPELLINGS[name.lower()]
