"""What the config keys that a loader reads may be: types and bounds, in one table for each model.

The checks report what breaks a bound, and the loader refuses it before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS
from vita_ckpt.core.anatomy.towers.families import family_of_config, inner_config
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """What a value may be: ``expected`` says it in words."""

    expected: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class WrongValue:
    """A key whose value no model can be built with, what it may be, and what it is."""

    key: str
    expected: str
    got: str


def _integer(least: int, most: int) -> Bound:
    return Bound(
        f"an integer from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def _number(least: float, most: float) -> Bound:
    return Bound(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def _choice(*names: str) -> Bound:
    return Bound(
        f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names
    )


def _optional(bound: Bound) -> Bound:
    return Bound(f"{bound.expected}, or null", lambda value: value is None or bound.accepts(value))


def _are_factors(value: Any) -> bool:
    bound = _number(1e-6, 1e6)
    return isinstance(value, list) and all(bound.accepts(one) for one in value)


_BOOLEAN: Final = Bound("true or false", lambda value: type(value) is bool)
_TEXT: Final = Bound("a text", lambda value: type(value) is str)

# No model is wider, deeper or has more experts; a config that says so is not believed.
_WIDTH: Final = _integer(1, 1 << 24)
_LAYERS: Final = _integer(1, 1024)
_PIXELS: Final = _integer(1, 1 << 20)
_MOST_EXPERTS: Final = 1 << 14  # of all layers
_LENGTH: Final = _integer(1, 1 << 31)
_FACTOR: Final = _number(1, 1e6)
_THETA: Final = _number(1.0001, 1e15)
_EPS: Final = _number(0, 1)

# Activations without parameters that transformers knows since 4.41.
ACTIVATIONS: Final = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
    *("gelu_pytorch_tanh", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu"),
    *("relu2", "relu6", "sigmoid", "silu", "swish", "tanh"),
)
_ACTIVATION: Final = _choice(*ACTIVATIONS)
_DTYPE: Final = _optional(_choice("float32", "float16", "bfloat16", "float64", "auto"))

# Keys of a language model. What a config leaves out has the library's default.
_LANGUAGE_MODEL: Final[dict[str, Bound]] = {
    "vocab_size": _WIDTH,
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _WIDTH,
    "num_key_value_heads": _WIDTH,
    "num_local_experts": _LAYERS,
    "num_experts": _LAYERS,
    "num_experts_per_tok": _LAYERS,
    "moe_intermediate_size": _WIDTH,
    "shared_expert_intermediate_size": _WIDTH,
    "decoder_sparse_step": _LAYERS,
    "head_dim": _optional(_WIDTH),
    "hidden_act": _ACTIVATION,
    "rms_norm_eps": _EPS,
    "layer_norm_eps": _EPS,
    "norm_eps": _EPS,
    "tie_word_embeddings": _optional(_BOOLEAN),
    "max_position_embeddings": _LENGTH,
    "use_sliding_window": _BOOLEAN,
    "sliding_window": _optional(_LENGTH),
    "max_window_layers": _integer(0, 1 << 31),
    "rope_theta": _THETA,
    "partial_rotary_factor": _number(0, 1),
    "rope_pct": _number(0, 1),
    "attention_bias": _BOOLEAN,
    "use_qkv_bias": _BOOLEAN,
    "qk_layernorm": _BOOLEAN,
    "norm_topk_prob": _BOOLEAN,
    "original_max_position_embeddings": _LENGTH,
    "scale_emb": _number(1e-6, 1e6),
    "dim_model_base": _number(1e-6, 1e6),
    "scale_depth": _number(1e-6, 1e6),
}

# Those that only training reads.
_TRAINING: Final[dict[str, Bound]] = {
    "initializer_range": _number(0, 1e6),
    "attention_dropout": _number(0, 1),
}

# Keys of a VITA config beside those of its language model, where they are set.
_VITA: Final[dict[str, Bound]] = {
    "torch_dtype": _DTYPE,
    "dtype": _DTYPE,
    "mm_vision_tower": _optional(_TEXT),
    "mm_audio_encoder": _optional(_TEXT),
    "unfreeze_vision_tower": _optional(_BOOLEAN),
    "continuous_training": _optional(_BOOLEAN),
    "mm_hidden_size": _optional(_WIDTH),
    "mm_projector_type": _TEXT,
    "use_s2": _optional(_BOOLEAN),
    "s2_scales": _optional(_TEXT),
    "tokenizer_model_max_length": _optional(_integer(1, 1 << 63)),
    "tokenizer_padding_side": _optional(_TEXT),
}
# Those that are read only where there is an audio encoder.
_AUDIO: Final[dict[str, Bound]] = {
    "freeze_audio_encoder": _optional(_BOOLEAN),
    "freeze_audio_encoder_adapter": _optional(_BOOLEAN),
    "audio_prompt_finetune": _optional(_BOOLEAN),
    "audio_prompt_num": _optional(_integer(0, 1 << 24)),
}

# Keys of rope_scaling, and of rope_parameters in configs of transformers 5.
ROPE_KEYS: Final[dict[str, Bound]] = {
    "rope_theta": _THETA,
    "factor": _FACTOR,
    "original_max_position_embeddings": _LENGTH,
    "attention_factor": _optional(_number(0, 1e6)),
    "beta_fast": _optional(_number(1e-6, 1e6)),
    "beta_slow": _optional(_number(1e-6, 1e6)),
    "mscale": _optional(_number(0, 1e6)),
    "mscale_all_dim": _optional(_number(0, 1e6)),
    "truncate": _BOOLEAN,
    "low_freq_factor": _number(1e-6, 1e6),
    "high_freq_factor": _number(1e-6, 1e6),
    "short_factor": Bound("a list of numbers", _are_factors),
    "long_factor": Bound("a list of numbers", _are_factors),
}
# The types, with the keys that each needs.
_ROPE_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_ROPE_TYPE: Final = _choice(*_ROPE_TYPES)

# Keys of a tower's config, where they are set.
_TOWER: Final[dict[str, Bound]] = {
    "hidden_size": _PIXELS,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _PIXELS,
    "num_channels": _integer(3, 3),
    "image_size": _PIXELS,
    "patch_size": _PIXELS,
    "layer_norm_eps": _EPS,
    "hidden_act": _ACTIVATION,
    "vision_use_head": _BOOLEAN,
    "qkv_bias": _BOOLEAN,
    "qk_normalization": _BOOLEAN,
    "norm_type": _choice("layer_norm", "rms_norm"),
}
# What the tensors of a lone file give instead of a config; all of them are needed.
_LONE_FILE: Final[dict[str, Bound]] = {
    "width": _PIXELS,
    "layers": _LAYERS,
    "mlp": _WIDTH,
    "heads": _PIXELS,
    "patch_size": _PIXELS,
    "image_size": _PIXELS,
    "head_out": _WIDTH,
}


def wrong_sizes(family: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a config that are no sizes of a language model of this family."""
    sizes = LANGUAGE_MODELS[family].sizes
    return tuple(wrong.key for wrong in _wrong_language_values(family, config, sizes))


