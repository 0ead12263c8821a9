"""Build the language models: transformers' own classes, under the names that are stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN

from vita_ckpt.core.anatomy.config_values import (
    ROPE_KEYS,
    wrong_language_values,
    wrong_vision_values,
)
from vita_ckpt.core.anatomy.families import FAMILIES, family_of
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, UsageError

_IS_OLD: Final = int(transformers.__version__.split(".")[0]) < 5

# transformers 4.41 computes its rotary tables for this many positions in every layer, and extends
# them for longer texts. At a model's own maximum they would take a gigabyte.
_ROTARY_TABLE: Final = 1024
# These have no tables, and some of their rotary scalings depend on the true maximum.
_WITHOUT_TABLES: Final = ("Llama", "Gemma", "Phi3")

# Of these models transformers has no class that reads what is stored.
_NOT_BUILT: Final = ("MiniCPM",)

# What transformers calls keys that a checkpoint's own class called otherwise.
_RENAMED: Final = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}
# The kinds of rotary scaling that these classes of 4.41 know, and nothing but a factor with them.
_FACTOR_ALONE: Final = ("Llama", "Phi", "StableLm")
_KINDS: Final = ("linear", "dynamic")

_GEMMA: Final = "Gemma"
_FINAL_NORMS: Final = ("norm", "final_layernorm")


def build_language_model(config: Mapping[str, Any], attn: str | None = None) -> Any:
    """Build the ``…ForCausalLM`` of a checkpoint's config, in the default dtype, without weights.

    ``attn`` is the library's attention implementation (``"eager"``, ``"sdpa"`` …), by default
    ``"sdpa"`` where the library has it for this model. Raises InputError for a model that is not
    built here or a value that no model can have, UsageError for an ``attn`` that the library does
    not have, or not here.
    """
    name = check_language_values(config)
    family = family_of(config)
    if family is not None and name in family.unscaled:
        config = {**config, "rope_scaling": None}
    kind = getattr(transformers, f"{name}ForCausalLM")
    if name == "Phi3" and _IS_OLD:  # it warns of every attention but one, on every pass
        logging.getLogger(kind.__module__).setLevel(logging.ERROR)
    usual = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"
    keys = _library_keys(name, config)
    try:
        library_config = getattr(transformers, f"{name}Config")(
            **keys, attn_implementation=attn or usual
        )
    except Exception as error:  # whatever a version of the library raises of a value
        raise InputError(
            "unsupported-config",
            name,
            expected="a config that this version of transformers takes",
            got=str(error),
        ) from error
    try:
        model: Any = kind(library_config)
    except (ImportError, ValueError) as error:
        if attn is None:
            raise
        raise UsageError(
            "unknown-attention",
            attn,
            expected="an attention implementation that the library has here: sdpa, eager …",
            hint=did_you_mean(attn, ("sdpa", "eager", "flash_attention_2", "flex_attention")),
        ) from error
    if name in _REBUILT:
        _REBUILT[name](model)
    return model


def check_language_values(config: Mapping[str, Any]) -> str:
    """Return the name of the language model of a checkpoint's config.

    Raises InputError ``unknown-model-type``, ``language-model-not-built`` for one that no class of
    transformers reads, or ``unsupported-config`` for a value that no model can be built with.
    """
    family = family_of(config)
    backbone = family.backbone(config) if family is not None else None
    if backbone is None:
        raise InputError(
            "unknown-model-type",
            config.get("model_type"),
            expected="one of " + ", ".join(t for f in FAMILIES.values() for t in f.by_type),
            hint="the config.json is not one of a checkpoint that is known here",
        )
    name = backbone.language_model
    if name in _NOT_BUILT:
        raise InputError(
            "language-model-not-built",
            config.get("model_type"),
            expected="a language model that transformers has a class for",
            got=name,
            hint="every command but verify works on it",
        )
    wrong_vision = wrong_vision_values(family, config) if family is not None else ()
    for wrong in (*wrong_language_values(name, config), *wrong_vision):
        raise InputError(
            "unsupported-config",
            wrong.key,
            expected=wrong.expected,
            got=wrong.got,
            hint="vita-ckpt validate lists every such key",
        )
    return name


def embedding_scale(config: Mapping[str, Any]) -> float | None:
    """Return what the embeddings are multiplied with before the first layer, None for nothing.

    Those of images are multiplied too. It is left to the caller: where the library does it depends
    on its version.
    """
    name = check_language_values(config)
    width: int = LANGUAGE_MODELS[name].keys(config)["hidden_size"]
    return width**0.5 if name == _GEMMA else None


def final_norm(model: nn.Module) -> str:
    """Return the name of the norm after the layers of a language model without its head."""
    return next(name for name in _FINAL_NORMS if hasattr(model, name))


def stored_name(language_model: str, name: str) -> str:
    """Return the checkpoint's name of a tensor, which for Mixtral is that of 4.41."""
    if language_model != "Mixtral":
        return name
    return name.replace(".mlp.gate.", ".block_sparse_moe.gate.").replace(
        ".mlp.experts.", ".block_sparse_moe.experts."
    )


