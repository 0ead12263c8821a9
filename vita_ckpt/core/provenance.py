"""Record in ``vita_ckpt.json`` how a checkpoint was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint, files_read
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.strict_json import finite

if TYPE_CHECKING:
    from vita_ckpt.core.plan import Plan

_FORMAT: Final = "vita-ckpt-provenance"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Written:
    """The SHA-256 digests, in hex, of what a run wrote: the tensors of its plan, and texts."""

    tensors: Mapping[str, str]
    files: Mapping[str, str]


def needs_alignment(checkpoint: Checkpoint) -> bool:
    """Whether the projector was drawn at random and no trained one has been merged since."""
    return (checkpoint.provenance or {}).get("needs_alignment") is True


def operations(checkpoint: Checkpoint) -> list[Any]:
    """The operations that are known of a checkpoint, the first one first; whatever the file says.

    Only what is an object is an operation that can be read.
    """
    known = (checkpoint.provenance or {}).get("operations")
    return known if isinstance(known, list) else []


def lineage(
    plan: Plan, written: Written, *, time: str, versions: Mapping[str, str]
) -> dict[str, Any]:
    """The content of ``vita_ckpt.json`` after ``plan``: what the base's said, and one operation.

    ``time`` is UTC in ISO 8601, ``versions`` are those of the programs. Inputs are named by their
    last path component, or their address on the hub with its commit, and the digests of their
    headers and configs: where they lay on somebody's disk is nobody else's business. Raises
    ValueError for a plan that leaves nothing to be known.
    """
    record = plan.record
    if record is None:
        raise ValueError(f"a {plan.operation} has no record")
    base = {"base": plan.base} if plan.base.root else {}
    inputs = {**base, **dict(zip(record.roles, plan.donors, strict=True))}
    entry = {
        "operation": plan.operation,
        "time": time,
        "versions": dict(versions),
        "inputs": {role: described(checkpoint) for role, checkpoint in inputs.items()},
        "arguments": dict(record.arguments),
        **({} if record.seed is None else {"seed": record.seed}),
        "needs_alignment": record.needs_alignment,
        "written": {
            "tensors": _hashes(written.tensors),
            "files": _hashes(written.files),
        },
    }
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "needs_alignment": record.needs_alignment,
        "operations": [*operations(plan.base), entry],
    }


def encode(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``vita_ckpt.json``, whatever the base's said: JSON for every parser."""
    return (json.dumps(finite(content), indent=2, allow_nan=False) + "\n").encode("ascii")


def last_written(checkpoint: Checkpoint) -> Written:
    """The digests of what surgeries wrote of a checkpoint: of each tensor and file the last one."""
    tensors: dict[str, str] = {}
    files: dict[str, str] = {}
    for entry in operations(checkpoint):
        written = entry.get("written") if isinstance(entry, Mapping) else None
        if isinstance(written, Mapping):
            tensors |= _read_hashes(written.get("tensors"))
            files |= _read_hashes(written.get("files"))
    return Written(
        {name: digest for name, digest in tensors.items() if name in checkpoint.tensors},
        {name: digest for name, digest in files.items() if name in checkpoint.files},
    )


def digested(plan: Plan) -> frozenset[str]:
    """Return the names of the tensors whose digests the lineage of ``plan`` gives.

    Bytes of the base that only get another name need none, unless the lineage has one that was of
    other bytes under that name.
    """
    known: set[str] = set()
    for entry in operations(plan.base):
        written = entry.get("written") if isinstance(entry, Mapping) else None
        if isinstance(written, Mapping):
            known |= _read_hashes(written.get("tensors")).keys()
    return frozenset({edit.name for edit in plan.tensor_edits} & {*plan.computed, *known})


def _read_hashes(value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {name: d.removeprefix("sha256:") for name, d in pairs if isinstance(d, str)}


def _hashes(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: f"sha256:{digest}" for name, digest in sorted(digests.items())}


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how the lineage names an input: its last component, the digests of its headers."""
    digests = {file.path.rpartition("/")[2]: file.digest for file in files_read(checkpoint)}
    root = checkpoint.root
    name = root if is_remote(root) else root.rpartition("/")[2]
    return {"name": name, "digests": _hashes(digests)}
