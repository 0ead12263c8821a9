"""The installed peft merges random runs: what is merged here is what it computes, bit for bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import nn

from vita_ckpt import open_checkpoint
from vita_ckpt.core.checkpoint import Tensor
from vita_ckpt.core.lora import Merged, merge_run
from vita_ckpt.core.lora_config import read_lora_config
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

pytestmark = pytest.mark.filterwarnings("ignore")

_VERSION = Version(version("peft"))
# On a CPU peft multiplies BF16 in float32 since then, with one rounding less; on a GPU it does not.
_ROUNDS_THRICE = Version("0.12") > _VERSION
_HAS_BIAS_DELTAS = Version("0.14") <= _VERSION
_HAS_TOKENS = Version("0.15") <= _VERSION
_IN_THE_BASES_DTYPE: dict[str, Any] = {} if _ROUNDS_THRICE else {"autocast_adapter_dtype": False}
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_LEAVES = ("q_proj", "v_proj", "down_proj")
_PATTERNS = ("q_proj", "layers.1.mlp.down_proj", r"layers\.\d+\.self_attn.v_proj", "v_proj")


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = nn.Linear(12, 12), nn.Linear(12, 6)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(20, 12, bias=False)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _Mlp()


class _Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(17, 12)
        self.layers = nn.ModuleList(_Layer() for _ in range(3))


class _Model(nn.Module):
    """A model with the names of a language model, which is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Inner()
        self.lm_head = nn.Linear(12, 17, bias=False)


def _redraw(model: nn.Module, names: tuple[str, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                drawn = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(drawn.to(parameter.dtype))


@st.composite
def settings_of_runs(draw: st.DrawFn) -> dict[str, Any]:
    """A LoraConfig that every version of peft under test takes."""
    dora = draw(st.booleans())
    targets: Any = draw(st.lists(st.sampled_from(_LEAVES), min_size=1, unique=True))
    chosen: dict[str, Any] = {}
    form = draw(
        st.sampled_from(("leaves", "pattern", "layers", "embedding", "bias", "tokens", "excluded"))
    )
    if form == "pattern":
        targets = rf"(.*\.)?layers\.[0-1]\..*({'|'.join(targets)})"
    elif form == "layers":
        chosen["layers_to_transform"] = draw(st.sampled_from(([0], [0, 2], 1)))
        chosen["layers_pattern"] = draw(st.sampled_from((None, "layers", ["blocks", "layers"])))
    elif form == "embedding":
        dora = False
        targets = [*targets, "embed_tokens", "lm_head"]
    elif form == "bias" and _HAS_BIAS_DELTAS:
        dora = False
        targets = ["q_proj", "v_proj"]
        chosen["lora_bias"] = True
    elif form == "tokens" and _HAS_TOKENS:
        rows = draw(st.lists(st.integers(0, 16), min_size=1, unique=True))
        chosen["trainable_token_indices"] = {"embed_tokens": rows}
        chosen["init_lora_weights"] = draw(st.sampled_from((True, "gaussian")))
    elif form == "excluded" and _HAS_BIAS_DELTAS:
        chosen["exclude_modules"] = draw(
            st.sampled_from((["layers.1.mlp.down_proj"], r".*\.1\..*"))
        )
    # In the order that adapter_config.json has them in: peft sorts the keys when it saves.
    patterns = st.dictionaries(st.sampled_from(_PATTERNS), st.integers(1, 7), max_size=3).map(
        lambda table: dict(sorted(table.items()))
    )
    return {
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.integers(1, 33)),
        "use_rslora": draw(st.booleans()),
        "use_dora": dora,
        "target_modules": targets,
        "rank_pattern": draw(patterns),
        "alpha_pattern": draw(patterns),
        "bias": draw(st.sampled_from(("none", "all"))),
        "modules_to_save": draw(st.sampled_from((None, ["lm_head"])))
        if form != "embedding"
        else None,
        "fan_in_fan_out": draw(st.booleans()),
        **chosen,
    }


def _merged_by_peft(
    folder: Path, chosen: dict[str, Any], dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """Write a base and a run, and return what peft makes of them."""
    import peft  # not where every worker collects the tests

    model = _Model().to(dtype)
    _redraw(model, ("",), seed)
    (folder / "base").mkdir()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    (folder / "base" / "config.json").write_text(json.dumps({"tie_word_embeddings": False}))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**chosen), **_IN_THE_BASES_DTYPE)
    trained = (
        "lora_",
        "modules_to_save",
        "trainable_tokens",
        *(("bias",) if chosen["bias"] == "all" else ()),
    )
    _redraw(wrapped, trained, seed + 1)
    wrapped.save_pretrained(str(folder / "run"), save_embedding_layers=False)
    on_gpu = {} if _ROUNDS_THRICE or dtype is not torch.bfloat16 else dict(_thrice(wrapped))
    merged: nn.Module = wrapped.merge_and_unload()
    return {name: tensor.clone() for name, tensor in merged.state_dict().items()} | on_gpu


def _thrice(wrapped: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that are merged as peft does it on a GPU, in BF16 from beginning to end."""
    for name, layer in wrapped.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        place = f"{name.removeprefix('base_model.model.')}.weight"
        weight, scale = layer.get_base_layer().weight.detach(), layer.scaling["default"]
        if layer.lora_embedding_A:
            a, b = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
            yield place, weight + (b @ a).T.detach() * scale
            continue
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        merged = weight + (b @ a).detach() * scale
        if layer.lora_magnitude_vector:
            magnitude = layer.lora_magnitude_vector["default"].weight.detach()
            merged *= (magnitude / torch.linalg.norm(merged, dim=1).to(merged.dtype))[:, None]
        yield place, merged


def _merged_here(folder: Path) -> tuple[Merged, dict[str, torch.Tensor]]:
    base, run = open_checkpoint(folder / "base"), open_checkpoint(folder / "run")
    config, problems = read_lora_config(run.adapter_config or {})
    assert not problems
    merged = merge_run(run, base, config)
    assert not merged.problems
    found = load_file(folder / "base" / "model.safetensors")
    return merged, found | {name: _values(t, name) for name, t in merged.tensors.items()}


def _values(tensor: Tensor, name: str) -> torch.Tensor:
    with Inputs() as inputs:
        data = b"".join(tensor_bytes(tensor, inputs, name))
    return torch.frombuffer(bytearray(data), dtype=_DTYPES[tensor.dtype]).reshape(tensor.shape)


def _units(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many float32 values lie between two tensors, at most."""
    bits = [t.contiguous().numpy().view(np.int32).astype(np.int64) for t in (one, other)]
    ordered = [np.where(b < 0, -(b & 0x7FFFFFFF), b) for b in bits]
    return int(np.abs(ordered[0] - ordered[1]).max(initial=0))


@given(settings_of_runs(), st.sampled_from(sorted(_DTYPES)), st.integers(0, 1 << 20))
@settings(max_examples=30, phases=(Phase.generate,))
def test_it_is_what_peft_merges(chosen: dict[str, Any], dtype: str, seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = _merged_by_peft(folder, chosen, _DTYPES[dtype], seed)
        merged, found = _merged_here(folder)
    assert merged.deltas
    assert not merged.untrained and not merged.ignored
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        got = found[name]
        assert got.dtype == tensor.dtype, name
        if dtype == "F32":
            assert _units(got, tensor) <= 2, name
        else:
            assert torch.equal(got, tensor), name
