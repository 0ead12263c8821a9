"""``vita_ckpt.json``: what surgeries leave to be known about a checkpoint, beside its config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.checkpoint import Checkpoint, files_read
from vita_ckpt.core.plan import PutFile

PROVENANCE: Final = "vita_ckpt.json"
_FORMAT: Final = "vita-ckpt-provenance"
_VERSION: Final = 1


def needs_alignment(checkpoint: Checkpoint) -> bool:
    """Whether the projector was drawn at random and no trained one has been merged since."""
    known = checkpoint.provenance or {}
    if PROVENANCE in checkpoint.texts:
        known = json.loads(checkpoint.texts[PROVENANCE])
    return known.get("needs_alignment") is True


def record(
    base: Checkpoint,
    operation: str,
    inputs: Mapping[str, Checkpoint],
    *,
    needs_alignment: bool,
    **arguments: Any,
) -> tuple[PutFile, ...]:
    """The edit that notes an operation; nothing where there is nothing to be known.

    A checkpoint has the file from the first time on that its projector is drawn at random. Inputs
    are named by their last path component and the digests of their headers and configs: where they
    lay on somebody's disk is nobody else's business.
    """
    if not needs_alignment and base.provenance is None:
        return ()
    before = (base.provenance or {}).get("operations")
    entry = {
        "operation": operation,
        "inputs": {role: _described(checkpoint) for role, checkpoint in inputs.items()},
        **arguments,
    }
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "needs_alignment": needs_alignment,
        "operations": [*(before if isinstance(before, list) else []), entry],
    }
    reason = "the projector is not trained yet" if needs_alignment else "what was done"
    return (PutFile(PROVENANCE, json.dumps(content, indent=2) + "\n", reason),)


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    digests = {
        file.path.rpartition("/")[2]: f"sha256:{file.digest}" for file in files_read(checkpoint)
    }
    return {"name": checkpoint.root.rpartition("/")[2], "digests": dict(sorted(digests.items()))}
