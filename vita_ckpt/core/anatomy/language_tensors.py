"""List the language models: their defaults, and names and shapes of every tensor by a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass

_Values = Mapping[str, Any]
_Shapes = dict[str, Shape]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LanguageModel:
    """A language model that multimodal models are built on.

    ``name`` is what transformers' classes are called by. ``model_types`` are what the config of a
    plain one says, the usual one first, and ``architecture`` is the class of a plain one.
    ``defaults`` are the keys that its ``config.json`` may leave out; null as the number of key and
    value heads means as many as there are heads. ``sizes`` and ``flags`` are the keys that decide
    names and shapes, which ``shapes`` returns without the head. The head is ``lm_head.weight``
    unless the config ties it.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    defaults: Mapping[str, Any]
    sizes: tuple[str, ...]
    shapes: Callable[[_Values], _Shapes]
    flags: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The usual ``model_type`` of a plain one."""
        return self.model_types[0]

    def keys(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of a config that this model has, with its defaults."""
        keys = {key: config.get(key, default) for key, default in self.defaults.items()}
        if keys["num_key_value_heads"] is None is self.defaults["num_key_value_heads"]:
            keys["num_key_value_heads"] = keys["num_attention_heads"]
        if keys["tie_word_embeddings"] is None:
            keys["tie_word_embeddings"] = False
        return keys

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Return whether the head is the table of token embeddings, by the key or its default."""
        return config.get("tie_word_embeddings", self.defaults["tie_word_embeddings"]) is True


# What most of them have in common. The defaults are those of the versions that the checkpoints are
# written with (transformers 4.37 to 4.41), whose config.json omits them; later ones changed some.
_SHARED: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
}
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _linear(name: str, out: int, wide: int, *, bias: bool = False) -> _Shapes:
    shapes: _Shapes = {f"{name}.weight": (out, wide)}
    return shapes | ({f"{name}.bias": (out,)} if bias else {})


def _norm(name: str, width: int, *, bias: bool = False) -> _Shapes:
    shapes: _Shapes = {f"{name}.weight": (width,)}
    return shapes | ({f"{name}.bias": (width,)} if bias else {})


def _head_width(keys: _Values) -> int:
    width: int = keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
    return width


def _attention(at: str, keys: _Values, *, inputs: bool = False, output: bool = False) -> _Shapes:
    """Return the four projections; ``inputs`` and ``output`` say which of them have a bias."""
    width, head = keys["hidden_size"], _head_width(keys)
    queries, values = keys["num_attention_heads"] * head, keys["num_key_value_heads"] * head
    shapes: _Shapes = {}
    for name, out in (("q_proj", queries), ("k_proj", values), ("v_proj", values)):
        shapes |= _linear(f"{at}.self_attn.{name}", out, width, bias=inputs)
    return shapes | _linear(f"{at}.self_attn.o_proj", width, queries, bias=output)


def _gated(at: str, inner: int, width: int) -> _Shapes:
    return {
        f"{at}.gate_proj.weight": (inner, width),
        f"{at}.up_proj.weight": (inner, width),
        f"{at}.down_proj.weight": (width, inner),
    }


def _decoder(
    keys: _Values,
    attention: Callable[[str], _Shapes],
    feed_forward: Callable[[str, int], _Shapes],
    *,
    norm_bias: bool = False,
) -> _Shapes:
    """Return a Llama-like model of these attentions and feed-forward blocks."""
    width = keys["hidden_size"]
    shapes: _Shapes = {"model.embed_tokens.weight": (keys["vocab_size"], width)}
    for layer in range(keys["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes |= attention(at)
        shapes |= feed_forward(at, layer)
        shapes |= _norm(f"{at}.input_layernorm", width, bias=norm_bias)
        shapes |= _norm(f"{at}.post_attention_layernorm", width, bias=norm_bias)
    return shapes | _norm("model.norm", width, bias=norm_bias)


def _dense(keys: _Values) -> Callable[[str, int], _Shapes]:
    return lambda at, _: _gated(f"{at}.mlp", keys["intermediate_size"], keys["hidden_size"])


def _llama_shapes(keys: _Values) -> _Shapes:
    bias = bool(keys.get("attention_bias"))
    return _decoder(keys, lambda at: _attention(at, keys, inputs=bias, output=bias), _dense(keys))


def _mistral_shapes(keys: _Values) -> _Shapes:
    return _decoder(keys, lambda at: _attention(at, keys), _dense(keys))


def _qwen2_shapes(keys: _Values) -> _Shapes:
    return _decoder(keys, lambda at: _attention(at, keys, inputs=True), _dense(keys))


def _mixtral_shapes(keys: _Values) -> _Shapes:
    width, inner = keys["hidden_size"], keys["intermediate_size"]

    def experts(at: str, _layer: int) -> _Shapes:
        shapes: _Shapes = {f"{at}.block_sparse_moe.gate.weight": (keys["num_local_experts"], width)}
        for expert in range(keys["num_local_experts"]):
            moe = f"{at}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{moe}.w1.weight": (inner, width), f"{moe}.w3.weight": (inner, width)}
            shapes[f"{moe}.w2.weight"] = (width, inner)
        return shapes

    return _decoder(keys, lambda at: _attention(at, keys), experts)


def _qwen2_moe_shapes(keys: _Values) -> _Shapes:
    width, experts = keys["hidden_size"], keys["num_experts"]

    def feed_forward(at: str, layer: int) -> _Shapes:
        if not experts or (layer + 1) % keys["decoder_sparse_step"]:
            return _gated(f"{at}.mlp", keys["intermediate_size"], width)
        shapes: _Shapes = {f"{at}.mlp.gate.weight": (experts, width)}
        for expert in range(experts):
            shapes |= _gated(f"{at}.mlp.experts.{expert}", keys["moe_intermediate_size"], width)
        shared = keys["shared_expert_intermediate_size"]
        shapes |= _gated(f"{at}.mlp.shared_expert", shared, width)
        return shapes | {f"{at}.mlp.shared_expert_gate.weight": (1, width)}

    return _decoder(keys, lambda at: _attention(at, keys, inputs=True), feed_forward)


def _stablelm_shapes(keys: _Values) -> _Shapes:
    bias = bool(keys["use_qkv_bias"])
    return _decoder(
        keys, lambda at: _attention(at, keys, inputs=bias), _dense(keys), norm_bias=True
    )


def _phi3_shapes(keys: _Values) -> _Shapes:
    width, inner, head = keys["hidden_size"], keys["intermediate_size"], _head_width(keys)
    heads, values = keys["num_attention_heads"], keys["num_key_value_heads"]

    def attention(at: str) -> _Shapes:
        return {
            f"{at}.self_attn.qkv_proj.weight": ((heads + 2 * values) * head, width),
            f"{at}.self_attn.o_proj.weight": (width, heads * head),
        }

    def feed_forward(at: str, _layer: int) -> _Shapes:
        return {
            f"{at}.mlp.gate_up_proj.weight": (2 * inner, width),
            f"{at}.mlp.down_proj.weight": (width, inner),
        }

    return _decoder(keys, attention, feed_forward)


def _phi_shapes(keys: _Values) -> _Shapes:
    width, inner, head = keys["hidden_size"], keys["intermediate_size"], _head_width(keys)
    queries, values = keys["num_attention_heads"] * head, keys["num_key_value_heads"] * head
    shapes: _Shapes = {"model.embed_tokens.weight": (keys["vocab_size"], width)}
    for layer in range(keys["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, out in (("q_proj", queries), ("k_proj", values), ("v_proj", values)):
            shapes |= _linear(f"{at}.self_attn.{name}", out, width, bias=True)
        shapes |= _linear(f"{at}.self_attn.dense", width, queries, bias=True)
        for name in ("q_layernorm", "k_layernorm") if keys["qk_layernorm"] else ():
            shapes |= _norm(f"{at}.self_attn.{name}", head, bias=True)
        shapes |= _linear(f"{at}.mlp.fc1", inner, width, bias=True)
        shapes |= _linear(f"{at}.mlp.fc2", width, inner, bias=True)
        shapes |= _norm(f"{at}.input_layernorm", width, bias=True)
    return shapes | _norm("model.final_layernorm", width, bias=True)


_LLAMA_LIKE: Final[dict[str, Any]] = {
    **_SHARED,
    "vocab_size": 32000,
    "intermediate_size": 11008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
}

_IN_ORDER: Final = (
    LanguageModel(
        "Qwen2",
        ("qwen2",),
        "Qwen2ForCausalLM",
        {
            **_SHARED,
            "vocab_size": 151936,
            "intermediate_size": 22016,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        _SIZES,
        _qwen2_shapes,
    ),
    LanguageModel(
        "Mixtral",
        ("mixtral",),
        "MixtralForCausalLM",
        {
            **_SHARED,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": None,
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "head_dim": None,
        },
        (*_SIZES, "num_local_experts", "num_experts_per_tok", "head_dim"),
        _mixtral_shapes,
    ),
    LanguageModel(
        "Mistral",
        ("mistral",),
        "MistralForCausalLM",
        {
            **_SHARED,
            "vocab_size": 32000,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "head_dim": None,
        },
        (*_SIZES, "head_dim"),
        _mistral_shapes,
    ),
    LanguageModel(
        "Llama",
        ("llama",),
        "LlamaForCausalLM",
        _LLAMA_LIKE,
        _SIZES,
        _llama_shapes,
        flags=("attention_bias",),
    ),
    LanguageModel(
        "Qwen2Moe",
        ("qwen2_moe",),
        "Qwen2MoeForCausalLM",
        {
            **_SHARED,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "hidden_size": 2048,
            "vocab_size": 151936,
            "intermediate_size": 5632,
            "num_key_value_heads": 16,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts_per_tok": 4,
            "num_experts": 60,
            "norm_topk_prob": False,
        },
        (
            *_SIZES,
            "decoder_sparse_step",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "num_experts_per_tok",
            "num_experts",
        ),
        _qwen2_moe_shapes,
    ),
    LanguageModel(
        "Gemma",
        ("gemma",),
        "GemmaForCausalLM",
        {
            **_SHARED,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "hidden_size": 3072,
            "vocab_size": 256000,
            "intermediate_size": 24576,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": False,
        },
        (*_SIZES, "head_dim"),
        _llama_shapes,
        flags=("attention_bias",),
    ),
    LanguageModel(
        "Phi",
        ("phi",),
        "PhiForCausalLM",
        {
            **_SHARED,
            "hidden_act": "gelu_new",
            "num_hidden_layers": 24,
            "hidden_size": 2048,
            "vocab_size": 51200,
            "intermediate_size": 8192,
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": False,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
        _SIZES,
        _phi_shapes,
        flags=("qk_layernorm",),
    ),
    LanguageModel(
        "Phi3",
        ("phi3",),
        "Phi3ForCausalLM",
        {
            **_SHARED,
            "hidden_size": 3072,
            "vocab_size": 32064,
            "intermediate_size": 8192,
            "num_key_value_heads": None,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": None,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
        },
        _SIZES,
        _phi3_shapes,
    ),
    LanguageModel(
        "StableLm",
        ("stablelm_epoch", "stablelm"),
        "StableLMEpochForCausalLM",
        {
            **_SHARED,
            "hidden_size": 2560,
            "vocab_size": 50304,
            "intermediate_size": 6912,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "rope_pct": 0.25,
            "use_qkv_bias": True,
        },
        _SIZES,
        _stablelm_shapes,
        flags=("use_qkv_bias",),
    ),
    LanguageModel(
        "MiniCPM",
        ("minicpm",),
        "MiniCPMForCausalLM",
        {
            **_LLAMA_LIKE,
            "tie_word_embeddings": True,
            "scale_emb": 1,
            "dim_model_base": 1,
            "scale_depth": 1,
        },
        _SIZES,
        _llama_shapes,
        flags=("attention_bias",),
    ),
)

LANGUAGE_MODELS: Final[dict[str, LanguageModel]] = {model.name: model for model in _IN_ORDER}
DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    model.name: model.defaults for model in _IN_ORDER
}
_BY_TYPE: Final = {kind: model for model in _IN_ORDER for kind in model.model_types}

_TABLE: Final = "model.embed_tokens.weight"
# The head of a plain Phi has a bias, which its relatives drop.
_HEAD_BIAS: Final = "phi"


def of_plain_type(model_type: Any) -> LanguageModel | None:
    """Return the language model that a plain config's ``model_type`` names; None if unknown."""
    return _BY_TYPE.get(model_type) if isinstance(model_type, str) else None