def wrong_language_values(family: str, config: Mapping[str, Any]) -> tuple[WrongValue, ...]:
    """Return what no language model of this family, and no VITA model, can be built with."""
    bounds = {**_VITA, **_AUDIO} if config.get("mm_audio_encoder") else _VITA
    return (
        *_wrong_language_values(family, config, _LANGUAGE_MODEL),
        *_beyond(config, bounds),
        *_wrong_padding(family, config),
        *_wrong_rope(family, config),
    )


def wrong_training_values(config: Mapping[str, Any]) -> tuple[WrongValue, ...]:
    """Return what no language model can be trained with, and what stops no loader."""
    return tuple(_beyond(config, _TRAINING))


def wrong_vision_values(family: ModelFamily, config: Mapping[str, Any]) -> tuple[WrongValue, ...]:
    """Return the keys of a relative's vision config whose value is of another type.

    VITA's own are bounded with those of its language model.
    """
    if family is VITA:
        return ()
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return tuple(
        WrongValue(name, " or ".join(names.get(t, "a list") for t in key.types), repr(config[name]))
        for name, key in family.keys.items()
        if config.get(name) is not None and type(config[name]) not in key.types
    )


def wrong_tower_values(config: Mapping[str, Any]) -> tuple[WrongValue, ...]:
    """Return what no tower can be built with; a parent config is looked through to the tower's."""
    family = family_of_config(config)
    if family is None:
        return ()
    if family.lone_file:
        return tuple(_beyond({key: config.get(key) for key in _LONE_FILE}, _LONE_FILE))
    inner = {**family.config_defaults, **inner_config(config)}
    wrong = tuple(_beyond(inner, _TOWER))
    if wrong:
        return wrong
    width, heads = inner["hidden_size"], inner.get("num_attention_heads", 1)
    if width % heads:
        return (WrongValue("num_attention_heads", f"a divisor of {width}", repr(heads)),)
    if inner["image_size"] < inner["patch_size"]:
        return (WrongValue("image_size", "at least one patch", repr(inner["image_size"])),)
    return ()


