"""Check that what a surgery makes binds: nothing missing, no shape that does not fit."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.result import Binding
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.quantisation import quantisation_of
from vita_ckpt.core.remedies import validate
from vita_ckpt.core.tensor_match import KeyMismatch
from vita_ckpt.errors import InputError

# Codes of bitsandbytes, GPTQ, AWQ and FP8: no numbers without the scales beside them.
_CODES: Final = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "F8_E4M3", "F8_E5M2")
_LABELS: Final = {
    parts.LANGUAGE_MODEL: "the language model",
    parts.VISION_TOWER: "the vision tower",
}


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Return whether tensors of the language model are codes."""
    found = quantisation_of(checkpoint)
    return found is not None and any(
        (name in found.codes or tensor.dtype in _CODES)
        and parts.part_of(name) == parts.LANGUAGE_MODEL
        for name, tensor in checkpoint.tensors.items()
    )


def refuse_packed_projector(base: Checkpoint) -> None:
    """Raise InputError ``packed-projector`` if the base's projector is stored as codes.

    Their dtype is none that numbers are written in. A packed language model is no obstacle: its
    tensors are carried as they are.
    """
    for name, tensor in base.tensors.items():
        if name.startswith(parts.PROJECTOR_PREFIX) and tensor.dtype in _CODES:
            raise InputError(
                "packed-projector",
                f"{base.root}: {name}",
                expected="a projector of real numbers",
                got=f"{tensor.dtype}, codes without their scales",
                hint="merge into the checkpoint before it was quantised",
            )


def _require_newline(plan: Plan, bound: Binding) -> None:
    """Raise InputError ``newline-absent`` where a surgery would make a model without its newline.

    A base that lacks it already is carried on: nothing is made worse.
    """
    lacks = parts.NEWLINE in bound.part(parts.IMAGE_NEWLINE).mismatch.missing
    is_whole = "mm_vision_tower" in (plan.base.config or {})
    if lacks and not is_whole:
        raise InputError(
            "newline-absent",
            plan.donors[-1].root if plan.donors else plan.base.root,
            expected=f"{parts.NEWLINE}, since mm_patch_merge_type is "
            f"{(plan.target().config or {}).get('mm_patch_merge_type')!r}",
            got="none: projector pretraining leaves it out, and a loader takes what is in memory",
            hint="take a run of the next stage, which trains one",
        )


def require_binding(plan: Plan) -> Plan:
    """Return ``plan`` if the loader binds every tensor of the language model and the tower.

    Its target is checked, so a surgery may mend what its base lacks. Unexpected tensors are carried
    on. A target without any tensor of a tower is one whose tower is in its directory (UPSTREAM §1),
    and packed tensors of a quantised language model bind to other modules. Raises InputError
    ``weights-do-not-fit`` with the likely cause.
    """
    target, root = plan.target(), plan.base.root
    bound = bind(target.config or {}, target.tensors)
    _require_newline(plan, bound)
    for part, label in _LABELS.items():
        if part not in bound.parts:
            continue
        if part == parts.LANGUAGE_MODEL and is_quantised(target):
            continue
        if part == parts.VISION_TOWER and not any(
            name.startswith(parts.TOWER_MODULE) for name in target.tensors
        ):
            continue
        mismatch = bound.parts[part].mismatch
        refused = KeyMismatch(mismatch.missing, (), mismatch.mismatched)
        if refused:
            causes = [c for c in diagnose(bound, root) if not c.twice]
            refused.refuse(
                root,
                f"every tensor of {label}",
                "; ".join(f"{cause.what}: {cause.mend}" for cause in causes)
                or f"{validate(root)} lists what does not fit",
            )
    return plan