class SparseMoe(nn.Module):
    """A mixture of experts under its stored names, one expert at a time.

    The library's current modules fuse all experts into two tensors, which take 4 GB in a layer of
    8x7B. Here only the experts that a token is routed to are read. Input and output are [B, T,
    hidden]. ``normed`` makes the weights of a token's experts sum to one.
    """

    def __init__(
        self,
        width: int,
        experts: int,
        top_k: int,
        expert: Callable[[], nn.Module],
        *,
        normed: bool = True,
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.normed = normed
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(experts))

    def forward(self, hidden: Tensor) -> Any:
        """Map [B, T, hidden] to [B, T, hidden].

        With transformers 4.41 the router's scores are returned too.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores = functional.softmax(self.gate(flat), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(scores, self.top_k, dim=-1)
        if self.normed:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(flat.dtype)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            tokens, rank = torch.where(chosen == index)
            if tokens.numel():
                result.index_add_(0, tokens, expert(flat[tokens]) * weights[tokens, rank, None])
        output = self.completed(result, flat).reshape(hidden.shape)
        # The decoder layer of 4.41 also expects the router's logits.
        return (output, scores) if _IS_OLD else output

    def completed(self, result: Tensor, flat: Tensor) -> Tensor:
        """Return what the experts made of tokens ``flat`` [n, hidden], with what else is added."""
        return result


class Expert(nn.Module):
    """One of Mixtral's experts: a gated MLP, ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [n, width] to [n, width]."""
        result: Tensor = self.w2(functional.silu(self.w1(hidden)) * self.w3(hidden))
        return result


class GatedMlp(nn.Module):
    """One of Qwen2-MoE's experts: a gated MLP, ``down(act(gate x) * up x)``."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.act = ACT2FN[act]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [n, width] to [n, width]."""
        result: Tensor = self.down_proj(self.act(self.gate_proj(hidden)) * self.up_proj(hidden))
        return result


class SharedMoe(SparseMoe):
    """Qwen2-MoE's mixture of experts, of which one sees every token, weighted by a gate."""

    def __init__(self, config: Any) -> None:
        width, act = config.hidden_size, config.hidden_act
        super().__init__(
            width,
            config.num_experts,
            config.num_experts_per_tok,
            lambda: GatedMlp(width, config.moe_intermediate_size, act),
            normed=config.norm_topk_prob,
        )
        self.shared_expert = GatedMlp(width, config.shared_expert_intermediate_size, act)
        self.shared_expert_gate = nn.Linear(width, 1, bias=False)

    def completed(self, result: Tensor, flat: Tensor) -> Tensor:
        """Return what the experts made of tokens ``flat`` [n, hidden], with the shared one's."""
        weight = functional.sigmoid(self.shared_expert_gate(flat))
        completed: Tensor = result + weight * self.shared_expert(flat)
        return completed


def _rebuild_mixtral(model: Any) -> None:
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    for layer in model.model.layers:
        name = "block_sparse_moe" if hasattr(layer, "block_sparse_moe") else "mlp"
        experts, top_k = config.num_local_experts, config.num_experts_per_tok
        setattr(layer, name, SparseMoe(width, experts, top_k, lambda: Expert(width, inner)))


