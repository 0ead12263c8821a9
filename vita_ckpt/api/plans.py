"""Plan surgeries: compute what each would make of checkpoints, from their headers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.inspect import as_checkpoint
from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.inspect import inspect_checkpoint
from vita_ckpt.core.address import is_remote, parse_address
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.parts import TOWER_PREFIX, VISION_TOWER, part_of
from vita_ckpt.core.anatomy.towers import tower_of_config, tower_of_shapes
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import SPELLINGS
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.requirements import plain_backbone
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    find_tower,
    read_given_config,
    read_processor,
    read_tower_config,
)
from vita_ckpt.surgery import config, vision_modules
from vita_ckpt.surgery import projector as projector_surgery
from vita_ckpt.surgery.vision_modules import VisionModelArgs


def plan_extract_projector(
    checkpoint: Checkpoint | StrPath, *, bare: bool = False, stores: Stores | None = None
) -> Plan:
    """Plan a file that holds the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. Raises InputError if it cannot be read and AdapterError if it has no projector.
    """
    return projector_surgery.plan_extract_projector(as_checkpoint(checkpoint, stores), bare=bare)


def plan_merge_projector(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
    tower: Checkpoint | StrPath | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan to put the projector of ``adapter`` into ``base``, and leave all else as it is.

    ``dtype`` (``"bf16"``, ``"float16"``, ``"F32"`` …) is what the projector is written in, by
    default the dtype of the base's. ``extras`` names other tensors of the adapter to take along,
    such as ``embed_tokens``.

    A base without a vision tower, such as a plain language model, becomes a VITA checkpoint, as
    upstream's "base model + projector" load makes of it: ``adapter`` is then a run with its
    ``config.json``, ``tower`` the vision tower, by default what that config names.

    Raises InputError, AdapterError or CastError where these do not go together, and UsageError for
    an unknown dtype or an extra that is not there.
    """
    stores = Stores() if stores is None else stores
    base, adapter = as_checkpoint(base, stores), as_checkpoint(adapter, stores)
    if tower is not None or _is_plain(base):
        if dtype is not None or extras:
            raise UsageError(
                "option-without-tower",
                "--dtype" if dtype is not None else "--with",
                expected="a base that has its vision tower already",
                hint="make the checkpoint first, then merge into it",
            )
        return _plan_assemble(base, adapter, tower, stores)
    return projector_surgery.plan_merge_projector(
        base,
        adapter,
        dtype=_dtype(dtype),
        extras=(extras,) if isinstance(extras, str) else extras,
    )


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
    stores: Stores | None = None,
) -> Plan:
    """Plan to give ``base``, a VITA checkpoint or a plain language model, another tower.

    ``tower`` is a tower directory or file, a full CLIP, SigLIP or InternVL checkpoint, or another
    VITA checkpoint. ``tower_path`` is the string for the config, by default the path as it was
    given (of a VITA checkpoint, what its config names); upstream chooses the class by it.
    ``tower_config`` is the tower's config where it does not lie beside its weights.
    ``projector`` is ``"keep"``, ``"reinit"`` or an adapter; None keeps what still fits. What is
    drawn anew follows from ``seed``. ``use_s2`` None leaves S2 as it is.

    Raises InputError, AdapterError or CastError where these do not go together, UsageError where
    a choice is needed.
    """
    stores = Stores() if stores is None else stores
    donor = as_checkpoint(tower, stores)
    choice = projector if projector in ("keep", "reinit") else None
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=tower_path if tower_path is not None else _path_for_config(tower, donor),
        tower_config=_config_of(donor, tower_config, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=projector_type,
        pretrain_mm_mlp_adapter=None
        if projector is None or choice is not None
        else as_checkpoint(projector, stores),
        projector=choice,  # type: ignore[arg-type]
        seed=seed,
        use_s2=use_s2,
        s2_scales=s2_scales,
    )
    return vision_modules.initialize_vision_modules(as_checkpoint(base, stores), args)


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
    return vision_modules.plan_extract_tower(
        opened, _config_of(opened, tower_config, stores), read_processor(opened, stores)
    )


def plan_set(
    checkpoint: Checkpoint | StrPath, values: Mapping[str, Any], *, stores: Stores | None = None
) -> Plan:
    """Plan to set keys of a checkpoint's vision config, and touch no weight.

    Raises UsageError for a key or a value that is none. What then disagrees with the weights and
    did not before is said in the plan's notes.
    """
    stores = Stores() if stores is None else stores
    plan = config.plan_set(as_checkpoint(checkpoint, stores), values)
    before, after = (
        inspect_checkpoint(side, find_tower(side, stores)).disagreements
        for side in (plan.base, plan.target())
    )
    return replace(plan, notes=tuple(s for s in after if s not in before))


def parse_value(key: str, text: str) -> Any:
    """Return the value that ``text`` means for a config key, as :func:`plan_set` takes it.

    Raises UsageError for a key that no surgery sets, or a text of another type.
    """
    return config.parse_value(key, text)


def _is_plain(base: Checkpoint) -> bool:
    return base.layout in ("safetensors", "torch") and plain_backbone(base) is not None


def _plan_assemble(
    base: Checkpoint, adapter: Checkpoint, tower: Checkpoint | StrPath | None, stores: Stores
) -> Plan:
    """Plan a VITA checkpoint from a base without a tower, a run, and the run's tower.

    This is what upstream's "base model + projector" load makes.
    """
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
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=named
        if isinstance(named, str) and named
        else _path_for_config(tower, donor),
        tower_config=_config_of(donor, None, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=kind if isinstance(kind, str) else None,
        pretrain_mm_mlp_adapter=adapter,
        use_s2=use_s2 is True,
        s2_scales=scales if isinstance(scales, str) and use_s2 is True else None,
        model_type=_vita_model_type(run),
        run_config=run,
    )
    return vision_modules.initialize_vision_modules(base, args, operation="merge-projector")


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


def _path_for_config(tower: Checkpoint | StrPath, donor: Checkpoint) -> str:
    """Return the string that upstream will look a tower up by: the path as it was given."""
    named = (donor.config or {}).get("mm_vision_tower")
    if isinstance(named, str) and named:  # another VITA checkpoint
        return named
    path = donor.root if isinstance(tower, Checkpoint) else os.fspath(tower)
    if is_remote(donor.root):  # what transformers and upstream's loaders take
        address = parse_address(donor.root)
        path = "/".join(filter(None, (address.repository, address.below)))
    shapes = {name: tensor.shape for name, tensor in donor.tensors.items()}
    found = tower_of_shapes(shapes)
    if found is not None and found.traits.lone_file and donor.shards[0].name:
        return os.path.join(path, donor.shards[0].name)  # upstream opens the file itself
    return path


def _config_of(
    donor: Checkpoint, tower_config: StrPath | None, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the config of a tower, standalone or in a VITA checkpoint."""
    if tower_config is not None:
        return read_given_config(locate(tower_config, stores), stores)
    if any(name.startswith(TOWER_PREFIX) for name in donor.tensors):
        return read_tower_config(donor, stores)
    own = donor.config
    return own if own is not None and tower_of_config(own) is not None else None


def _dtype(name: str | None) -> str | None:
    if name is None or name in SPELLINGS.values():
        return name
    if name.lower() not in SPELLINGS:
        raise UsageError(
            "unknown-dtype", name, expected=", ".join(sorted(SPELLINGS)), hint="name one of these"
        )
    return SPELLINGS[name.lower()]
