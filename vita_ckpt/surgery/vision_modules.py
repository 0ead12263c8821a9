"""Plan the counterpart of upstream's ``initialize_vision_modules``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from shlex import quote
from typing import Any, Final, Literal

from vita_ckpt.core.anatomy import language_tensors, parts, projectors, towers
from vita_ckpt.core.anatomy.config_keys import LARGEST_NUMBER
from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers import Tower
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes
from vita_ckpt.core.binding.model import (
    Surroundings,
    builds_audio,
    features_of,
    is_audio,
    tower_class,
)
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, RandomInit, Shape, Stored
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.filenames import CARRIED_CONFIG, CONFIG, PROCESSOR
from vita_ckpt.core.kinds import kind_of, refuse_relative, refuse_unmerged
from vita_ckpt.core.plan import (
    AddTensor,
    DropFile,
    DropTensor,
    Edit,
    Plan,
    PutFile,
    Record,
    ReplaceTensor,
    SetConfig,
)
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.quantisation import refuse_codes
from vita_ckpt.core.remedies import merge_projector
from vita_ckpt.core.requirements import family_of_model, plain_language_model
from vita_ckpt.core.serving import builds_tower
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.surgery.donors import without_inner_wrappers
from vita_ckpt.surgery.preconditions import require_binding
from vita_ckpt.surgery.projector import (
    dominant_dtype,
    language_dtype,
    merge_edits,
    put_tensor,
    tensors_below,
)


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
    projector_edits, projector_notes, aligned = _projector(base, swapped, config, args)
    edits += [e for e in projector_edits if not isinstance(e, SetConfig)]
    changed = {e.key: e for e in projector_edits if isinstance(e, SetConfig)}
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
            arguments=_asked(args),
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
    family = _family(base, args)
    refuse_unmerged(base)
    tower = _DonorTower.of(args)
    _check_serving(base, tower.described)
    config = {**(base.config or {}), **_run_keys(base, args, family)}
    config |= _backbone_keys(base, args, family)
    config |= _s2(config, args, tower.described, family) | {"mm_vision_tower": args.mm_vision_tower}
    _check_path(args, tower.described, config, family)
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


def _family(base: Checkpoint, args: VisionModelArgs) -> ModelFamily:
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
    tower = _DonorTower.of(VisionModelArgs(checkpoint, "", tower_config, processor))
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


def _asked(args: VisionModelArgs) -> dict[str, Any]:
    """Return the given arguments, for the lineage, with only the last component of a path."""
    asked = {
        "mm_vision_tower": args.mm_vision_tower.rpartition("/")[2],
        "mm_projector_type": args.mm_projector_type,
        "projector": args.projector,
        "use_s2": args.use_s2,
        "s2_scales": args.s2_scales,
    }
    return {key: value for key, value in asked.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _DonorTower:
    """A tower to put into a checkpoint, with exactly the tensors that its config describes."""

    checkpoint: Checkpoint
    shapes: Mapping[str, Shape]  # of the checkpoint's tensors, including any others
    described: Tower
    config: Mapping[str, Any]
    guessed: bool  # derived from the tensors, as for every lone file

    @classmethod
    def of(cls, args: VisionModelArgs) -> _DonorTower:
        checkpoint = without_inner_wrappers(args.vision_tower)
        refuse_quantised_tower(checkpoint)
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        below = parts.below(parts.TOWER_PREFIX, shapes)
        if below:  # another VITA checkpoint: only its tower counts
            shapes = {parts.TOWER_PREFIX + name: shape for name, shape in below.items()}
        described = towers.tower_of_shapes(shapes)
        if described is None:
            model_type = (checkpoint.config or {}).get("model_type")
            raise InputError(
                "unknown-tower",
                checkpoint.root,
                expected=f"the tensors of a {towers.listed(towers.KNOWN)} tower",
                got=f"none of these, and model_type {model_type!r}"
                if model_type
                else ", ".join(list(shapes)[:4]),
                hint="give the tower's own directory",
            )
        sizes = towers.config_of_shapes(shapes)
        given = None if described.traits.lone_file else args.tower_config
        if given is not None and below:  # as its family stores it, which may cut it
            donor = family_of(checkpoint.config, checkpoint.tensors) or VITA
            given = donor.stored_tower(described.family, given)
        config = given or sizes
        if config is None and described.traits.lone_file:
            raise InputError(
                "weights-do-not-fit",
                checkpoint.root,
                expected=towers.enumerate_words([*described.traits.sizing_tensors], "and")
                + f", by which {described.traits.label}'s sizes are known",
                got=f"{described}, without one of them",
                hint="the tower is incomplete",
            )
        if config is None:
            raise InputError(
                "tower-config-unknown",
                checkpoint.root,
                expected="a config.json beside the tower's weights, which do not determine it",
                got=f"{described}",
                hint="copy the tower's config.json there, or give it with --tower-config",
            )
        tower = cls(checkpoint, shapes, described, config, config is sizes)
        tower._check()
        return tower

    def _check(self) -> None:
        by_config = towers.tower_of_config(self.config)
        if by_config is not None and (by_config.family, by_config.layers) != (
            self.described.family,
            self.described.layers,
        ):
            raise InputError(
                "tower-config-mismatch",
                self.checkpoint.root,
                expected=f"the tensors of {by_config}, as its config says",
                got=f"those of {self.described}",
                hint="the config.json belongs to another tower: --tower-config names the right one",
            )
        found = {own: self.shapes[name] for name, own in towers.own_names(self.shapes).items()}
        compare(expected_shapes(self.config), found).refuse(
            self.checkpoint.root,
            f"exactly the tensors of {by_config or self.described}, as its config says",
            "the tower is incomplete, or the config.json belongs to another one",
        )
        if self.described.has_odd_grid:
            raise InputError(
                "odd-patch-grid",
                self.checkpoint.root,
                expected=f"{self.described.traits.grid_needed}, "
                f"for {self.described.traits.label}'s pixel shuffle",
                got=f"{self.described.grid} ({self.described})",
                hint="no checkpoint with this tower runs upstream",
            )

    def notes(self, config: Mapping[str, Any]) -> list[str]:
        """Return the plan's notes about the tower."""
        tokens = self.described.tokens()
        width = config["mm_hidden_size"]
        notes = [f"vision tower: {self.described}, {tokens} tokens of {width} features per image"]
        if self.guessed and not self.described.traits.lone_file:
            notes.append("the tower has no config.json: taken for the published one of its shapes")
        kind = str(config["mm_projector_type"])
        if tokens is not None and projectors.tokens_out(kind, tokens) is None:
            notes.append(f"a {kind} projector cannot take {tokens} tokens: upstream will raise")
        return notes


