"""Surgery: plans on checkpoints, what they will do, and running them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from vita_ckpt.api.reading import StrPath
from vita_ckpt.checks.inspection import left_out_to_json
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, Tensor
from vita_ckpt.core.diff import diff_config, diff_tensors
from vita_ckpt.core.plan import (
    DropFile,
    Plan,
    PutFile,
    input_paths,
    plan_from_json,
    plan_to_json,
    subject_of,
)
from vita_ckpt.errors import InputError, UsageError, VitaCkptError
from vita_ckpt.storage import commit
from vita_ckpt.storage.directory import open_checkpoint
from vita_ckpt.storage.layout import plan_layout
from vita_ckpt.storage.new_file import write_new
from vita_ckpt.storage.source import read_json_object
from vita_ckpt.storage.stream import no_progress

Progress = Callable[[int], None]

_WEIGHT_FILES = (".safetensors", ".bin")
_MAKES_A_FILE = ("extract-projector",)


def apply(plan: Plan, out: StrPath, *, progress: Progress = no_progress) -> str:
    """Write what ``plan`` makes to ``out``, whole and synced to disk, or nothing at all.

    ``out`` must not exist: a directory for a surgery, a ``.safetensors`` or ``.bin`` file for an
    extraction. ``progress`` is called with the bytes of each step. Returns the absolute path.
    Raises UsageError for an output that may not be written, StaleInputError if an input changed
    since the plan was computed, CastError where a conversion would lose a value, OutputError if
    the disk fails.
    """
    path = check_output(plan, out)
    if plan.operation in _MAKES_A_FILE:
        commit.write_file(plan, path, progress)
    else:
        commit.write_directory(plan, plan_layout(plan), path, progress)
    return path


def check_output(plan: Plan, out: StrPath) -> str:
    """The absolute path of ``out``; raises what :func:`apply` would raise for it, and no later."""
    path = commit.check_output(os.fspath(out), (plan.base, *plan.donors))
    if plan.base.root != EMPTY.root and plan.base.layout not in ("safetensors", "torch"):
        raise InputError(
            "not-a-checkpoint",
            plan.base.root,
            expected="a base that is a checkpoint directory",
            hint="compute the plan from the directory",
        )
    makes_file = plan.operation in _MAKES_A_FILE
    if makes_file != path.endswith(_WEIGHT_FILES):
        raise UsageError(
            "wrong-output-kind",
            os.fspath(out),
            expected="a .safetensors or .bin file" if makes_file else "a directory",
            hint="name another output",
        )
    return path


def apply_in_place(plan: Plan) -> str:
    """Give the base of a plan of :func:`plan_set` its new ``config.json``, in one rename.

    Returns the base's path. Raises UsageError for a plan that changes more, StaleInputError if the
    base changed since the plan was computed, OutputError if the disk fails.
    """
    commit.replace_config(plan, plan_layout(plan))
    return plan.base.root


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
    reasons = {subject_of(edit): edit.reason for edit in plan.edits}
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
                "reason": reasons["tensor", change.name],
            }
            for change in diff_tensors(plan.base, target)
        ],
        "config": [
            {
                "key": change.key,
                "before": change.before,
                "after": change.after,
                "reason": reasons["config", change.key],
            }
            for change in diff_config(plan.base, target)
        ],
        "files": [
            {"name": edit.name, "change": _file_change(edit, plan.base), "reason": edit.reason}
            for edit in plan.edits
            if isinstance(edit, PutFile | DropFile)
        ],
    }
    if plan.operation in _MAKES_A_FILE:
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


def _file_change(edit: PutFile | DropFile, base: Checkpoint) -> str:
    if isinstance(edit, DropFile):
        return "removed"
    return "replaced" if edit.name in base.files else "added"
