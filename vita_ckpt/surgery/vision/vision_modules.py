"""Plan vision modules: a tower, a projector and their config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import language_tensors, parts, towers
from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes
from vita_ckpt.core.binding.modules import builds_audio, features_of, is_audio
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, Stored
from vita_ckpt.core.filenames import CARRIED_CONFIG, CONFIG, PROCESSOR
from vita_ckpt.core.kinds import refuse_unmerged
from vita_ckpt.core.plan import (
    AddTensor,
    DropFile,
    DropTensor,
    Edit,
    Plan,
    PutFile,
    Record,
    SetConfig,
)
from vita_ckpt.core.requirements import plain_language_model
from vita_ckpt.surgery.preconditions import require_binding
from vita_ckpt.surgery.projector import language_dtype, put_tensor, tensors_below
from vita_ckpt.surgery.vision.arguments import VisionModelArgs, asked, family_for
from vita_ckpt.surgery.vision.donor import DonorTower, check_path, check_serving
from vita_ckpt.surgery.vision.keys import backbone_keys, run_keys, s2_keys
from vita_ckpt.surgery.vision.projector import projector_edits


def initialize_vision_modules(
    base: Checkpoint, args: VisionModelArgs, *, operation: str = "swap-tower"
) -> Plan:
    """Return a :class:`Plan` that gives ``base`` the tower of ``args``, as upstream should.

    The old tower is removed, and so is a projector that no longer fits. The new tower is added
    under upstream's names in the base's dtype. ``mm_vision_tower``, ``mm_hidden_size`` (the width
    of the tower's output), ``mm_projector_type``, ``use_mm_proj``, ``use_s2`` and ``s2_scales`` are
    set. A base that is a plain language model becomes a checkpoint of the family of the run, by
    default of VITA.

    Raises InputError for an invalid base or tower, a tower whose tensors are not those that its
    config describes, one that upstream would take for another family by its path, or an odd grid of
    patches for InternViT; AdapterError for an adapter that does not fit; UsageError where a choice
    is needed or impossible.
    """
    edits, config, notes = vision_edits(base, args)
    # The projector's edits depend on the tower, so they are planned on the result so far.
    swapped = Plan(operation, base, tuple(edits), (args.vision_tower,)).target()
    of_projector, projector_notes, aligned = projector_edits(base, swapped, config, args)
    edits += [e for e in of_projector if not isinstance(e, SetConfig)]
    changed = {e.key: e for e in of_projector if isinstance(e, SetConfig)}
    edits = [e for e in edits if not (isinstance(e, SetConfig) and e.key in changed)]
    edits += changed.values()
    donors = {"tower": args.vision_tower}
    if args.pretrain_mm_mlp_adapter is not None:
        donors["adapter"] = args.pretrain_mm_mlp_adapter
    plan = Plan(
        operation=operation,
        base=base,
        edits=tuple(edits),
        donors=tuple(donors.values()),
        notes=(*notes, *projector_notes, *_audio_notes(base, args)),
        record=Record(
            roles=tuple(donors),
            arguments=asked(args),
            seed=args.seed if args.projector == "reinit" else None,
            needs_alignment=not aligned,
        ),
    )
    return require_binding(plan)


def vision_edits(
    base: Checkpoint, args: VisionModelArgs
) -> tuple[list[Edit], dict[str, Any], list[str]]:
    """Return the edits of tower, config and files, the config of the result, and notes.

    What a projector needs is left to the caller. Raises what :func:`initialize_vision_modules`
    raises of the base and the tower.
    """
    family = family_for(base, args)
    refuse_unmerged(base)
    tower = DonorTower.of(args)
    check_serving(base, tower.described)
    config = {**(base.config or {}), **run_keys(base, args, family)}
    config |= backbone_keys(base, args, family)
    config |= s2_keys(config, args, tower.described, family) | {
        "mm_vision_tower": args.mm_vision_tower
    }
    check_path(args, tower.described, config, family)
    features = features_of(config, tower.described, family)
    layers = 1 if features is None else len(features.layers)
    width = tower.described.output_width(family.number_of_scales(config)) * layers
    config |= {
        "mm_hidden_size": width,
        "mm_projector_type": args.mm_projector_type or family.projector_type(config),
        "use_mm_proj": True,
    }
    edits = [
        *_plain_edits(base, config, family),
        *_tower_edits(base, tower, family, _trained_tower(args)),
        *_config_edits(base, config),
        *_files(base, tower, args.processor),
    ]
    notes = tower.notes(config)
    if args.processor is None and family.reads_processor(tower.described.family):
        notes.append(f"no {PROCESSOR} is with the tower: loaders stop where its path has none")
    return edits, config, notes


def _plain_edits(base: Checkpoint, config: Mapping[str, Any], family: ModelFamily) -> list[Edit]:
    """Drop what a plain language model has and its class in the family has not."""
    plain = plain_language_model(base)
    if plain is None or family is VITA:
        return []
    own = language_tensors.expected_shapes(plain.name, base.config or {})
    built = language_tensors.expected_shapes(plain.name, config)
    return [
        DropTensor(name, f"{family.label}'s {plain.name} has no such tensor")
        for name in own
        if name not in built and name in base.tensors
    ]


def _trained_tower(args: VisionModelArgs) -> dict[str, Stored]:
    """Return the tower's tensors that the run of ``args`` trained, by their names in a model."""
    run = args.pretrain_mm_mlp_adapter
    if run is None or not args.run_config:
        return {}
    bare = {name.removeprefix(parts.PEFT_PREFIX): ref for name, ref in run.stored.items()}
    return {name: ref for name, ref in bare.items() if name.startswith(parts.TOWER_MODULE)}


def plan_extract_tower(
    checkpoint: Checkpoint,
    tower_config: Mapping[str, Any] | None,
    processor: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a plan for a directory that holds only the tower of ``checkpoint``.

    Names are those that transformers 4.41 and upstream load. ``tower_config`` becomes its
    ``config.json`` (of a parent config, its ``vision_config``), unless it is EVA-CLIP, which has no
    config. Raises InputError if there is no tower, or not the one that the config describes.
    """
    tower = DonorTower.of(VisionModelArgs(checkpoint, "", tower_config, processor))
    names = towers.standalone_names(tower.shapes)
    refs = tower.checkpoint.stored
    edits: list[Edit] = [
        AddTensor(name, refs[origin], "vision tower") for origin, name in names.items()
    ]
    if not tower.described.traits.lone_file:
        own = dict(towers.inner_config(tower.config))
        own.setdefault("model_type", tower.described.traits.model_type)
        edits.append(PutFile(CONFIG, _json(own), "the tower's config"))
    if processor is not None:
        edits.append(PutFile(PROCESSOR, _json(processor), "the tower's processor"))
    note = f"vision tower: {tower.described}"
    return Plan("extract-tower", EMPTY, tuple(edits), (checkpoint,), (note,))


def _audio_notes(base: Checkpoint, args: VisionModelArgs) -> tuple[str, ...]:
    if not builds_audio(args.run_config) or any(map(is_audio, base.tensors)):
        return ()
    name = args.run_config["mm_audio_encoder"]
    return (
        f"mm_audio_encoder {name!r} of the run is left out: the base has no tensors of an audio "
        "encoder, and the loader would leave it in uninitialised memory",
    )


def _tower_edits(
    base: Checkpoint, tower: DonorTower, family: ModelFamily, trained: Mapping[str, Stored]
) -> list[Edit]:
    dtype = language_dtype(base)
    refs = tower.checkpoint.stored
    prefix = parts.TOWER_MODULE + tower.described.traits.stored_prefix
    kept = expected_shapes(family.stored_tower(tower.described.family, tower.config))
    names = {
        f"{parts.TOWER_MODULE}{stored}": refs[origin]
        for origin, stored in towers.stored_names(tower.shapes).items()
        if f"{parts.TOWER_MODULE}{stored}".removeprefix(prefix) in kept
    }
    edits: list[Edit] = [
        DropTensor(name, "a tensor of the old tower")
        for name in tensors_below(base, parts.TOWER_MODULE)
        if name not in names
    ]
    label = tower.described.traits.label
    for name, ref in names.items():
        reason = "as the run trained it" if name in trained else f"{label} tower"
        edits.append(put_tensor(base, name, trained.get(name, ref), dtype, reason))
    return edits


_REASONS: Final = {
    "mm_vision_tower": "the new tower",
    "mm_hidden_size": "the width of the tower's output",
    "mm_projector_type": "the projector's type",
    "use_mm_proj": "the checkpoint has a projector",
    "use_s2": "whether the tower runs at several scales",
    "s2": "whether the tower runs at several scales",
    "s2_scales": "the scales of S2",
    "model_type": "the language model becomes a multimodal model",
    "architectures": "the language model becomes a multimodal model",
}


def _config_edits(base: Checkpoint, config: Mapping[str, Any]) -> list[Edit]:
    old = base.config or {}
    return [
        SetConfig(key, value, _REASONS.get(key, "from the run's config"))
        for key, value in config.items()
        if key not in old or (old[key] is not value and old[key] != value)
    ]


def _files(base: Checkpoint, tower: DonorTower, processor: Mapping[str, Any] | None) -> list[Edit]:
    """Return the edits of the tower's config and processor, which replace the old tower's."""
    edits: list[Edit] = []
    is_needed = not tower.guessed or base.serving_config is not None
    for name, content, what in (
        (CARRIED_CONFIG, tower.config if is_needed else None, "config"),
        (PROCESSOR, processor, "processor"),
    ):
        if content is not None:
            edits.append(PutFile(name, _json(content), f"the tower's {what}"))
        elif name in base.files:
            edits.append(DropFile(name, f"the old tower's {what}"))
    return edits


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