def _backbone_keys(base: Checkpoint, args: VisionModelArgs, family: ModelFamily) -> dict[str, Any]:
    """Return the keys that turn a plain language model's config into one of a family.

    The result is empty for a base that is a whole model already.
    """
    plain = plain_language_model(base)
    if plain is None:
        return {}
    backbone = family.backbone_on(plain.model_type)
    if args.model_type is not None:
        asked = family.by_type.get(args.model_type)
        if asked is None or asked.language_model != plain.name:
            raise InputError(
                "model-type-mismatch",
                base.root,
                expected=f"the language model of {args.model_type}",
                got=f"model_type {plain.model_type}",
                hint="the run was trained on another base",
            )
        backbone = asked
    if backbone is None:
        raise InputError(
            "not-a-vita-checkpoint",
            base.root,
            expected=f"a checkpoint, or a language model that {family.label} has",
            got=f"a plain {plain.name}",
            hint="merge-projector makes a checkpoint of it and a run with its config.json",
        )
    return {"model_type": backbone.model_type, "architectures": [backbone.architecture]}


# The keys of a run's config that upstream's "base model + projector" load keeps.
_RUN_KEYS: Final = (
    "unfreeze_vision_tower",
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "mm_projector_lr",
    "image_aspect_ratio",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
)
# Keys of any config that say how and by what it was written.
_INCIDENTAL: Final = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)


