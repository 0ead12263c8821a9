"""Surgery on VITA's relatives: what upstream's own merges and swaps make, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.conftest import golden_cases
from vita_ckpt import (
    InputError,
    Plan,
    UsageError,
    VitaCkptError,
    apply,
    inspect,
    load_plan,
    open_checkpoint,
    plan_convert,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_lora,
    plan_merge_projector,
    plan_resize_embeddings,
    plan_set,
    plan_swap_tower,
    save_plan,
    validate,
)

# Where a config was read from is no property of what it says.
_OF_ORIGIN = ("_name_or_path",)


def tensors_of(root: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for file in sorted(root.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(made: Path, expected: Path) -> None:
    """Both have the same tensors, bit for bit, and the same config."""
    ours, theirs = tensors_of(made), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert np.array_equal(ours[name], tensor), name
    configs = [json.loads((root / "config.json").read_text()) for root in (made, expected)]
    kept = [{k: v for k, v in one.items() if k not in _OF_ORIGIN} for one in configs]
    assert kept[0] == kept[1]


def copied(case: Path, root: Path) -> Path:
    ignored = shutil.ignore_patterns("expected*", "inputs*", "merged*", "swapped*")
    shutil.copytree(case, root, ignore=ignored)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def sets(root: Path, **keys: Any) -> None:
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, **keys}))


@pytest.mark.parametrize("case", golden_cases("F5", "F11"), ids=lambda case: case.name)
def test_a_lora_run_on_a_plain_language_model(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case)
    plan = plan_merge_lora("base_llm", "run")
    same(Path(apply(plan, tmp_path / "out")), case / "merged_by_upstream")
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").target().tensors == plan.target().tensors


@pytest.mark.parametrize("case", golden_cases("F6", "F12"), ids=lambda case: case.name)
def test_a_projector_run_on_a_plain_language_model(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case)
    plan = plan_merge_projector("base_llm", "run")
    made = Path(apply(plan, tmp_path / "out"))
    same(made, case / "merged_by_upstream")
    assert all(one.severity != "error" for one in validate(made).findings)


def test_a_swap_to_another_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in golden_cases("F17"):
        monkeypatch.chdir(case)
        plan = plan_swap_tower(
            "base", "tower-clip48", projector=Path("new_projector/mm_projector.bin")
        )
        same(Path(apply(plan, tmp_path / "out")), case / "swapped_by_upstream")


def test_the_trained_tower_of_a_run_comes_with_its_projector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for case in golden_cases("F11"):
        monkeypatch.chdir(case)
        target = plan_merge_projector("base_llm", "run").target()
        trained = open_checkpoint("run").tensors
        own = {n: t for n, t in target.tensors.items() if n.startswith("model.vision_tower.")}
        assert len(own) == 64
        assert all(tensor == trained[f"base_model.model.{name}"] for name, tensor in own.items())


def test_a_swap_takes_no_run_of_a_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in golden_cases("F11", "F12"):
        monkeypatch.chdir(case)
        with pytest.raises(InputError, match="other-family") as error:
            plan_swap_tower("base_llm", "tower-siglip", projector="run")
        assert "merge-projector" in error.value.hint


def test_llava_takes_no_siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    (siglip,) = golden_cases("F12")
    for case in golden_cases("F1", "F16"):
        monkeypatch.chdir(case)
        for path in (None, "google/siglip-so400m-patch14-384"):
            with pytest.raises(InputError, match="tower-path-misleads") as error:
                plan_swap_tower(
                    "base", siglip / "tower-siglip", tower_path=path, projector="reinit"
                )
            assert "builds no SigLIP" in error.value.hint


def test_next_stores_a_siglip_without_its_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = golden_cases("F13")
    monkeypatch.chdir(case)
    with pytest.raises(InputError, match="tower-path-misleads") as error:
        plan_swap_tower("base", "tower-siglip", projector="keep")
    assert "--tower-path" in error.value.hint
    plan = plan_swap_tower(
        "base",
        "tower-siglip",
        tower_path="google/siglip-so400m-patch14-384",
        projector="keep",
    )
    made = Path(apply(plan, tmp_path / "out"))
    own = load_file("tower-siglip/model.safetensors")
    stored = {n: t for n, t in tensors_of(made).items() if n.startswith("model.vision_tower.")}
    assert len(stored) == 53
    prefix = "model.vision_tower.vision_tower."
    assert all(np.array_equal(t, own[n.removeprefix(prefix)]) for n, t in stored.items())
    assert all(one.severity != "error" for one in validate(made).findings)
    tower = Path(apply(plan_extract_tower(made), tmp_path / "tower"))
    assert json.loads((tower / "config.json").read_text())["num_hidden_layers"] == 3
    assert validate(tower).findings == ()


def test_the_newline_comes_with_the_projector(tmp_path: Path) -> None:
    (case,) = golden_cases("F13")
    plan = plan_extract_projector(case / "base")
    names = set(plan.target().tensors)
    assert "model.image_newline" in names
    file = Path(apply(plan, tmp_path / "mm_projector.safetensors"))
    root = copied(case, tmp_path / "c")
    tensors = tensors_of(root / "base")
    tensors.pop("model.image_newline")
    save_file(tensors, root / "base/model.safetensors", metadata={"format": "pt"})
    assert "newline-absent" in [one.rule for one in validate(root / "base").findings]
    merged = plan_merge_projector(root / "base", file).target()
    assert "model.image_newline" in merged.tensors
    plain = plan_extract_projector(case / "base", extras=["embed_tokens"]).target()
    assert "model.embed_tokens.weight" in plain.tensors
    with pytest.raises(UsageError, match="extra-not-found"):
        plan_extract_projector(case / "base", extras=["nothing"])


def test_a_run_that_lacks_its_newline_makes_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in golden_cases("F6"):
        root = copied(case, tmp_path / "c")
        monkeypatch.chdir(root)
        sets(root / "run", mm_patch_merge_type="spatial_unpad")
        assert "newline-absent" in [one.rule for one in validate("run").findings]
        with pytest.raises(InputError, match="newline-absent"):
            plan_merge_projector("base_llm", "run")


def test_rows_that_a_lora_run_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of added tokens are in no file: upstream makes both tables of what is in memory."""
    for case in golden_cases("F5"):
        root = copied(case, tmp_path / "c")
        monkeypatch.chdir(root)
        sets(root / "run", mm_use_im_start_end=True, vocab_size=194)
        rules = [one.rule for one in validate("run").findings]
        assert rules.count("run-rows-absent") == 2
        with pytest.raises(VitaCkptError, match="run-rows-absent"):
            plan_merge_lora("base_llm", "run")


