"""A deployment folder of vLLM: config.json is the server's, VITA's is origin_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    checkpoint_config,
    mm_projector,
    tower_config,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from vita_ckpt import (
    InputError,
    Plan,
    apply,
    apply_in_place,
    diff,
    explain,
    inspect,
    plan_merge_projector,
    plan_set,
    plan_swap_tower,
    undo,
    validate,
)

SPEC = Spec()


def serving() -> dict[str, Any]:
    """What VITA's demo puts in the place of config.json, as far as it matters."""
    config = checkpoint_config(SPEC, "F32")
    return {
        "architectures": ["Qwen2ForConditionalGeneration"],
        "image_token_index": 51000,
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": config["hidden_size"],
        },
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "auto_map": {"AutoConfig": "configuration_intern_vit.InternVisionConfig"},
            **tower_config(SPEC.tower),
        },
        "audio_config": {"model_type": "whale"},
        "tokenizer_model_max_length": 4600,
        "vocab_size": SPEC.vocab,
    }


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    root = write_checkpoint(tmp_path / "demo", SPEC)
    write_tower(tmp_path / "tower-internvit", SPEC.tower)
    (root / "config.json").rename(root / "origin_config.json")
    (root / "config.json").write_text(json.dumps(serving()))
    return root


def made(plan: Plan, out: Path) -> Path:
    return Path(apply(plan, out))


def read(root: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / name).read_text())
    return content


def test_it_is_read_as_vita(deployed: Path) -> None:
    found = inspect(deployed)
    assert (found.kind, found.config_file) == ("vita-checkpoint", "origin_config.json")
    assert (found.model_type, found.disagreements) == ("vita-Qwen2", ())
    assert validate(deployed).findings == ()


def test_which_config_each_loader_reads_is_said(deployed: Path) -> None:
    traces = {trace.loader: trace for trace in explain(deployed).traces}
    assert traces["vita-1.5"].outcome == "complete"
    steps = [step.detail for step in traces["vita-1.5"].steps if step.action == "config"]
    assert "origin_config.json" in steps[0]
    assert traces["transformers-4.41"].stopped_by == "unknown-model-type"


def test_set_changes_both(deployed: Path, tmp_path: Path) -> None:
    out = made(plan_set(deployed, {"tokenizer_model_max_length": 9000}), tmp_path / "out")
    assert read(out, "origin_config.json")["tokenizer_model_max_length"] == 9000
    assert read(out, "config.json") == {**serving(), "tokenizer_model_max_length": 9000}
    found = diff(deployed, out)
    assert [key.key for key in found.config] == ["tokenizer_model_max_length"]
    assert [file.name for file in found.files] == ["config.json"]


def test_a_key_that_the_server_does_not_have_is_not_added(deployed: Path, tmp_path: Path) -> None:
    out = made(plan_set(deployed, {"mm_vision_tower": "my/InternViT"}), tmp_path / "out")
    assert read(out, "config.json") == serving()
    assert read(out, "origin_config.json")["mm_vision_tower"] == "my/InternViT"


def test_another_tower_is_in_both(deployed: Path, tmp_path: Path) -> None:
    tower = TowerSpec(width=16, layers=3, mlp=24)
    donor = write_tower(tmp_path / "InternViT-new", tower)
    adapter = write_adapter(tmp_path / "p.safetensors", mm_projector("mlp2x_gelu", 64, 16))
    plan = plan_swap_tower(deployed, donor, projector=adapter)
    assert any("origin_config.json" in note for note in plan.notes)
    out = made(plan, tmp_path / "out")
    inner = read(out, "config.json")["vision_config"]
    assert (inner["hidden_size"], inner["num_hidden_layers"]) == (16, 3)
    assert inner["architectures"] == ["InternVisionModel"]
    assert "auto_map" in inner
    assert read(out, "origin_config.json")["mm_hidden_size"] == 64
    assert {one.rule for one in validate(out).findings} == {"tower-path-absolute"}


def test_a_tower_that_the_server_cannot_build_is_refused(deployed: Path, tmp_path: Path) -> None:
    donor = write_tower(tmp_path / "clip", TowerSpec("clip"))
    with pytest.raises(InputError, match="serving-config-cannot-follow"):
        plan_swap_tower(deployed, donor, projector="reinit")


def test_in_place_and_back(deployed: Path) -> None:
    before = {p.name: p.read_bytes() for p in deployed.iterdir() if p.is_file()}
    apply_in_place(plan_set(deployed, {"tokenizer_model_max_length": 9000}))
    assert read(deployed, "config.json")["tokenizer_model_max_length"] == 9000
    assert read(deployed, "origin_config.json")["tokenizer_model_max_length"] == 9000
    undo(deployed)
    assert {p.name: p.read_bytes() for p in deployed.iterdir() if p.is_file()} == before


def test_a_projector_is_merged_and_the_server_s_config_stays(
    deployed: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "p.safetensors", mm_projector("mlp2x_gelu", 32, 16))
    out = made(plan_merge_projector(deployed, adapter), tmp_path / "out")
    assert read(out, "config.json") == serving()
    assert validate(out).findings == ()


def test_a_server_s_config_alone_is_no_deployment(deployed: Path) -> None:
    (deployed / "origin_config.json").write_text('{"model_type": "qwen2"}')
    assert inspect(deployed).config_file == "config.json"
