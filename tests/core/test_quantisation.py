"""Quantised checkpoints: the method and the true number of parameters, said by every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest

from fixtures.builder import (
    Shape,
    Spec,
    checkpoint_config,
    checkpoint_shapes,
    mm_projector,
    typed,
    write_adapter,
    write_checkpoint,
    write_model,
)
from vita_ckpt import (
    AdapterError,
    explain,
    inspect,
    plan_convert,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_lora,
    plan_merge_projector,
    validate,
)

Typed = dict[str, tuple[str, Shape]]


def gptq(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.qweight": ("I32", (wide // 8, out)),
        f"{module}.qzeros": ("I32", (1, out // 8)),
        f"{module}.scales": ("F16", (1, out)),
        f"{module}.g_idx": ("I32", (wide,)),
    }


def awq(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.qweight": ("I32", (wide, out // 8)),
        f"{module}.qzeros": ("I32", (1, out // 8)),
        f"{module}.scales": ("F16", (1, out)),
    }


def nf4(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.weight": ("U8", (out * wide // 2, 1)),
        f"{module}.weight.absmax": ("U8", (out * wide // 64,)),
        f"{module}.weight.quant_map": ("F32", (16,)),
        f"{module}.weight.nested_absmax": ("F32", (1,)),
        f"{module}.weight.nested_quant_map": ("F32", (256,)),
        f"{module}.weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
    }


def int8(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.weight": ("I8", (out, wide)),
        f"{module}.SCB": ("F32", (out,)),
        f"{module}.weight_format": ("U8", ()),
    }


def fp8(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.weight": ("F8_E4M3", (out, wide)),
        f"{module}.weight_scale_inv": ("F32", (1, 1)),
    }


def compressed(module: str, out: int, wide: int) -> Typed:
    return {
        f"{module}.weight_packed": ("I32", (out, wide // 8)),
        f"{module}.weight_scale": ("BF16", (out, 1)),
        f"{module}.weight_shape": ("I64", (2,)),
    }


@dataclass(frozen=True)
class Method:
    """A method of quantisation: what inspect calls it, one module's tensors, and the config."""

    label: str
    pack: Callable[[str, int, int], Typed]
    config: dict[str, Any]


METHODS = {
    "gptq": Method("GPTQ, 4 bits", gptq, {"quant_method": "gptq", "bits": 4}),
    "awq": Method("AWQ, 4 bits", awq, {"quant_method": "awq", "bits": 4}),
    "nf4": Method(
        "bitsandbytes, 4 bits", nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "int8": Method(
        "bitsandbytes, 8 bits", int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}
    ),
    "fp8": Method("FP8", fp8, {"quant_method": "fp8"}),
    "compressed": Method(
        "compressed-tensors, 4 bits",
        compressed,
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        },
    ),
}
SPEC = Spec(mlp=32)
SHAPES = checkpoint_shapes(SPEC)
PARAMETERS = sum(map(prod, SHAPES.values()))
LINEAR = ("_proj.weight",)
PROJECTOR = ("mm_projector.0.weight",)
TOWER = ("attn.proj.weight",)


def quantised(root: Path, name: str, *ends: str, config: bool = True) -> Path:
    """A checkpoint whose weights with these ends of names are quantised."""
    tensors: Typed = {}
    for tensor, shape in SHAPES.items():
        if tensor.endswith(ends):
            tensors |= METHODS[name].pack(tensor.removesuffix(".weight"), *shape)
        else:
            tensors |= typed({tensor: shape})
    values = checkpoint_config(SPEC, "F32")
    if config:
        values["quantization_config"] = METHODS[name].config
    return write_model(root, tensors, values)


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_method_and_the_true_count_are_said(tmp_path: Path, name: str, config: bool) -> None:
    root = quantised(tmp_path / "q", name, *LINEAR, config=config)
    found = inspect(root)
    label = METHODS[name].label
    assert str(found.quantisation).startswith(label.partition(",")[0])
    assert not config or found.quantisation == label
    assert found.parameters == PARAMETERS
    assert sum(part.parameters for part in found.parts) == PARAMETERS
    (said,) = validate(root).findings
    assert said.rule == "other-kind"
    assert f"{PARAMETERS:,} parameters" in said.message
    assert label.partition(",")[0] in said.message
    (remark,) = explain(root).remarks
    assert f"{PARAMETERS:,} parameters" in remark


@pytest.mark.parametrize("name", METHODS)
def test_a_quantised_part_is_neither_extracted_nor_merged(tmp_path: Path, name: str) -> None:
    root = quantised(tmp_path / "q", name, *PROJECTOR, *TOWER)
    base = write_checkpoint(tmp_path / "base", SPEC)
    plans: tuple[Callable[[], object], ...] = (
        lambda: plan_extract_projector(root),
        lambda: plan_extract_tower(root),
        lambda: plan_merge_projector(base, root),
    )
    for plan in plans:
        with pytest.raises(AdapterError, match="quantised-part") as error:
            plan()
        assert METHODS[name].label.partition(",")[0] in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_the_unpacked_projector_beside_quantised_layers_is_extracted(
    tmp_path: Path, name: str
) -> None:
    root = quantised(tmp_path / "q", name, *LINEAR)
    plan = plan_extract_projector(root)
    assert len(plan.tensor_edits) == 4
    assert any(f"{PARAMETERS:,} parameters" in note for note in plan.notes)


@pytest.mark.parametrize("name", METHODS)
def test_deltas_are_not_added_to_codes(tmp_path: Path, name: str) -> None:
    root = quantised(tmp_path / "q", name, *LINEAR)
    module = "model.layers.0.mlp.up_proj"
    out, wide = SHAPES[f"{module}.weight"]
    deltas = {"lora_A.weight": (2, wide), "lora_B.weight": (out, 2)}
    run = write_model(
        tmp_path / "run",
        typed({f"base_model.model.{module}.{n}": shape for n, shape in deltas.items()}),
        None,
        name="adapter_model.safetensors",
    )
    settings = {"r": 2, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (run / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(AdapterError, match=r"lora-unsupported.*before it was quantised") as error:
        plan_merge_lora(root, run)
    assert METHODS[name].label.partition(",")[0] in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_conversion_leaves_codes_and_scales(tmp_path: Path, name: str) -> None:
    root = quantised(tmp_path / "q", name, *LINEAR)
    plan = plan_convert(root, dtype="f16")
    changed = {edit.name for edit in plan.tensor_edits}
    assert "model.norm.weight" in changed
    assert not {n for n in changed if ".mlp." in n and "vision_tower" not in n}
    assert any("none is dequantised" in note for note in plan.notes)


def test_float8_without_scales_is_a_dtype_and_no_method(tmp_path: Path) -> None:
    shapes = mm_projector("mlp2x_gelu", 32, 16)
    file = write_adapter(tmp_path / "a.safetensors", shapes, dtype="F8_E4M3")
    assert inspect(file).quantisation is None
