"""Plan surgery on the projector."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.inspect import as_checkpoint, check_key
from vita_ckpt.api.locate import StrPath
from vita_ckpt.api.plans.inputs import (
    noted,
    open_projector,
    path_for_config,
    refuse_swapped,
    tower_config_of,
)
from vita_ckpt.api.plans.values import with_values_checked
from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.parts import VISION_TOWER, part_of
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.core.remedies import merge_projector
from vita_ckpt.core.requirements import plain_backbone
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    find_tower,
    read_processor,
)
from vita_ckpt.surgery import projector as projector_surgery
from vita_ckpt.surgery import vision_modules
from vita_ckpt.surgery.vision_modules import VisionModelArgs


def plan_extract_projector(
    checkpoint: Checkpoint | StrPath,
    *,
    bare: bool = False,
    key: str | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a file that holds the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. ``key`` is the path of the state dict in a file of ``torch.save`` with several. Raises
    InputError if it cannot be read and AdapterError if it has no projector.
    """
    opened = open_projector(checkpoint, Stores() if stores is None else stores, key)
    check_key(key, opened)
    plan = projector_surgery.plan_extract_projector(opened, bare=bare)
    return noted(replace(plan, request={"bare": bare}))


def plan_merge_projector(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
    tower: Checkpoint | StrPath | None = None,
    key: str | None = None,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to put the projector of ``adapter`` into ``base``, and leave all else as it is.

    ``dtype`` (``"bf16"``, ``"float16"``, ``"F32"`` …) is what the projector is written in, by
    default the dtype of the base's. ``extras`` names other tensors of the adapter to take along,
    such as ``embed_tokens``. ``key`` is the path of the state dict in an adapter that is a file of
    ``torch.save`` with several.

    A base without a vision tower, such as a plain language model, becomes a VITA checkpoint, as
    upstream's "base model + projector" load makes of it: ``adapter`` is then a run with its
    ``config.json``, ``tower`` the vision tower, by default what that config names.

    What is taken of the adapter is read: NaN, infinities, matrices of zeros and integers are
    refused unless ``allow_bad_values``. Of an adapter on the hub only headers are read here, and
    its values when the plan is applied.

    Raises InputError, AdapterError or CastError where these do not go together, and UsageError for
    an unknown dtype or an extra that is not there.
    """
    stores = Stores() if stores is None else stores
    base, adapter = as_checkpoint(base, stores), open_projector(adapter, stores, key)
    check_key(key, adapter)
    refuse_swapped(base, adapter, merge_projector)
    if tower is not None or _is_plain(base):
        if dtype is not None or extras:
            raise UsageError(
                "option-without-tower",
                "--dtype" if dtype is not None else "--with",
                expected="a base that has its vision tower already",
                hint="make the checkpoint first, then merge into it",
            )
        plan = plan_assemble(base, adapter, tower, None, stores)
        return with_values_checked(plan, adapter, allow_bad_values)
    code = dtype_code(dtype)
    names = (extras,) if isinstance(extras, str) else extras
    plan = projector_surgery.plan_merge_projector(base, adapter, dtype=code, extras=names)
    plan = noted(replace(plan, request={"dtype": code, "extras": sorted(names)}))
    return with_values_checked(plan, adapter, allow_bad_values)


def _is_plain(base: Checkpoint) -> bool:
    return base.layout in ("safetensors", "torch") and plain_backbone(base) is not None


def plan_assemble(
    base: Checkpoint,
    adapter: Checkpoint,
    tower: Checkpoint | StrPath | None,
    tower_path: str | None,
    stores: Stores,
) -> Plan:
    """Plan a VITA checkpoint from a base without a tower, a run, and the run's tower.

    This is what upstream's "base model + projector" load makes. ``tower_path`` is the string for
    the config, by default what the run's names or the path as it was given.
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
    named = run.get("mm_vision_tower")
    if (
        tower is None
        and (near := find_tower(adapter, stores)) is not None
        and near.tower is not None
    ):
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
    donor = as_checkpoint(tower, stores)
    kind, scales, use_s2 = (run.get(key) for key in ("mm_projector_type", "s2_scales", "use_s2"))
    if tower_path is None:
        tower_path = named if isinstance(named, str) and named else path_for_config(tower, donor)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=tower_path,
        tower_config=tower_config_of(donor, None, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=kind if isinstance(kind, str) else None,
        pretrain_mm_mlp_adapter=adapter,
        use_s2=use_s2 is True,
        s2_scales=scales if isinstance(scales, str) and use_s2 is True else None,
        model_type=_vita_model_type(run),
        run_config=run,
    )
    plan = vision_modules.initialize_vision_modules(base, args, operation="merge-projector")
    return replace(plan, request={"tower_path": tower_path})


def _vita_model_type(run: Mapping[str, Any]) -> str | None:
    model_type = run.get("model_type")
    return model_type if isinstance(model_type, str) and model_type in BACKBONES else None


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
