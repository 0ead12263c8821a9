"""Upstream's own swap: equal to it, reversible, and mended where it is half done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fixtures.builder import read_tensors, snapshot
from tests.swap_tower.inputs import A8, config_of
from vita_ckpt import apply, inspect, load_model, plan_extract_projector, plan_swap_tower


def test_a8_is_upstreams_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)
    before = snapshot(A8)
    plan = plan_swap_tower("base", "tower-internvit", projector="new_projector/mm_projector.bin")
    out = Path(apply(plan, tmp_path / "out"))
    assert read_tensors(out) == read_tensors(A8 / "swapped_by_upstream")
    ours, theirs = config_of(out), config_of(A8 / "swapped_by_upstream")
    assert theirs.pop("_name_or_path") == "base"
    assert ours == theirs
    for name, source in (
        ("vision_tower_config.json", "config.json"),
        ("preprocessor_config.json", "preprocessor_config.json"),
    ):
        assert (out / name).read_bytes() == (A8 / "tower-internvit" / source).read_bytes()
    assert json.loads((out / "vita_ckpt.json").read_text())["needs_alignment"] is False

    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    monkeypatch.chdir(tmp_path)  # the tower's directory is out of reach: its config was carried
    model = load_model(out, device="cpu")
    with torch.inference_mode():
        logits = model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits
        text = model(input_ids=inputs["text_input_ids"]).logits
    assert (logits - expected["logits"]).abs().max() < 1e-5
    assert (text - expected["text_logits"]).abs().max() < 1e-5
    assert snapshot(A8) == before


def test_there_and_back_with_the_original_projector_is_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(A8)
    projector = apply(plan_extract_projector("base"), tmp_path / "old.safetensors")
    there = apply(
        plan_swap_tower("base", "tower-internvit", projector="reinit"), tmp_path / "there"
    )
    assert inspect(there).needs_alignment
    back = plan_swap_tower(there, "tower-siglip", projector=projector)
    out = apply(back, tmp_path / "back")
    assert read_tensors(Path(out)) == read_tensors(A8 / "base")
    assert config_of(out) == config_of(A8 / "base")
    assert not inspect(out).needs_alignment


def test_the_half_swapped_checkpoint_that_upstream_writes_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config of the new tower, tensors of the old one: what users bring."""
    monkeypatch.chdir(A8)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes((A8 / "base/model.safetensors").read_bytes())
    config = config_of(A8 / "base") | {"mm_vision_tower": "tower-internvit"}
    (broken / "config.json").write_text(json.dumps(config))
    plan = plan_swap_tower(broken, "tower-internvit", projector=A8 / "new_projector")
    out = Path(apply(plan, tmp_path / "out"))
    assert read_tensors(out) == read_tensors(A8 / "swapped_by_upstream")
    assert config_of(out)["mm_hidden_size"] == 96
