"""Say what is asked for, as upstream's ``model_args`` does, and of which family it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.kinds import refuse_relative
from vita_ckpt.core.remedies import merge_projector
from vita_ckpt.core.requirements import family_of_model, plain_language_model
from vita_ckpt.errors import InputError


@dataclass(frozen=True, slots=True)
class VisionModelArgs:
    """Upstream's ``model_args``, with the checkpoints that they name already opened.

    ``vision_tower`` is the tower's checkpoint in any of its forms, ``tower_config`` its config
    (None if there is none) and ``processor`` its ``preprocessor_config.json``. ``mm_vision_tower``
    is the string for the config, by which upstream will choose the class. ``mm_projector_type`` is
    the base's if None. The projector is taken from ``pretrain_mm_mlp_adapter``; without it,
    ``projector`` decides whether it is kept or drawn at random with ``seed``. ``projector`` None
    keeps it where it still fits and is an error where it does not. ``use_s2`` None leaves S2
    unchanged where the new tower supports it. ``run_config`` is the config of a run whose other
    vision keys are copied to the result. ``path_exists`` is whether ``mm_vision_tower`` is a path
    that exists here, None if that is not known: some loaders choose the class by that. ``extras``
    names other tensors of the adapter to include, by a component of their name.
    """

    vision_tower: Checkpoint
    mm_vision_tower: str
    tower_config: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] | None = None
    mm_projector_type: str | None = None
    pretrain_mm_mlp_adapter: Checkpoint | None = None
    projector: Literal["keep", "reinit"] | None = None
    seed: int = 0
    use_s2: bool | None = None
    s2_scales: str | None = None
    model_type: str | None = None
    run_config: Mapping[str, Any] = field(default_factory=dict)
    path_exists: bool | None = None
    extras: tuple[str, ...] = ()


def asked(args: VisionModelArgs) -> dict[str, Any]:
    """Return the given arguments, for the lineage, with only the last component of a path."""
    asked = {
        "mm_vision_tower": args.mm_vision_tower.rpartition("/")[2],
        "mm_projector_type": args.mm_projector_type,
        "projector": args.projector,
        "use_s2": args.use_s2,
        "s2_scales": args.s2_scales,
    }
    return {key: value for key, value in asked.items() if value is not None}


def family_for(base: Checkpoint, args: VisionModelArgs) -> ModelFamily:
    """Return the family of the result: of a plain language model the run's, by default VITA."""
    run = args.pretrain_mm_mlp_adapter
    if plain_language_model(base) is None:
        return family_of_model(base)
    if run is not None and run.layout in ("run", "lora"):
        refuse_relative(run, "a run")
        family = family_of(run.config) or VITA
        if family is not VITA and not args.run_config:
            raise InputError(
                "other-family",
                run.root,
                expected="a run of VITA, for a checkpoint of VITA",
                got=f"one of {family.label}, whose config and trained tower a swap leaves out",
                hint=merge_projector(base.root, run.root),
            )
    return family_of(args.run_config) or VITA
