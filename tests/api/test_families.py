"""VITA's relatives in validate and explain: upstream's checkpoints, and changes of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixtures.builder import (
    TowerSpec,
    below,
    mm_projector,
    typed,
    vision_tower,
    write_model,
    write_tower,
)
from tests.conftest import golden_cases
from vita_ckpt import Report, explain, inspect, validate
from vita_ckpt.core.anatomy.families import FAMILIES
from vita_ckpt.core.anatomy.language_tensors import expected_shapes

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, Any]], object]
TOWER = "model.vision_tower.vision_tower.vision_model."
PROJECTOR = "model.mm_projector."

# What no whole model is, of the cases of every family.
_RUNS = (5, 6, 11, 12)
WHOLE = golden_cases(*(f"F{number}" for number in range(1, 18) if number not in _RUNS))
# One case of each family in which the checkpoint's tower wins, and one in which it does not.
MUTATED = golden_cases("F2", "F10", "F7", "F13", "F14")


def errors(report: Report) -> list[str]:
    return [one.rule for one in report.findings if one.severity == "error"]


def rules(report: Report) -> list[str]:
    return [one.rule for one in report.findings]


def changed(case: Path, root: Path, change: Change) -> Path:
    """A copy of a case in one file with one change of its tensors and its config."""
    ignored = shutil.ignore_patterns(
        "expected*", "inputs*", "merged*", "swapped*", "*.safetensors.*"
    )
    shutil.copytree(case, root, ignore=ignored)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    base = root / "base"
    files = sorted(base.glob("*.safetensors"))
    tensors: Tensors = {}
    for file in files:
        tensors |= load_file(file)
        file.unlink()
    config = json.loads((base / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps(config))
    return base


def sets(**keys: Any) -> Change:
    return lambda _, config: config.update(keys)


def without(prefix: str) -> Change:
    return lambda tensors, _: [tensors.pop(n) for n in list(tensors) if n.startswith(prefix)]


def lacks(key: str) -> Change:
    return lambda _, config: config.pop(key, None)


def outcome(base: Path) -> str:
    name = inspect(base).kind.removesuffix("-checkpoint")
    (trace,) = [one for one in explain(base).traces if one.loader == name]
    return trace.outcome


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_what_upstream_loads_is_valid(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)
    assert errors(validate("base")) == []
    assert outcome(Path("base")) == "complete"
    assert inspect("base").disagreements == ()


# Each change, by what it does to the binding.
MUTATIONS: dict[str, Change] = {
    "nothing": lambda tensors, config: None,
    "no projector": without(PROJECTOR),
    "a part of the projector": without(f"{PROJECTOR}2."),
    "no key of the projector's type": lacks("mm_projector_type"),
    "another type of projector": sets(mm_projector_type="linear"),
    "a type that VITA alone has": sets(mm_projector_type="spp_v1"),
    "no tower": without("model.vision_tower."),
    "one tensor of the tower": without(f"{TOWER}encoder.layers.0.layer_norm1"),
    "no embeddings": without("model.embed_tokens."),
    "no head": without("lm_head."),
    "a layer": without("model.layers.1."),
    "more rows": sets(vocab_size=200),
    "another width of features": sets(mm_hidden_size=48),
    "unfrozen": sets(unfreeze_mm_vision_tower=True, unfreeze_vision_tower=True),
    "training goes on": sets(continuous_training=True),
    "tower loaded last": sets(
        delay_load=True, mm_tunable_parts="mm_mlp_adapter", unfreeze_mm_vision_tower=False
    ),
    "a newline": sets(mm_patch_merge_type="spatial_unpad"),
    "no newline": without("model.image_newline"),
    "no layer": lacks("mm_vision_select_layer"),
    "another feature": sets(mm_vision_select_feature="cls"),
    "a path of no tower": sets(mm_vision_tower="google/siglip-base"),
    "prompts that training alone has": sets(tune_mm_mlp_adapter=True, mm_use_im_start_end=True),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("case", MUTATED, ids=lambda case: case.name)
def test_validate_and_explain_judge_alike(
    case: Path, mutation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = changed(case, tmp_path / "c", MUTATIONS[mutation])
    monkeypatch.chdir(tmp_path / "c")
    assert (errors(validate("base")) == []) == (outcome(base) == "complete")


@pytest.mark.parametrize(
    ("name", "change", "rule"),
    [
        ("F16", None, "tower-unused"),
        ("F7", None, "tower-differs"),
        ("F1", sets(unfreeze_mm_vision_tower=True), "tower-absent"),
        ("F10", without("model.vision_tower."), "tower-absent"),
        ("F13", without("model.vision_tower."), "tower-absent"),
        ("F13", without("model.image_newline"), "newline-absent"),
        ("F15", sets(unfreeze_mm_vision_tower=True), "tower-not-loadable"),
        ("F14", sets(mm_vision_select_feature="cls"), "image-fails"),
        ("F2", lacks("mm_projector_type"), "config-weights-mismatch"),
        ("F2", lacks("mm_vision_select_layer"), "config-type"),
    ],
)
def test_what_is_wrong_is_said_by_the_familys_rules(
    name: str, change: Change | None, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in golden_cases(name):
        root = case
        if change is not None:
            changed(case, tmp_path / "c", change)
            root = tmp_path / "c"
        monkeypatch.chdir(root)
        assert rule in rules(validate("base"))


def test_a_tower_that_nothing_needs_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in golden_cases("F1", "F7"):
        changed(case, tmp_path / case.name, without("model.vision_tower."))
        monkeypatch.chdir(tmp_path / case.name)
        assert rules(validate("base")) == []


def test_bunnys_trained_tower_is_read_from_safetensors_alone(tmp_path: Path) -> None:
    from vita_ckpt import apply, plan_convert

    for case in golden_cases("F10"):
        changed(case, tmp_path / "c", lambda tensors, config: None)
        plan = plan_convert(tmp_path / "c/base", format="torch")
        apply(plan, tmp_path / "c/bin")
        assert errors(validate(tmp_path / "c/bin")) == ["tower-not-loadable"]
        assert outcome(tmp_path / "c/bin") == "stops"


SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "head_dim": 4,
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}


@pytest.mark.parametrize(
    ("family", "model_type"),
    [
        (family, kind)
        for family in ("bunny", "llava", "llava-next")
        for kind in FAMILIES[family].by_type
    ],
)
def test_every_backbone_of_every_family(
    family: str, model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = FAMILIES[family].by_type[model_type]
    own = {"delay_load": False} if family == "llava-next" else {}
    config = {
        **SMALL,
        **own,
        "model_type": model_type,
        "architectures": [backbone.architecture],
        "mm_vision_tower": "tower-clip",
        "mm_hidden_size": 8,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "use_mm_proj": True,
        "torch_dtype": "float32",
    }
    language = expected_shapes(backbone.language_model, config)
    shapes = {**language, **below("model.mm_projector.", mm_projector("mlp2x_gelu", 8, 16))}
    shapes |= below("model.vision_tower.vision_tower.", vision_tower(TowerSpec("clip")))
    write_model(tmp_path / "base", typed(shapes), config)
    write_tower(tmp_path / "tower-clip", TowerSpec("clip"))
    monkeypatch.chdir(tmp_path)
    assert errors(validate("base")) == []
    assert outcome(Path("base")) == "complete"
    assert inspect("base").disagreements == ()
    head = "lm_head.weight" in language
    assert head == (backbone.language_model not in ("Gemma", "MiniCPM"))
