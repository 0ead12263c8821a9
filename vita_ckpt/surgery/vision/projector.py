"""Choose the projector that goes with a tower: kept, given, or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.anatomy import parts, projectors
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.checkpoint import Checkpoint, RandomInit, Shape
from vita_ckpt.core.plan import AddTensor, DropTensor, Edit, ReplaceTensor, SetConfig
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.requirements import family_of_model
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.surgery.projector import dominant_dtype, language_dtype, merge_edits, tensors_below
from vita_ckpt.surgery.vision.arguments import VisionModelArgs


def projector_edits(
    base: Checkpoint, swapped: Checkpoint, config: Mapping[str, Any], args: VisionModelArgs
) -> tuple[list[Edit], tuple[str, ...], bool]:
    """Return the edits of the projector, notes about them, and whether it is trained."""
    kind, width = str(config["mm_projector_type"]), int(config["mm_hidden_size"])
    family = family_of_model(swapped)
    if not projectors.is_known(kind, family.projector_types):
        raise UsageError(
            "unknown-projector-type",
            kind,
            expected=projectors.listed(family.projector_types),
            hint=projectors.meant(kind, family.projector_types),
        )
    adapter = args.pretrain_mm_mlp_adapter
    if adapter is not None:
        edits, notes = merge_edits(swapped, adapter, extras=args.extras)
        _check_type(args, edits, kind)
        return edits, notes, not needs_alignment(adapter)
    new = Projector(kind, width, _hidden_size(base))
    if projectors.has_no_tensors(kind) and new.in_width != new.out_width:
        raise UsageError(
            "projector-does-not-fit",
            kind,
            expected=f"a tower of {new.out_width} features, the language model's width",
            got=f"{new.in_width}",
            hint="choose another --projector-type",
        )
    shapes = parts.below(parts.PROJECTOR_PREFIX, {n: t.shape for n, t in base.tensors.items()})
    fits = projectors.expected_shapes(new) == shapes
    if args.projector == "reinit":
        note = f"projector: {new}, drawn anew (seed {args.seed}): it needs alignment training"
        return _reinit(base, new, args.seed), (note,), False
    # Types that store the same tensors may compute different functions.
    same_type = kind == family.projector_type(base.config or {})
    if not fits or not (same_type or args.projector == "keep"):
        raise _choice_needed(base, new, shapes, keep=args.projector == "keep")
    note = f"projector: {new}, kept: it was trained with the tower it was with"
    return [], (note,), not needs_alignment(base)


def _check_type(args: VisionModelArgs, edits: list[Edit], kind: str) -> None:
    """Raise UsageError if the adapter's type differs from the one that was asked for."""
    deduced = {e.key: e.value for e in edits if isinstance(e, SetConfig)}
    found = deduced.get("mm_projector_type", kind)
    if args.mm_projector_type is not None and found != args.mm_projector_type:
        raise UsageError(
            "projector-type-mismatch",
            f"mm_projector_type {args.mm_projector_type}",
            expected="the type of the projector that is merged",
            got=str(found),
            hint="the run's config.json is not that of its projector"
            if args.run_config
            else "leave --projector-type out",
        )


def _choice_needed(
    base: Checkpoint, new: Projector, shapes: Mapping[str, Shape], *, keep: bool
) -> UsageError:
    found = projectors.candidates(shapes, projectors.EVERY_TYPE)
    old = " or ".join(map(str, found)) if found else "no projector" if not shapes else "another one"
    return UsageError(
        "projector-does-not-fit" if keep else "projector-choice-needed",
        base.root,
        expected=f"a {new} projector for this tower",
        got=old,
        hint="--projector FILE takes a trained one, --projector reinit draws one anew, which then "
        "needs alignment training",
    )


def _reinit(base: Checkpoint, new: Projector, seed: int) -> list[Edit]:
    old = tensors_below(base, parts.PROJECTOR_PREFIX)
    dtype = dominant_dtype(old.values()) or language_dtype(base)
    shapes = projectors.expected_shapes(new)
    names = {parts.PROJECTOR_PREFIX + name: name for name in shapes}
    edits: list[Edit] = [
        DropTensor(name, f"not a tensor of {new.type}") for name in old if name not in names
    ]
    values = projectors.initial_values(shapes)
    for name, own in names.items():
        drawn = RandomInit(dtype, shapes[own], seed, name, *values[own])
        kind = ReplaceTensor if name in old else AddTensor
        edits.append(kind(name, drawn, "drawn anew"))
    return edits


def _hidden_size(base: Checkpoint) -> int:
    embed = base.tensors.get(parts.EMBED_TOKENS)
    if embed is not None and len(embed.shape) == 2:
        return embed.shape[1]
    hidden = (base.config or {}).get("hidden_size")
    if type(hidden) is int:
        return hidden
    raise InputError(
        "hidden-size-unknown",
        base.root,
        expected=f"{parts.EMBED_TOKENS}, or hidden_size in its config",
        got="neither",
    )