def _rebuild_qwen2_moe(model: Any) -> None:
    for layer in model.model.layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp = SharedMoe(model.config)


def _rebuild_phi(model: Any) -> None:
    """Leave out the bias of the head: plain Phi has one, multimodal models on it do not."""
    model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)


def _rebuild_gemma(model: Any) -> None:
    """Leave the scaling of embeddings to the caller, for text and images alike.

    transformers 4.41 scales what goes into the first layer by the width in the config, 5 what comes
    out of the table.
    """
    model.model.config = copy(model.config)
    model.model.config.hidden_size = 1
    table = model.model.embed_tokens
    model.model.embed_tokens = nn.Embedding(table.num_embeddings, table.embedding_dim)


_REBUILT: Final[Mapping[str, Callable[[Any], None]]] = {
    "Mixtral": _rebuild_mixtral,
    "Qwen2Moe": _rebuild_qwen2_moe,
    "Phi": _rebuild_phi,
    _GEMMA: _rebuild_gemma,
}


def _library_keys(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of transformers' config that a checkpoint's own class would have used."""
    model = LANGUAGE_MODELS[name]
    keys = model.keys(config)
    for key in ("initializer_range", "attention_dropout"):  # of training alone
        keys.pop(key, None)
    if not keys.get("use_sliding_window"):  # which is what reads it
        keys.pop("max_window_layers", None)
    for key, default in model.defaults.items():
        if type(default) is float and type(keys.get(key)) is int:  # which 5.x refuses
            keys[key] = float(keys[key])
    if name not in _WITHOUT_TABLES:
        keys["max_position_embeddings"] = min(keys["max_position_embeddings"], _ROTARY_TABLE)
    if keys.get("head_dim", 0) is None:
        keys["head_dim"] = keys["hidden_size"] // keys["num_attention_heads"]
    for own, library in _RENAMED.items():
        if own in keys:
            keys[library] = keys.pop(own)
    if name == _GEMMA:  # its hidden_act was never read
        act = config.get("hidden_activation") or "gelu_pytorch_tanh"
        keys |= {"hidden_act": act} | ({"hidden_activation": act} if _IS_OLD else {})
    theta = keys.pop("rope_theta")
    # Some classes default to tokens beyond a small table, one of them for padding.
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return keys | tokens | _rope(name, config, theta, keys)


def _rope(
    name: str, config: Mapping[str, Any], theta: float, keys: dict[str, Any]
) -> dict[str, Any]:
    """Return the rotary settings under the installed library's names."""
    given = config.get("rope_parameters")
    scaling = config.get("rope_scaling")
    if isinstance(given, Mapping):  # a config written by transformers 5
        theta = given.get("rope_theta", theta)
        scaling = given if given.get("rope_type", "default") != "default" else None
    scaling = _known(scaling)
    if _IS_OLD:
        return {"rope_theta": theta} | ({"rope_scaling": _old(name, scaling)} if scaling else {})
    parameters = {**scaling, "rope_theta": theta}
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    if "partial_rotary_factor" in keys:
        parameters["partial_rotary_factor"] = keys.pop("partial_rotary_factor")
    return {"rope_parameters": parameters}


def _known(scaling: Any) -> dict[str, Any]:
    """Leave out what no type of scaling has."""
    names = {"type", "rope_type", *ROPE_KEYS}
    return {name: value for name, value in (scaling or {}).items() if name in names}


def _old(name: str, scaling: dict[str, Any]) -> dict[str, Any] | None:
    """Return a rotary scaling as 4.41 wants it."""
    if name not in _FACTOR_ALONE:
        return scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind not in _KINDS:
        raise InputError(
            "unsupported-config",
            "rope_scaling",
            expected=f"{' or '.join(_KINDS)}, which this transformers has for {name}",
            got=str(kind),
            hint="transformers 5 has more of them",
        )
    return {"type": kind, "factor": float(scaling["factor"])}
