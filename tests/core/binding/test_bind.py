"""What a loader binds, and why names do not bind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN
from vita_ckpt import (
    AdapterError,
    InputError,
    Report,
    UsageError,
    explain,
    open_checkpoint,
    plan_merge_projector,
    plan_swap_tower,
    validate,
)
from vita_ckpt.checks.explain.loaders import loaders_of
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.result import PartSource

Tensors = dict[str, np.ndarray]
TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector.0.weight"
SIGLIP = "A2"


def changed(root: Path, change: Callable[[Tensors], None], **config: object) -> Path:
    """A2 and its tower with one change."""
    shutil.copytree(GOLDEN / SIGLIP, root, ignore=shutil.ignore_patterns("expected*", "inputs*"))
    base = root / "base"
    tensors = dict(load_file(base / "model.safetensors"))
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, **config}))
    return base


def nothing(_tensors: Tensors) -> None:
    """Change no tensor."""


def prefixed(prefix: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


def newer_names(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith(TOWER + "vision_model.")]:
        tensors[name.replace("vision_model.", "")] = tensors.pop(name)


def unmerged(tensors: Tensors) -> None:
    for layer in range(2):
        at = f"model.layers.{layer}.self_attn.q_proj."
        tensors[at + "base_layer.weight"] = tensors.pop(at + "weight")
        tensors[at + "lora_A.default.weight"] = np.ones((2, 64), np.float32)


def errors(report: Report) -> list[str]:
    return [one.rule for one in report.findings if one.severity == "error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (prefixed("_orig_mod."), "torch.compile"),
        (prefixed("module."), "DataParallel"),
        (prefixed("base_model.model."), "PEFT"),
        (newer_names, "transformers 5.6"),
        (unmerged, "PEFT layers that were not merged"),
    ],
)
def test_a_cause_is_one_finding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tensors], None],
    words: str,
) -> None:
    base = changed(tmp_path / "c", change)
    monkeypatch.chdir(tmp_path / "c")
    report = validate(base, kind="vita-checkpoint")
    assert errors(report) == ["foreign-prefix"]
    (found,) = [one for one in report.findings if one.severity == "error"]
    assert words in found.message
    assert found.hint
    (trace,) = [one for one in explain(base).traces if one.loader == "vita-1.5"]
    (told,) = [step for step in trace.steps if step.action == "names"]
    assert words in told.detail
    assert found.hint in told.detail


def test_a_wrong_tower_directory_is_one_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed(tmp_path / "c", nothing)
    monkeypatch.chdir(tmp_path / "c")
    (name,) = [p.name for p in (tmp_path / "c").iterdir() if p.name.startswith("tower")]
    path = tmp_path / "c" / name / "config.json"
    config = json.loads(path.read_text())
    inner = config.get("vision_config", config)
    inner["hidden_size"] *= 2
    path.write_text(json.dumps(config))
    assert "tower-directory-mismatch" in errors(validate(base))
    assert "shape-mismatch" not in errors(validate(base))


def test_the_value(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(GOLDEN / SIGLIP / "base")
    bound = bind(checkpoint.config or {}, checkpoint.tensors)
    assert not bound.mismatch
    assert bound.found == {name: name for name in checkpoint.tensors}
    assert {part.source for part in bound.parts.values()} == {PartSource.CHECKPOINT}
    without = {n: t for n, t in checkpoint.tensors.items() if not n.startswith(TOWER)}
    assert bind(checkpoint.config or {}, without).parts["vision_tower"].source is (
        PartSource.UNFILLED
    )


@pytest.mark.parametrize("loader", loaders_of(None))
def test_validate_and_explain_judge_alike_for_every_loader(
    loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VITA-1.0 fills the tower from its directory; plain transformers has no place for it."""
    base = changed(tmp_path / "c", nothing, unfreeze_vision_tower=False)
    monkeypatch.chdir(tmp_path / "c")
    (trace,) = [one for one in explain(base).traces if one.loader == loader]
    assert (errors(validate(base, loader=loader)) == []) == (trace.outcome == "complete")
    with pytest.raises(UsageError, match="unknown-loader"):
        validate(base, loader="vllm")


def test_a_tower_of_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(TOWER)]:
            del tensors[name]

    base = changed(tmp_path / "c", drop, unfreeze_vision_tower=False)
    monkeypatch.chdir(tmp_path / "c")
    assert errors(validate(base)) == ["tower-absent"]
    assert errors(validate(base, loader="vita-1.0")) == []


def test_a_state_predictor_is_dropped_by_every_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(tensors: Tensors) -> None:
        tensors["predictor_head.weight"] = np.ones((3, 64), np.float32)

    architectures = ["VITAFOQwen2ForCausalLM"]
    base = changed(tmp_path / "c", predict, model_type="vita-fo-Qwen2", architectures=architectures)
    monkeypatch.chdir(tmp_path / "c")
    assert errors(validate(base)) == []
    (trace,) = [one for one in explain(base).traces if one.loader == "vita-1.5"]
    assert (trace.outcome, trace.ignored) == ("complete", ("predictor_head.weight",))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_adapter_of_bad_values(tmp_path: Path, value: float) -> None:
    base = GOLDEN / SIGLIP / "base"
    tensors = {
        name: tensor
        for name, tensor in load_file(base / "model.safetensors").items()
        if name.startswith("model.mm_projector.")
    }
    tensors[PROJECTOR] = np.full_like(tensors[PROJECTOR], value)
    adapter = tmp_path / "mm_projector.safetensors"
    save_file(tensors, adapter)
    with pytest.raises(AdapterError, match="bad-adapter-values"):
        plan_merge_projector(base, adapter)
    allowed = plan_merge_projector(base, adapter, allow_bad_values=True)
    assert (allowed.request or {})["allow_bad_values"] is True
    tower = next(p for p in (GOLDEN / SIGLIP).iterdir() if p.name.startswith("tower"))
    with pytest.raises(AdapterError, match="bad-adapter-values"):
        plan_swap_tower(base, tower, projector=adapter)
    plan_swap_tower(base, tower, projector=adapter, allow_bad_values=True)


def test_a_quantised_language_model_takes_a_projector(tmp_path: Path) -> None:
    packed = "model.layers.0.mlp.up_proj.weight"

    def pack(tensors: Tensors) -> None:
        tensors[packed] = np.ones((tensors[packed].size // 2, 1), np.uint8)
        tensors[f"{packed}.absmax"] = np.ones(4, np.float32)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    base = changed(tmp_path / "c", pack, quantization_config=config)
    plan = plan_merge_projector(base, GOLDEN / SIGLIP / "base", dtype="bf16")
    target = plan.target()
    assert target.tensors[packed] == open_checkpoint(base).tensors[packed]
    assert target.tensors[PROJECTOR].dtype == "BF16"

    def pack_projector(tensors: Tensors) -> None:
        pack(tensors)
        tensors[PROJECTOR] = np.ones((tensors[PROJECTOR].size // 2, 1), np.uint8)

    base = changed(tmp_path / "d", pack_projector, quantization_config=config)
    with pytest.raises(InputError, match="packed-projector"):
        plan_merge_projector(base, GOLDEN / SIGLIP / "base")
