"""Choose the config keys of vision modules."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.config_keys import LARGEST_NUMBER
from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.towers import Tower
from vita_ckpt.core.binding.modules import builds_audio, is_audio
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.requirements import plain_language_model
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.surgery.vision.arguments import VisionModelArgs


def backbone_keys(base: Checkpoint, args: VisionModelArgs, family: ModelFamily) -> dict[str, Any]:
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


def run_keys(base: Checkpoint, args: VisionModelArgs, family: ModelFamily) -> dict[str, Any]:
    """Return the config keys that the run which trained the projector brings along."""
    if family is not VITA:
        return _family_keys(base, args.run_config, family)
    keys = {key: args.run_config[key] for key in _RUN_KEYS if key in args.run_config}
    if builds_audio(args.run_config) and any(map(is_audio, base.tensors)):
        keys["mm_audio_encoder"] = args.run_config["mm_audio_encoder"]
    for key, value in keys.items():
        check_run_value(key, value)
    if "continuous_training" in args.run_config:
        keys["continuous_training"] = False  # as upstream resets it after loading
    return keys


def _family_keys(base: Checkpoint, run: Mapping[str, Any], family: ModelFamily) -> dict[str, Any]:
    """Return the keys of a run's config that the result has: VITA's relatives use it as it is.

    Raises InputError for a value of another type than its key.
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


def s2_keys(
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
