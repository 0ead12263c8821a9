"""List names and shapes of every tensor of a language model, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from vita_ckpt.core.checkpoint import Shape

# The defaults of transformers 4.41, which its config.json omits; later versions changed some.
_SHARED: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
}
DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "Qwen2": {
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
    "Mixtral": {
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
    "Mistral": {
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
}


def expected_shapes(family: str, config: Mapping[str, Any]) -> Mapping[str, Shape]:
    """Return the shapes of all tensors of a Qwen2, Mixtral or Mistral, by their names in 4.41.

    ``lm_head.weight`` is among them unless the config ties it to the embeddings. The config must
    have none of the
    :func:`~vita_ckpt.core.anatomy.config_values.wrong_sizes`.
    """
    keys = {key: config.get(key, default) for key, default in DEFAULTS[family].items()}
    head = keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"]
    sizes = _Sizes(
        family,
        keys["vocab_size"],
        keys["hidden_size"],
        keys["intermediate_size"],
        keys["num_hidden_layers"],
        keys["num_attention_heads"] * head,
        keys["num_key_value_heads"] * head,
        keys.get("num_local_experts", 0),
        keys["tie_word_embeddings"] is True,
    )
    return MappingProxyType(_shapes(sizes))


class _Sizes(NamedTuple):
    """What decides the names and shapes."""

    family: str
    vocab: int
    width: int
    inner: int
    layers: int
    queries: int
    values: int
    experts: int
    is_tied: bool


# The loaders of one checkpoint build the same language model one after another.
@lru_cache(maxsize=1)
def _shapes(sizes: _Sizes) -> dict[str, Shape]:
    family, vocab, width, inner, layers, queries, values, experts, is_tied = sizes
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, out in (("q_proj", queries), ("k_proj", values), ("v_proj", values)):
            shapes[f"{at}.self_attn.{name}.weight"] = (out, width)
            if family == "Qwen2":
                shapes[f"{at}.self_attn.{name}.bias"] = (out,)
        shapes[f"{at}.self_attn.o_proj.weight"] = (width, queries)
        if family == "Mixtral":
            shapes[f"{at}.block_sparse_moe.gate.weight"] = (experts, width)
            for expert in range(experts):
                moe = f"{at}.block_sparse_moe.experts.{expert}"
                shapes |= {f"{moe}.w1.weight": (inner, width), f"{moe}.w3.weight": (inner, width)}
                shapes[f"{moe}.w2.weight"] = (width, inner)
        else:
            shapes |= {
                f"{at}.mlp.gate_proj.weight": (inner, width),
                f"{at}.mlp.up_proj.weight": (inner, width),
                f"{at}.mlp.down_proj.weight": (width, inner),
            }
        shapes[f"{at}.input_layernorm.weight"] = (width,)
        shapes[f"{at}.post_attention_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    if not is_tied:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes
