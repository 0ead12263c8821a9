"""Build the language models: transformers' Qwen2, Mixtral and Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.config_values import ROPE_KEYS, wrong_language_values
from vita_ckpt.core.anatomy.language_tensors import DEFAULTS
from vita_ckpt.errors import InputError, UsageError

# transformers 4.41 computes its rotary tables for this many positions in every layer, and extends
# them for longer texts. At a model's own maximum they would take a gigabyte.
_ROTARY_TABLE: Final = 1024


def build_language_model(config: Mapping[str, Any], attn: str | None = None) -> Any:
    """Build the ``…ForCausalLM`` of a VITA config, in the default dtype, its weights not set.

    ``attn`` is the library's attention implementation (``"eager"``, ``"sdpa"`` …), by default
    ``"sdpa"``. Raises InputError for a ``model_type`` that VITA does not have or a value that no
    model can have, UsageError for an ``attn`` that the library does not have, or not here.
    """
    family = check_language_values(config)
    keys = {key: config.get(key, default) for key, default in DEFAULTS[family].items()}
    keys["max_position_embeddings"] = min(keys["max_position_embeddings"], _ROTARY_TABLE)
    if keys.get("head_dim", 0) is None:
        keys["head_dim"] = keys["hidden_size"] // keys["num_attention_heads"]
    keys |= _rope(config, keys.pop("rope_theta"))
    kind = getattr(transformers, f"{family}Config")
    library_config = kind(**keys, attn_implementation=attn or "sdpa")
    try:
        model: Any = getattr(transformers, f"{family}ForCausalLM")(library_config)
    except (ImportError, ValueError) as error:
        if attn is None:
            raise
        raise UsageError(
            "unknown-attention",
            attn,
            expected="an attention implementation that the library has here: sdpa, eager …",
        ) from error
    if family == "Mixtral":
        for layer in model.model.layers:
            setattr(layer, _moe_attribute(layer), SparseMoe(keys))
    return model


def check_language_values(config: Mapping[str, Any]) -> str:
    """Return the family of the language model of a VITA config.

    Raises InputError ``unknown-model-type``, or ``unsupported-config`` for a value that no model
    can be built with.
    """
    backbone = BACKBONES.get(str(config.get("model_type")))
    if backbone is None:
        raise InputError(
            "unknown-model-type",
            config.get("model_type"),
            expected=f"one of {', '.join(BACKBONES)}",
            hint="the config.json is not one of a VITA checkpoint",
        )
    for wrong in wrong_language_values(backbone.language_model, config):
        raise InputError(
            "unsupported-config",
            wrong.key,
            expected=wrong.expected,
            got=wrong.got,
            hint="vita-ckpt validate lists every such key",
        )
    return backbone.language_model


def stored_name(name: str) -> str:
    """Return the checkpoint's name of a language model tensor, with Mixtral's names as in 4.41."""
    return name.replace(".mlp.gate.", ".block_sparse_moe.gate.").replace(
        ".mlp.experts.", ".block_sparse_moe.experts."
    )


class SparseMoe(nn.Module):
    """Mixtral's mixture of experts under its stored names, one expert at a time.

    The library's current module fuses all experts into two tensors, which take 4 GB in a layer of
    8x7B. Here only the experts that a token is routed to are read. Input and output are [B, T,
    hidden].
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.top_k: int = config["num_experts_per_tok"]
        self.gate = nn.Linear(width, config["num_local_experts"], bias=False)
        self.experts = nn.ModuleList(
            Expert(width, inner) for _ in range(config["num_local_experts"])
        )

    def forward(self, hidden: Tensor) -> Any:
        """Map [B, T, hidden] to [B, T, hidden].

        With transformers 4.41 the router's scores are returned too.
        """
        flat = hidden.reshape(-1, hidden.shape[-1])
        scores = functional.softmax(self.gate(flat), dim=1, dtype=torch.float)
        weights, chosen = torch.topk(scores, self.top_k, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(flat.dtype)
        result = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            tokens, rank = torch.where(chosen == index)
            if tokens.numel():
                result.index_add_(0, tokens, expert(flat[tokens]) * weights[tokens, rank, None])
        output = result.reshape(hidden.shape)
        # The decoder layer of 4.41 also expects the router's logits.
        return (output, scores) if _RETURNS_SCORES else output


class Expert(nn.Module):
    """One expert: a gated MLP, ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [n, width] to [n, width]."""
        result: Tensor = self.w2(functional.silu(self.w1(hidden)) * self.w3(hidden))
        return result


_RETURNS_SCORES: Final = int(transformers.__version__.split(".")[0]) < 5


def _moe_attribute(layer: nn.Module) -> str:
    return "block_sparse_moe" if hasattr(layer, "block_sparse_moe") else "mlp"


def _rope(config: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """Return the rotary settings under the installed library's names."""
    given = config.get("rope_parameters")
    scaling = config.get("rope_scaling")
    if isinstance(given, Mapping):  # a config written by transformers 5
        theta = given.get("rope_theta", theta)
        scaling = given if given.get("rope_type", "default") != "default" else None
    scaling = _known(scaling)
    if int(transformers.__version__.split(".")[0]) < 5:
        return {"rope_theta": theta} | ({"rope_scaling": scaling} if scaling else {})
    parameters = {**scaling, "rope_theta": theta}
    parameters.setdefault("rope_type", parameters.pop("type", "default"))
    return {"rope_parameters": parameters}


def _known(scaling: Any) -> dict[str, Any]:
    """Leave out what no type of scaling has."""
    names = {"type", "rope_type", *ROPE_KEYS}
    return {name: value for name, value in (scaling or {}).items() if name in names}
