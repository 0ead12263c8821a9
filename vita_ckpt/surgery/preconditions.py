"""Check that what a surgery makes binds: nothing missing, no shape that does not fit."""

from __future__ import annotations

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.binding import PartBinding, bind_language_model, bind_tower
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.tensor_match import KeyMismatch


def require_binding(plan: Plan) -> Plan:
    """Return ``plan`` if the loader binds every tensor of the language model and the tower.

    Its target is checked, so a surgery may mend what its base lacks. Unexpected tensors are carried
    on. A target without any tensor of a tower is one whose tower is in its directory (UPSTREAM §1).
    Raises InputError ``weights-do-not-fit`` with the likely cause.
    """
    target = plan.target()
    config = target.config or {}
    shapes = {name: tensor.shape for name, tensor in target.tensors.items()}
    bound = bind_language_model(config, shapes)
    if bound is not None:
        _require(plan.base, bound, f"the language model of {config.get('model_type')}")
    path = config.get("mm_vision_tower")
    family = towers.dispatch(path, False).family if isinstance(path, str) else None
    if family is not None and any(name.startswith(parts.TOWER_MODULE) for name in shapes):
        bound = bind_tower(family, shapes, ())
        if bound.wanted:
            _require(plan.base, bound, "the vision tower")
    return plan


def _require(base: Checkpoint, bound: PartBinding, what: str) -> None:
    mismatch = bound.mismatch
    cause = diagnose(mismatch.missing, mismatch.unexpected)
    KeyMismatch(mismatch.missing, (), mismatch.mismatched).refuse(
        base.root,
        f"every tensor of {what}",
        cause or f"vita-ckpt validate {base.root} lists what does not fit",
    )