def _run_keys(base: Checkpoint, args: VisionModelArgs, family: ModelFamily) -> dict[str, Any]:
    if family is not VITA:
        return family_keys(base, args.run_config, family)
    keys = {key: args.run_config[key] for key in _RUN_KEYS if key in args.run_config}
    if builds_audio(args.run_config) and any(map(is_audio, base.tensors)):
        keys["mm_audio_encoder"] = args.run_config["mm_audio_encoder"]
    for key, value in keys.items():
        check_run_value(key, value)
    if "continuous_training" in args.run_config:
        keys["continuous_training"] = False  # as upstream resets it after loading
    return keys


def family_keys(base: Checkpoint, run: Mapping[str, Any], family: ModelFamily) -> dict[str, Any]:
    """Return the keys of a run's config that the result has: VITA's relatives use it as it is.

    Raises InputError for a value of another type than its key, AdapterError where the config has
    more rows of embeddings than the base.
    """
    keys = {key: value for key, value in run.items() if key not in _INCIDENTAL}
    for key in keys.keys() & family.keys.keys():
        check_run_value(key, keys[key], family)
    if "continuous_training" in run:
        keys["continuous_training"] = False
    return keys


def check_rows(base: Checkpoint, run: Checkpoint, family: ModelFamily) -> None:
    """Raise AdapterError ``run-rows-absent`` for a run whose config counts rows that nobody has.

    VITA's relatives make both tables of uninitialised memory then, or raise.
    """
    table, wanted = base.tensors.get(parts.EMBED_TOKENS), (run.config or {}).get("vocab_size")
    if family is VITA or table is None or type(wanted) is not int or wanted <= table.shape[0]:
        return
    names = {name.removeprefix(parts.PEFT_PREFIX).removeprefix("model.") for name in run.tensors}
    held = [name for name in (parts.EMBED_TOKENS, parts.LM_HEAD) if _inner(name) in names]
    if len(held) > 1:
        return
    got = f"{table.shape[0]} in the base, and {held[0] if held else 'neither table'} in the run"
    raise AdapterError(
        "run-rows-absent",
        run.root,
        expected=f"rows for {wanted} tokens, as the run's config says",
        got=got,
        hint=f"vita-ckpt resize-embeddings {quote(base.root)} --tokens {wanted} --out OUT gives "
        "the base rows for them; what the run learnt of them "
        + ("is taken with --with embed_tokens" if held else "was not saved"),
    )


def _inner(name: str) -> str:
    return name.removeprefix("model.")


def _audio_notes(base: Checkpoint, args: VisionModelArgs) -> tuple[str, ...]:
    if not builds_audio(args.run_config) or any(map(is_audio, base.tensors)):
        return ()
    name = args.run_config["mm_audio_encoder"]
    return (
        f"mm_audio_encoder {name!r} of the run is left out: the base has no tensors of an audio "
        "encoder, and the loader would leave it in uninitialised memory",
    )


def check_run_value(key: str, value: Any, family: ModelFamily = VITA) -> None:
    """Raise InputError for a value of a run's config that is not of the type of its key."""
    if value is None:
        return
    types = family.keys[key].types
    fits = type(value) in types and (
        value.isprintable()
        if isinstance(value, str)
        else isinstance(value, list) or abs(value) < LARGEST_NUMBER
    )
    if not fits:
        names = " or ".join(kind.__name__ for kind in types)
        raise InputError(
            "invalid-run-config",
            key,
            expected=f"a value that the key can have: {names}",
            got=repr(value),
            hint="correct the config.json of the run",
        )


