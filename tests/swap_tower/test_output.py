"""What a swap writes: loadable elsewhere, the same every time, without the old tower's files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from fixtures.builder import mm_projector, read_tensors, snapshot
from tests.swap_tower.inputs import A8, config_of, tower_at
from vita_ckpt import apply, load_plan, open_checkpoint, plan_swap_tower, save_plan


def test_an_output_loads_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)
    plan = plan_swap_tower("base", "tower-internvit", projector="new_projector")
    out = Path(apply(plan, tmp_path / "out"))
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.vision_tower.vision_tower.embeddings.class_embedding"].shape == (1, 1, 24)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").symlink_to(out / "model.safetensors")
    (plain / "config.json").write_text(json.dumps(config_of(out) | {"model_type": "qwen2"}))
    model = transformers.Qwen2ForCausalLM.from_pretrained(plain)
    expected = load_file("expected.safetensors")["text_logits"]
    with torch.inference_mode():
        logits = model(load_file("inputs.safetensors")["text_input_ids"]).logits
    assert (logits - expected).abs().max() < 1e-5


def test_what_is_drawn_anew_is_the_same_every_time(tmp_path: Path, base: Path) -> None:
    tower = tower_at(tmp_path, "clip")
    outs = [
        apply(plan_swap_tower(base, tower, projector="reinit", seed=seed), tmp_path / name)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    ]
    one, two, other = (read_tensors(Path(out)) for out in outs)
    assert one == two
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {f"model.mm_projector.{n}" for n in mm_projector("mlp2x_gelu", 8, 16)}
    mark = json.loads((Path(outs[0]) / "vita_ckpt.json").read_text())
    assert mark["needs_alignment"] is True
    assert mark["operations"][0]["seed"] == 3
    assert str(tmp_path) not in json.dumps(mark)


def test_a_tower_without_an_image_processor_is_noted(tmp_path: Path, base: Path) -> None:
    """Loaders read the one in the tower's directory; EVA-CLIP's is code."""
    for family, expected in (("clip", True), ("eva", False)):
        tower = tower_at(tmp_path, family)
        directory = tower if tower.is_dir() else tower.parent
        (directory / "preprocessor_config.json").unlink(missing_ok=True)
        notes = plan_swap_tower(base, tower, projector="reinit").notes
        assert any("no preprocessor_config.json" in note for note in notes) is expected


def files_without_times(root: Path) -> dict[str, bytes]:
    """The files of a directory; the two runs may not have ended in the same second."""
    files = {name: content for name, (_, _, content) in snapshot(root).items()}
    return {name: re.sub(rb'"time": "[^"]*"', b"", content) for name, content in files.items()}


def test_a_saved_swap_runs_later(tmp_path: Path, base: Path) -> None:
    plan = plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit")
    save_plan(plan, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again.target().tensors == plan.target().tensors
    one, two = (Path(apply(p, tmp_path / n)) for p, n in ((plan, "one"), (again, "two")))
    assert files_without_times(one) == files_without_times(two)


def test_the_old_towers_files_do_not_stay(tmp_path: Path, base: Path) -> None:
    first = apply(
        plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit"), tmp_path / "first"
    )
    assert (Path(first) / "preprocessor_config.json").exists()
    second = plan_swap_tower(first, tower_at(tmp_path, "eva"), projector="reinit")
    out = Path(apply(second, tmp_path / "second"))
    names = {p.name for p in out.iterdir()}
    assert not names & {"preprocessor_config.json", "vision_tower_config.json"}
    assert "vita_ckpt.json" in names
    assert len(open_checkpoint(out).shards) == 3
