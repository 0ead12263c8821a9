"""Plan surgery on the projector."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from vita_ckpt.api.locate import StrPath, as_checkpoint, check_key
from vita_ckpt.api.plans.inputs import (
    noted,
    open_projector,
    refuse_swapped,
)
from vita_ckpt.api.plans.values import with_values_checked
from vita_ckpt.api.plans.vision import is_plain, vision_of_run
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.core.remedies import merge_projector
from vita_ckpt.errors import UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.surgery import projector as projector_surgery
from vita_ckpt.surgery.vision import vision_modules


def plan_extract_projector(
    checkpoint: Checkpoint | StrPath,
    *,
    bare: bool = False,
    extras: Collection[str] = (),
    key: str | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a file that holds the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. ``model.image_newline`` is taken along where the model needs one, as are other tensors
    that ``extras`` names by a component of their name. ``key`` is the path of the state dict in a
    file of ``torch.save`` with several. Raises InputError if it cannot be read, AdapterError if it
    has no projector and UsageError for an extra that is not there.
    """
    opened = open_projector(checkpoint, Stores() if stores is None else stores, key)
    check_key(key, opened)
    names = (extras,) if isinstance(extras, str) else extras
    plan = projector_surgery.plan_extract_projector(opened, bare=bare, extras=names)
    return noted(replace(plan, request={"bare": bare, "extras": sorted(names)}))


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

    A base without a vision tower, such as a plain language model, becomes a checkpoint of the run's
    family, as upstream's "base model + projector" load makes of it: ``adapter`` is then a run with
    its ``config.json``, ``tower`` the vision tower, by default what that config names.

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
    names = (extras,) if isinstance(extras, str) else extras
    if tower is not None or is_plain(base):
        if dtype is not None:
            raise UsageError(
                "option-without-tower",
                "--dtype",
                expected="a base that has its vision tower already",
                hint="make the checkpoint first, then merge into it",
            )
        plan = plan_assemble(base, adapter, tower, None, names, stores)
        return with_values_checked(plan, adapter, allow_bad_values)
    code = dtype_code(dtype)
    plan = projector_surgery.plan_merge_projector(base, adapter, dtype=code, extras=names)
    plan = noted(replace(plan, request={"dtype": code, "extras": sorted(names)}))
    return with_values_checked(plan, adapter, allow_bad_values)


def plan_assemble(
    base: Checkpoint,
    adapter: Checkpoint,
    tower: Checkpoint | StrPath | None,
    tower_path: str | None,
    extras: Collection[str],
    stores: Stores,
) -> Plan:
    """Plan a checkpoint from a base without a tower, a run, and the run's tower.

    This is what upstream's "base model + projector" load makes. ``tower_path`` is the string for
    the config, by default what the run's names or the path as it was given.
    """
    args = replace(vision_of_run(base, adapter, tower, tower_path, stores), extras=tuple(extras))
    plan = vision_modules.initialize_vision_modules(base, args, operation="merge-projector")
    return replace(plan, request={"tower_path": args.mm_vision_tower, "extras": sorted(extras)})