def test_rows_that_a_projector_run_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only training takes such a run: upstream's loader raises over the larger table."""
    for case in golden_cases("F6"):
        root = copied(case, tmp_path / "c")
        monkeypatch.chdir(root)
        sets(root / "run", mm_use_im_start_end=True, vocab_size=194)
        held = torch.load("run/mm_projector.bin", weights_only=True)
        held["model.embed_tokens.weight"] = torch.ones(194, 48)
        torch.save(held, "run/mm_projector.bin")
        assert "run-not-loadable" in [one.rule for one in validate("run").findings]
        with pytest.raises(VitaCkptError, match="run-rows-absent") as error:
            plan_merge_projector("base_llm", "run")
        assert "resize-embeddings" in error.value.hint
        resized = Path(apply(plan_resize_embeddings("base_llm", tokens=194), root / "resized"))
        target = plan_merge_projector(resized, "run", extras=["embed_tokens"]).target()
        assert target.tensors["model.embed_tokens.weight"].shape == (194, 48)
        assert (target.config or {})["vocab_size"] == 194


def test_keys_are_set_by_the_family(tmp_path: Path) -> None:
    (case,) = golden_cases("F16")
    base = case / "base"
    target = plan_set(base, {"mm_vision_select_layer": -1, "unfreeze_mm_vision_tower": True})
    assert (target.target().config or {})["mm_vision_select_layer"] == -1
    with pytest.raises(UsageError, match="unknown-config-key"):
        plan_set(base, {"unfreeze_vision_tower": True})
    with pytest.raises(UsageError, match="invalid-config-value"):
        plan_set(base, {"mm_projector_type": "ldp"})
    with pytest.raises(UsageError, match="invalid-config-value"):
        plan_set(base, {"mm_vision_select_feature": "cls"})


@pytest.mark.parametrize(
    "case", golden_cases("F3", "F9", "F13", "F14", "F16"), ids=lambda case: case.name
)
def test_a_conversion_keeps_the_model(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(case)
    before = open_checkpoint("base")
    plan: Plan = plan_convert("base", names="upstream", max_shard_size=0)
    made = Path(apply(plan, tmp_path / "out"))
    assert open_checkpoint(made).tensors.keys() == before.tensors.keys()
    assert inspect(made).kind == inspect("base").kind
    assert all(one.severity != "error" for one in validate(made).findings)


def test_audio_is_vitas_alone() -> None:
    from vita_ckpt import plan_merge_audio_adapter

    (case,) = golden_cases("F16")
    with pytest.raises(InputError, match="other-family"):
        plan_merge_audio_adapter(case / "base", case / "base")