def expected_shapes(name: str, config: Mapping[str, Any]) -> Mapping[str, Shape]:
    """Return the shapes of all tensors of a language model, by their stored names.

    Mixtral's are those of transformers 4.41. ``lm_head.weight`` is among them unless the config
    ties it to the embeddings. The config must have none of the
    :func:`~vita_ckpt.core.anatomy.config_values.wrong_sizes`.
    """
    model = LANGUAGE_MODELS[name]
    keys = model.keys(config)
    sizes = tuple(keys[key] for key in model.sizes)
    flags = tuple(bool(keys[key]) for key in model.flags)
    has_bias = config.get("model_type") == _HEAD_BIAS
    return MappingProxyType(_shapes(name, sizes, flags, model.is_tied(config), has_bias))


# The loaders of one checkpoint build the same language model one after another.
@lru_cache(maxsize=1)
def _shapes(
    name: str,
    sizes: tuple[int | None, ...],
    flags: tuple[bool, ...],
    is_tied: bool,
    has_bias: bool,
) -> _Shapes:
    model = LANGUAGE_MODELS[name]
    keys = dict(zip(model.sizes, sizes, strict=True)) | dict(zip(model.flags, flags, strict=True))
    shapes = model.shapes(keys)
    if not is_tied:
        shapes |= {"lm_head.weight": shapes[_TABLE]}
    if has_bias:
        shapes |= {"lm_head.bias": shapes[_TABLE][:1]}
    return shapes
