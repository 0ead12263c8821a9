"""Plan surgeries: compute what each would make of checkpoints, from their headers."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Final

from vita_ckpt.api.inspect import as_checkpoint
from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.inspect import inspect_checkpoint
from vita_ckpt.core.address import is_remote, parse_address
from vita_ckpt.core.anatomy.audio.directory import WEIGHTS
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.parts import TOWER_PREFIX, VISION_TOWER, part_of
from vita_ckpt.core.anatomy.towers import tower_of_config, tower_of_shapes
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import SPELLINGS
from vita_ckpt.core.plan import Plan, SavedPlan, not_a_plan
from vita_ckpt.core.requirements import plain_backbone
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.audio import (
    find_audio_encoder,
    open_audio_directory,
    read_settings_texts,
)
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    find_tower,
    read_given_config,
    read_processor,
    read_tower_config,
)
from vita_ckpt.surgery import audio as audio_surgery
from vita_ckpt.surgery import config, vision_modules
from vita_ckpt.surgery import projector as projector_surgery
from vita_ckpt.surgery.audio import AudioModelArgs
from vita_ckpt.surgery.vision_modules import VisionModelArgs


def plan_extract_projector(
    checkpoint: Checkpoint | StrPath, *, bare: bool = False, stores: Stores | None = None
) -> Plan:
    """Plan a file that holds the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. Raises InputError if it cannot be read and AdapterError if it has no projector.
    """
    opened = as_checkpoint(checkpoint, stores)
    plan = projector_surgery.plan_extract_projector(opened, bare=bare)
    return replace(plan, request={"bare": bare})


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
        return _plan_assemble(base, adapter, tower, None, stores)
    code = _dtype(dtype)
    names = (extras,) if isinstance(extras, str) else extras
    plan = projector_surgery.plan_merge_projector(base, adapter, dtype=code, extras=names)
    return replace(plan, request={"dtype": code, "extras": sorted(names)})


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
    path = tower_path if tower_path is not None else _path_for_config(tower, donor)
    given = None if tower_config is None else _whole(tower_config, stores)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=path,
        tower_config=_config_of(donor, given, stores),
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
    return replace(plan, request=request)


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
    given = None if tower_config is None else _whole(tower_config, stores)
    plan = vision_modules.plan_extract_tower(
        opened, _config_of(opened, given, stores), read_processor(opened, stores)
    )
    return replace(plan, request={"tower_config": given})


def plan_extract_audio_adapter(
    checkpoint: Checkpoint | StrPath, *, stores: Stores | None = None
) -> Plan:
    """Plan a file that holds the audio adapter of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one. Unlike the trainer's file it has the running
    statistics of batch norms, so upstream loads it. Raises InputError if it cannot be read and
    AdapterError if it has no audio adapter.
    """
    plan = audio_surgery.plan_extract_audio_adapter(as_checkpoint(checkpoint, stores))
    return replace(plan, request={})


def plan_merge_audio_adapter(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    stores: Stores | None = None,
) -> Plan:
    """Plan to put the audio adapter of ``adapter`` into ``base``, and leave all else as it is.

    ``adapter`` is the trainer's ``audio_adpter.bin``, its run, or another checkpoint. Running
    statistics of batch norms that it lacks are kept from the base. Raises InputError or
    AdapterError where the two do not go together.
    """
    stores = Stores() if stores is None else stores
    base, adapter = as_checkpoint(base, stores), as_checkpoint(adapter, stores)
    directory = find_audio_encoder(base, stores)
    settings = directory.settings if directory is not None else None
    plan = audio_surgery.plan_merge_audio_adapter(base, adapter, settings)
    return replace(plan, request={})


def plan_swap_audio_encoder(
    base: Checkpoint | StrPath,
    audio_encoder: Checkpoint | StrPath,
    *,
    audio_path: str | None = None,
    adapter: Checkpoint | StrPath | None = None,
    seed: int = 0,
    stores: Stores | None = None,
) -> Plan:
    """Plan to give ``base`` another audio encoder, or one if it has none.

    ``audio_encoder`` is a directory with ``train.yaml``, ``global_cmvn`` and ``final.pt``, or the
    opened ``final.pt`` of one. ``audio_path`` is the string for the config, by default the path as
    it was given. ``adapter`` is ``"keep"``, ``"reinit"`` or an adapter; None keeps what still fits,
    and takes the adapter of ``final.pt`` where it does not. What is drawn anew follows from
    ``seed``.

    Raises InputError, AdapterError or CastError where these do not go together, UsageError where a
    choice is needed.
    """
    stores = Stores() if stores is None else stores
    donor = _final_pt(audio_encoder, stores)
    place = os.path.dirname(donor.root)
    directory = open_audio_directory(place, stores)
    if directory.settings is None:
        raise TypeError("an opened directory has settings")
    choice = adapter if adapter in ("keep", "reinit") else None
    path = audio_path if audio_path is not None else _audio_path(audio_encoder, place)
    args = AudioModelArgs(
        audio_encoder=donor,
        settings=directory.settings,
        mm_audio_encoder=path,
        pretrain_audio_mlp_adapter=None
        if adapter is None or choice is not None
        else as_checkpoint(adapter, stores),
        adapter=choice,  # type: ignore[arg-type]
        seed=seed,
    )
    plan = audio_surgery.initialize_audio_modules(as_checkpoint(base, stores), args)
    return replace(plan, request={"audio_path": path, "adapter": choice, "seed": seed})


def plan_extract_audio_encoder(
    checkpoint: Checkpoint | StrPath,
    *,
    audio_encoder: StrPath | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a directory that holds the audio encoder of ``checkpoint`` alone, as upstream loads it.

    ``audio_encoder`` is the directory that it was made with, for ``train.yaml`` and
    ``global_cmvn``, by default what the checkpoint's config leads to. Raises InputError if there is
    no encoder, or not the one that the directory describes.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    given = None if audio_encoder is None else _whole(audio_encoder, stores)
    found = None if given is not None else find_audio_encoder(opened, stores)
    place = given or (found.path if found is not None else None)
    if place is None:
        raise InputError(
            "audio-encoder-unknown",
            opened.root,
            expected="the directory of its audio encoder, with train.yaml and global_cmvn",
            got=f"mm_audio_encoder {(opened.config or {}).get('mm_audio_encoder')!r}",
            hint="name it with --audio-encoder",
        )
    directory = open_audio_directory(place, stores)
    if directory.settings is None:
        raise TypeError("an opened directory has settings")
    plan = audio_surgery.plan_extract_audio_encoder(
        opened, directory.settings, read_settings_texts(place, stores)
    )
    return replace(plan, request={"audio_encoder": given})


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
        inspect_checkpoint(
            side, find_tower(side, stores), find_audio_encoder(side, stores)
        ).disagreements
        for side in (plan.base, plan.target())
    )
    notes = tuple(s for s in after if s not in before)
    return replace(plan, notes=notes, request={"values": dict(values)})


_OPTIONAL_TEXT: Final = (str, NoneType)
# What each operation can be asked for, with the types of the values.
_REQUESTS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "extract-projector": {"bare": (bool,)},
    "merge-projector": {"dtype": _OPTIONAL_TEXT, "extras": (list,)},
    "merge-projector with a tower": {"tower_path": (str,)},
    "swap-tower": {
        "tower_path": (str,),
        "tower_config": _OPTIONAL_TEXT,
        "projector": _OPTIONAL_TEXT,
        "projector_type": _OPTIONAL_TEXT,
        "seed": (int,),
        "use_s2": (bool, NoneType),
        "s2_scales": _OPTIONAL_TEXT,
    },
    "extract-tower": {"tower_config": _OPTIONAL_TEXT},
    "extract-audio-adapter": {},
    "merge-audio-adapter": {},
    "swap-audio-encoder": {"audio_path": (str,), "adapter": _OPTIONAL_TEXT, "seed": (int,)},
    "extract-audio-encoder": {"audio_encoder": _OPTIONAL_TEXT},
    "set": {"values": (dict,)},
}
_NUMBERS_OF_INPUTS: Final = {
    "extract-projector": (2,),
    "merge-projector": (2, 3),
    "swap-tower": (2, 3),
    "extract-tower": (2,),
    "extract-audio-adapter": (2,),
    "merge-audio-adapter": (2,),
    "swap-audio-encoder": (2, 3),
    "extract-audio-encoder": (2,),
    "set": (1,),
}


def plan_again(saved: SavedPlan, inputs: Sequence[Checkpoint], stores: Stores) -> Plan:
    """Compute a saved plan again from its operation, its request and its opened ``inputs``.

    Raises InputError for a request that the operation does not take.
    """
    if len(inputs) not in _NUMBERS_OF_INPUTS.get(saved.operation, ()):
        raise not_a_plan(f"a {saved.operation} of {len(inputs)} inputs")
    assembles = saved.operation == "merge-projector" and len(inputs) > 2
    types = _REQUESTS["merge-projector with a tower" if assembles else saved.operation]
    if saved.request.keys() != types.keys():
        raise not_a_plan(f"a request for {', '.join(map(repr, saved.request)) or 'nothing'}")
    for key, value in saved.request.items():
        if type(value) not in types[key]:
            raise not_a_plan(f"{key} that is a {type(value).__name__}")
    try:
        return _dispatch(saved.operation, saved.request, inputs, stores)
    except UsageError as error:  # nobody has used an option
        raise not_a_plan(str(error)) from error


def _dispatch(
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    base, *donors = inputs
    if operation == "extract-projector":
        return plan_extract_projector(donors[0], **request, stores=stores)
    if operation == "extract-tower":
        return plan_extract_tower(donors[0], **request, stores=stores)
    if "audio" in operation:
        return _dispatch_audio(operation, request, inputs, stores)
    if operation == "set":
        return plan_set(base, request["values"], stores=stores)
    return _dispatch_vision(operation, request, inputs, stores)


def _dispatch_vision(
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    base, *donors = inputs
    tower, adapter = donors[0], donors[-1]
    if operation == "merge-projector":
        if len(donors) > 1:
            return _plan_assemble(base, adapter, tower, request["tower_path"], stores)
        if not all(isinstance(name, str) for name in request["extras"]):
            raise not_a_plan("extras that are no texts")
        return plan_merge_projector(base, adapter, **request, stores=stores)
    asked = {**request, "projector": _choice(request["projector"], donors)}
    return plan_swap_tower(base, tower, **asked, stores=stores)


def _dispatch_audio(
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    base, *donors = inputs
    if operation == "extract-audio-adapter":
        return plan_extract_audio_adapter(donors[0], stores=stores)
    if operation == "extract-audio-encoder":
        return plan_extract_audio_encoder(donors[0], **request, stores=stores)
    if operation == "merge-audio-adapter":
        return plan_merge_audio_adapter(base, donors[0], stores=stores)
    asked = {**request, "adapter": _choice(request["adapter"], donors)}
    return plan_swap_audio_encoder(base, donors[0], **asked, stores=stores)


def _choice(asked: str | None, donors: Sequence[Checkpoint]) -> Checkpoint | str | None:
    """Return the adapter among the donors of a swap, or what was asked for without one."""
    if asked not in (("keep", "reinit", None) if len(donors) == 1 else (None,)):
        raise not_a_plan(f"a choice {asked!r} of {len(donors)} donors")
    return donors[1] if len(donors) > 1 else asked


def parse_value(key: str, text: str) -> Any:
    """Return the value that ``text`` means for a config key, as :func:`plan_set` takes it.

    Raises UsageError for a key that no surgery sets, or a text of another type.
    """
    return config.parse_value(key, text)


def _is_plain(base: Checkpoint) -> bool:
    return base.layout in ("safetensors", "torch") and plain_backbone(base) is not None


def _plan_assemble(
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
        tower_path = named if isinstance(named, str) and named else _path_for_config(tower, donor)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=tower_path,
        tower_config=_config_of(donor, None, stores),
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


def _whole(path: StrPath, stores: Stores) -> str:
    """Return a path that leads to the same place wherever a saved plan is applied."""
    found = locate(path, stores)
    return stores.store_of(found).absolute(found)


def _final_pt(audio_encoder: Checkpoint | StrPath, stores: Stores) -> Checkpoint:
    """Return the opened ``final.pt`` of an audio encoder's directory."""
    if isinstance(audio_encoder, Checkpoint):
        return audio_encoder
    return as_checkpoint(os.path.join(locate(audio_encoder, stores), WEIGHTS), stores)


def _audio_path(audio_encoder: Checkpoint | StrPath, place: str) -> str:
    """Return the string that upstream will look an audio encoder up by."""
    if is_remote(place):
        address = parse_address(place)
        return "/".join(filter(None, (address.repository, address.below)))
    return place if isinstance(audio_encoder, Checkpoint) else os.fspath(audio_encoder)


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
    donor: Checkpoint, tower_config: str | None, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the config of a tower, standalone or in a VITA checkpoint."""
    if tower_config is not None:
        return read_given_config(tower_config, stores)
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
