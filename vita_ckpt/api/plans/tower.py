"""Plan surgery on the vision tower."""

from __future__ import annotations

import os
from dataclasses import replace

from vita_ckpt.api.locate import StrPath, as_checkpoint, check_key, whole
from vita_ckpt.api.plans.inputs import (
    noted,
    open_projector,
    or_a_choice,
    path_for_config,
    tower_config_of,
)
from vita_ckpt.api.plans.values import with_values_checked
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    read_processor,
)
from vita_ckpt.surgery.vision import vision_modules
from vita_ckpt.surgery.vision.arguments import VisionModelArgs
from vita_ckpt.surgery.vision.donor import refuse_quantised_tower


def plan_swap_tower(
    base: Checkpoint | StrPath,
    tower: Checkpoint | StrPath,
    *,
    tower_path: str | None = None,
    tower_config: StrPath | None = None,
    projector: Checkpoint | StrPath | None = None,
    projector_type: str | None = None,
    seed: int = 0,
    use_s2: bool | None = None,
    s2_scales: str | None = None,
    key: str | None = None,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to give ``base``, a VITA checkpoint or a plain language model, another tower.

    ``tower`` is a tower directory or file, a full CLIP, SigLIP or InternVL checkpoint, or another
    VITA checkpoint. ``tower_path`` is the string for the config, by default the path as it was
    given (of a VITA checkpoint, what its config names); upstream chooses the class by it.
    ``tower_config`` is the tower's config where it does not lie beside its weights.
    ``projector`` is ``"keep"``, ``"reinit"`` or an adapter; None keeps what still fits. What is
    drawn anew follows from ``seed``. ``use_s2`` None leaves S2 as it is. ``key`` is the path of the
    state dict in a tower or an adapter that is a file of ``torch.save`` with several.
    ``allow_bad_values`` is that of :func:`plan_merge_projector`.

    Raises InputError, AdapterError or CastError where these do not go together, UsageError where
    a choice is needed.
    """
    stores = Stores() if stores is None else stores
    donor = as_checkpoint(tower, stores, key)
    choice = projector if projector in ("keep", "reinit") else None
    adapter = None
    if projector is not None and choice is None:
        with or_a_choice(projector):
            adapter = open_projector(projector, stores, key)
    check_key(key, donor, *([adapter] if adapter is not None else []))
    path = tower_path if tower_path is not None else path_for_config(tower, donor)
    given = None if tower_config is None else whole(tower_config, stores)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=path,
        tower_config=tower_config_of(donor, given, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=projector_type,
        pretrain_mm_mlp_adapter=adapter,
        projector=choice,  # type: ignore[arg-type]
        seed=seed,
        use_s2=use_s2,
        s2_scales=s2_scales,
        path_exists=os.path.exists(path),
    )
    plan = vision_modules.initialize_vision_modules(as_checkpoint(base, stores), args)
    request = {
        "tower_path": path,
        "tower_config": given,
        "projector": choice,
        "projector_type": projector_type,
        "seed": seed,
        "use_s2": use_s2,
        "s2_scales": s2_scales,
    }
    plan = noted(replace(plan, request=request))
    return with_values_checked(plan, args.pretrain_mm_mlp_adapter, allow_bad_values)


def plan_extract_tower(
    checkpoint: Checkpoint | StrPath,
    *,
    tower_config: StrPath | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a directory that holds the vision tower of ``checkpoint`` alone.

    It loads with transformers and as upstream's ``mm_vision_tower``. ``tower_config`` is the
    tower's ``config.json`` or its directory, by default what the checkpoint leads to. Raises
    InputError if there is no tower, or no config for it.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    refuse_quantised_tower(opened)
    given = None if tower_config is None else whole(tower_config, stores)
    plan = vision_modules.plan_extract_tower(
        opened, tower_config_of(opened, given, stores), read_processor(opened, stores)
    )
    return noted(replace(plan, request={"tower_config": given}))
