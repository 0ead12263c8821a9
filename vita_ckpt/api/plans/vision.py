"""Find the vision modules that a run brings to a plain language model."""

from __future__ import annotations

import os

from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.api.plans.inputs import path_for_config, tower_config_of
from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.core.anatomy.parts import VISION_TOWER, part_of
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.requirements import plain_language_model
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import find_tower, read_processor
from vita_ckpt.surgery.vision.arguments import VisionModelArgs
from vita_ckpt.surgery.vision.keys import check_rows


def is_plain(base: Checkpoint) -> bool:
    """Return whether a base is a plain language model."""
    return base.layout in ("safetensors", "torch") and plain_language_model(base) is not None


def vision_of_run(
    base: Checkpoint,
    adapter: Checkpoint,
    tower: Checkpoint | StrPath | None,
    tower_path: str | None,
    stores: Stores,
) -> VisionModelArgs:
    """Return the tower and the keys that a run with its config brings to a base without them.

    ``tower`` is by default what lies where the run's config says. ``tower_path`` is the string for
    the config, by default what the run's names or the path as it was given. Raises InputError for
    a run without a config or a tower, or one that was trained on another language model.
    """
    kinds.refuse_relative(base, "a checkpoint, or a plain language model,")
    kinds.refuse_relative(adapter, "a run")
    has_tower = any(part_of(name) == VISION_TOWER for name in base.tensors)
    if has_tower:
        raise UsageError(
            "tower-already-there",
            base.root,
            expected="a base without a vision tower, since one is given",
            hint="swap-tower --tower … --projector … puts another tower and projector in",
        )
    run = adapter.config or {}
    family = family_of(run) or VITA
    named = run.get("mm_vision_tower")
    near = find_tower(adapter, stores)
    if tower is None and near is not None and near.tower is not None:
        tower = near.path
    missing = [] if adapter.config is not None else ["config.json in the adapter's run"]
    if tower is None:
        where = f" ({named} is not reachable from here)" if isinstance(named, str) else ""
        missing.append(f"the vision tower: --tower DIR{where}")
    if missing or tower is None:
        raise InputError(
            "not-enough-information",
            base.root,
            expected="a run with its config.json, and its vision tower",
            got=f"a base without vision modules; missing: {'; '.join(missing)}",
            hint="give the run's directory as --adapter",
        )
    _check_sizes(base, adapter)
    check_rows(base, adapter, family)
    donor = as_checkpoint(tower, stores)
    kind, scales, use_s2 = (
        run.get(key) for key in ("mm_projector_type", "s2_scales", family.s2_key)
    )
    if tower_path is None:
        tower_path = named if isinstance(named, str) and named else path_for_config(tower, donor)
    is_near = tower_path == named and near is not None and near.path is not None
    model_type = run.get("model_type")
    return VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=tower_path,
        tower_config=tower_config_of(donor, None, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=kind if isinstance(kind, str) else None,
        pretrain_mm_mlp_adapter=adapter,
        use_s2=use_s2 is True,
        s2_scales=scales if isinstance(scales, str) and use_s2 is True else None,
        model_type=model_type if model_type in family.by_type else None,
        run_config=run,
        path_exists=is_near or os.path.exists(tower_path),
    )


def _check_sizes(base: Checkpoint, adapter: Checkpoint) -> None:
    """Raise InputError if the run was trained on another language model, by its config."""
    run, own = adapter.config or {}, base.config or {}
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if key in run and key in own and run[key] != own[key]:
            raise InputError(
                "base-does-not-fit-run",
                base.root,
                expected=f"{key} {run[key]!r}, as the run's config says",
                got=f"{own[key]!r}",
                hint="the run was trained on another base",
            )
