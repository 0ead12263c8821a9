"""The language models that are built equal transformers' own plain ones, weight for weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from vita_ckpt import InputError
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS, expected_shapes
from vita_ckpt.model.language import (
    build_language_model,
    embedding_scale,
    final_norm,
    stored_name,
)
from vita_ckpt.model.weights import on_meta

IS_OLD = int(transformers.__version__.split(".")[0]) < 5
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# The model_type of a multimodal model, the keys of its config, and what transformers calls them.
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": ("llava_llama", {}, {}),
    "Llama with biases": ("bunny-llama", {"attention_bias": True}, {"attention_bias": True}),
    "Mistral": ("llava_mistral", {}, {}),
    "Qwen2": ("llava_qwen", {}, {}),
    "Mixtral": ("llava_mixtral", {"num_local_experts": 3}, {"num_local_experts": 3}),
    "Qwen2Moe": (
        "llava_qwen_moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
        },
        {},
    ),
    "Qwen2Moe, normed": (
        "llava_qwen_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": True,
        },
        {},
    ),
    "Gemma": ("llava_gemma", {"head_dim": 16}, {"head_dim": 16, "tie_word_embeddings": True}),
    "Phi": ("bunny-phi", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}),
    "Phi3": ("bunny-phi3", {}, {}),
    "StableLm": (
        "bunny-stablelm",
        {"rope_pct": 0.5, "norm_eps": 1e-3},
        {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-3, "use_qkv_bias": True},
    ),
    "StableLm without biases": (
        "bunny-stablelm",
        {"use_qkv_bias": False},
        {"partial_rotary_factor": 0.25, "use_qkv_bias": False},
    ),
}
# The class of 4.41 cannot run it.
if not IS_OLD:
    MODELS["Phi with norms"] = ("bunny-phi", {"qk_layernorm": True}, {"qk_layernorm": True})


def drawn(shapes: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}


def plain_logits(name: str, keys: dict[str, Any], weights: dict[str, Tensor], ids: Tensor) -> Any:
    """What transformers' own model makes of these weights, read as from a checkpoint."""
    config = getattr(transformers, f"{name}Config")(
        **SMALL | keys, pad_token_id=None, bos_token_id=None, eos_token_id=None
    )
    weights = dict(weights)
    if name == "Phi":  # plain Phi has one
        weights["lm_head.bias"] = torch.zeros(SMALL["vocab_size"])
    kind = getattr(transformers, f"{name}ForCausalLM")
    model = kind.from_pretrained(
        None, config=config, state_dict=weights, attn_implementation="eager"
    )
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("case", MODELS)
def test_logits_of_text_are_the_librarys(case: str) -> None:
    name = case.partition(",")[0].partition(" with")[0]
    model_type, keys, library = MODELS[case]
    config = SMALL | keys | {"model_type": model_type}
    shapes = expected_shapes(name, config)
    weights = drawn(shapes)
    with on_meta(torch.float32):
        model = build_language_model(config).eval()
    assert name == type(model).__name__.removesuffix("ForCausalLM")
    places = {place: stored_name(name, place) for place in model.state_dict()}
    if LANGUAGE_MODELS[name].is_tied(config):
        places["lm_head.weight"] = "model.embed_tokens.weight"
    assert set(places.values()) == set(shapes)
    state = {place: weights[stored] for place, stored in places.items()}
    model.load_state_dict(state, strict=True, assign=True)

    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [27, 18, 28, 18, 28, 4, 5, 39]])
    with torch.no_grad():
        embeds = model.model.embed_tokens(ids) * (embedding_scale(config) or 1.0)
        hidden = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        found = model.lm_head(hidden)
    wanted = plain_logits(name, keys | library, weights, ids)
    assert wanted.abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert final_norm(model.model) == ("final_layernorm" if name == "Phi" else "norm")


def test_a_language_model_without_a_class() -> None:
    with pytest.raises(InputError, match=r"language-model-not-built.*bunny-minicpm.*MiniCPM"):
        build_language_model(SMALL | {"model_type": "bunny-minicpm"})


@pytest.mark.parametrize("scaling", [{"type": "linear"}, {"rope_type": "dynamic"}])
def test_rotary_scaling_of_either_spelling(scaling: dict[str, str]) -> None:
    config = SMALL | {"model_type": "llava_llama", "rope_scaling": {**scaling, "factor": 4.0}}
    with on_meta(torch.float32):
        plain = build_language_model(SMALL | {"model_type": "llava_llama"})
        scaled = build_language_model(config)
    if "type" in scaling or not IS_OLD:
        assert scaled.config.rope_scaling is not None
    else:
        assert scaled.config.rope_scaling == {"type": "dynamic", "factor": 4.0}
    assert plain.config.max_position_embeddings == 64


@pytest.mark.skipif(not IS_OLD, reason="transformers 5 has it")
def test_a_rotary_scaling_that_this_version_lacks() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0}
    config = SMALL | {"model_type": "llava_llama", "rope_scaling": scaling}
    with pytest.raises(InputError, match=r"rope_scaling.*linear or dynamic"):
        build_language_model(config)