def _beyond(values: Mapping[str, Any], bounds: Mapping[str, Bound]) -> Iterator[WrongValue]:
    for key, bound in bounds.items():
        if key in values and not bound.accepts(values[key]):
            yield WrongValue(key, bound.expected, repr(values[key]))


def _wrong_language_values(
    family: str, config: Mapping[str, Any], names: Iterable[str]
) -> tuple[WrongValue, ...]:
    model = LANGUAGE_MODELS[family]
    keys = model.keys(config)
    own = {name: keys[name] for name in names if name in model.defaults}
    if not keys.get("use_sliding_window"):  # which is what reads it
        own.pop("max_window_layers", None)
    wrong = tuple(_beyond(own, {name: _LANGUAGE_MODEL[name] for name in own}))
    if any(one.key in model.sizes for one in wrong):
        return wrong
    return (*wrong, *_wrong_relations(keys))


def _wrong_relations(keys: Mapping[str, Any]) -> Iterator[WrongValue]:
    """Compare sizes that are within their bounds with each other."""
    width, heads = keys["hidden_size"], keys["num_attention_heads"]
    values, head = keys["num_key_value_heads"], keys.get("head_dim")
    if head is None and width % heads:
        yield WrongValue("num_attention_heads", f"a divisor of {width}", repr(heads))
    elif head is None and width // heads % 2:
        yield WrongValue("num_attention_heads", "heads of an even width", repr(heads))
    if head is not None and head % 2:
        yield WrongValue("head_dim", "an even number", repr(head))
    if heads % values:
        yield WrongValue("num_key_value_heads", f"a divisor of {heads}", repr(values))
    key = "num_experts" if "num_experts" in keys else "num_local_experts"
    experts = keys.get(key, 1)
    if keys["num_hidden_layers"] * experts > _MOST_EXPERTS:
        yield WrongValue(key, f"{_MOST_EXPERTS} in all layers", repr(experts))
    if keys.get("num_experts_per_tok", 1) > experts:
        got = repr(keys["num_experts_per_tok"])
        yield WrongValue("num_experts_per_tok", f"at most {experts}", got)


def _wrong_padding(family: str, config: Mapping[str, Any]) -> Iterator[WrongValue]:
    """Check the token whose row is zero, which the table of embeddings must have."""
    given, rows = config.get("pad_token_id"), LANGUAGE_MODELS[family].keys(config)["vocab_size"]
    if given is None or type(rows) is not int:
        return
    if type(given) is not int or not -rows <= given < rows:
        yield WrongValue("pad_token_id", f"a token below {rows}, or null", repr(given))


def _wrong_rope(family: str, config: Mapping[str, Any]) -> Iterator[WrongValue]:
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            yield WrongValue(key, "an object, or null", repr(given))
            continue
        kind = given.get("rope_type", given.get("type", "default"))
        if not _ROPE_TYPE.accepts(kind):
            yield WrongValue(f"{key}.rope_type", _ROPE_TYPE.expected, repr(kind))
            continue
        values = dict.fromkeys(_ROPE_TYPES[kind]) | dict(given)
        wrong = list(_beyond(values, ROPE_KEYS))
        yield from (WrongValue(f"{key}.{one.key}", one.expected, one.got) for one in wrong)
        if not wrong:
            yield from _wrong_rope_relations(key, kind, values, _head_width(family, config))


def _wrong_rope_relations(
    key: str, kind: str, values: Mapping[str, Any], head: int | None
) -> Iterator[WrongValue]:
    if kind == "dynamic" and head is not None and head < 4:
        yield WrongValue(f"{key}.rope_type", "heads of width 4 or more", repr(kind))
    if kind == "llama3" and not values["low_freq_factor"] < values["high_freq_factor"]:
        expected = f"more than {values['low_freq_factor']:g}, the low_freq_factor"
        yield WrongValue(f"{key}.high_freq_factor", expected, repr(values["high_freq_factor"]))
    if kind == "longrope" and values["original_max_position_embeddings"] < 2:  # its logarithm is 0
        name = f"{key}.original_max_position_embeddings"
        yield WrongValue(name, "2 or more", repr(values["original_max_position_embeddings"]))
    if kind == "longrope" and head is not None:
        for name in ("short_factor", "long_factor"):
            if len(values[name]) != head // 2:
                got = f"{len(values[name])} numbers"
                yield WrongValue(f"{key}.{name}", f"{head // 2} numbers", got)


def _head_width(family: str, config: Mapping[str, Any]) -> int | None:
    """Return the width of a head; None where the config has wrong sizes."""
    if wrong_sizes(family, config):
        return None
    keys = LANGUAGE_MODELS[family].keys(config)
    width: int = keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
    return width