def _s2(
    config: Mapping[str, Any], args: VisionModelArgs, tower: Tower, family: ModelFamily
) -> dict[str, Any]:
    """Return the key of S2 and, where they are known, ``s2_scales`` of the result."""
    key = family.s2_key
    if args.use_s2 is False and args.s2_scales is not None:
        raise UsageError(
            "options-exclude-each-other",
            "s2_scales",
            expected="scales where S2 is asked for",
            got=f"{args.s2_scales!r} without S2",
        )
    asked = args.use_s2 is True or args.s2_scales is not None
    without = {key: False} if key in config or family is VITA else {}
    if tower.family not in family.s2_towers:
        if asked:
            labels = towers.listed(towers.FAMILIES[name] for name in family.s2_towers)
            raise InputError(
                "s2-needs-siglip",
                key,
                expected=f"a {labels} tower",
                got=f"{tower}",
                hint=f"leave S2 out, or swap in a {labels} tower",
            )
        return without
    use = asked or (args.use_s2 is None and config.get(key) is True)
    if not use:
        return without
    text = args.s2_scales
    if text is None:
        text = str(config.get("s2_scales", family.default_s2_scales))
    scales = towers.parse_s2_scales(text)
    if scales is None:
        raise UsageError("invalid-s2-scales", text, expected="sizes in pixels, as 384,768,1152")
    if not towers.fits_s2_scales(tower, scales):
        raise InputError(
            "s2-scales-do-not-fit-tower",
            "s2_scales",
            expected=f"multiples of {tower.image_size}, the size of the tower's images",
            got=text,
            hint="give others with --s2-scales, or --no-s2",
        )
    return {key: True} | ({} if args.s2_scales is None else {"s2_scales": text})


def refuse_quantised_tower(checkpoint: Checkpoint) -> None:
    """Raise AdapterError if the tower of ``checkpoint``, or the lone tower, is quantised."""
    kind = kind_of(checkpoint)
    own = [n for n in checkpoint.tensors if kind.part_of(n) == parts.VISION_TOWER]
    refuse_codes(checkpoint, own or checkpoint.tensors, "a vision tower")


def _check_serving(base: Checkpoint, tower: Tower) -> None:
    """Raise InputError for a tower that a deployment folder's config.json cannot describe."""
    if base.serving_config is not None and not builds_tower(base.serving_config, tower.family):
        raise InputError(
            "serving-config-cannot-follow",
            base.root,
            expected="a tower of the family that its config.json, a server's, describes",
            got=f"{tower}",
            hint="swap the tower of the checkpoint that was deployed, and deploy that again",
        )


def _check_path(
    args: VisionModelArgs, tower: Tower, config: Mapping[str, Any], family: ModelFamily
) -> None:
    """Raise InputError unless upstream builds this tower's class from ``mm_vision_tower``."""
    path = args.mm_vision_tower
    if not path.isprintable():
        raise UsageError("invalid-tower-path", path, expected="a printable path")
    by_path = tower_class(config, Surroundings(path_exists=args.path_exists), family)
    if by_path is None or by_path.family == tower.family:
        return
    by_rule = by_path.reason.outcome in (towers.Outcome.RULE, towers.Outcome.NO_RULE)
    raise InputError(
        "tower-path-misleads",
        path,
        expected=f"a path that upstream takes for {tower.traits.label}",
        got=f"{by_path.tower_class or 'nothing'}: {by_path.reason}",
        hint="the run's config.json names it: the run was trained with another tower"
        if args.run_config
        else _other_path(family, tower)
        if by_rule
        else "rename the directory, or name the path for the config with --tower-path",
    )


def _other_path(family: ModelFamily, tower: Tower) -> str:
    """Say by which path a family's loader would build a tower, if by any."""
    name = f"name/{tower.family}"
    built = family.dispatch({"mm_vision_tower": name}, lambda _: False).family
    if built == tower.family:
        return f"--tower-path names it as the hub does, with {tower.family!r} in the name"
    return f"{family.label} builds no {tower.traits.label} tower from any path"


def _tower_edits(
    base: Checkpoint, tower: _DonorTower, family: ModelFamily, trained: Mapping[str, Stored]
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


def _files(base: Checkpoint, tower: _DonorTower, processor: Mapping[str, Any] | None) -> list[Edit]:
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


def _projector(
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


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
