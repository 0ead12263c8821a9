"""What a thing is: models of other families, and what every command makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    checkpoint_config,
    checkpoint_shapes,
    mm_projector,
    typed,
    write_adapter,
    write_checkpoint,
    write_model,
    write_tower,
)
from tests.families import CLIP, FAMILIES, SPEC, TOWER, WITH_TOWER, vita_like
from vita_ckpt import (
    AdapterError,
    InputError,
    VitaCkptError,
    apply,
    explain,
    inspect,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_projector,
    plan_resize_embeddings,
    plan_swap_tower,
    validate,
)


def at(root: Path, name: str, *, config: bool = True) -> Path:
    family = FAMILIES[name]
    return write_model(root, typed(family.shapes), family.config if config else None)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_another_family_is_named_with_its_parts(tmp_path: Path, name: str) -> None:
    found = inspect(at(tmp_path / "model", name))
    assert (found.kind, FAMILIES[name].label in str(found.family)) == ("multimodal-model", True)
    assert tuple(part.tensors for part in found.parts)[:3] == FAMILIES[name].parts
    assert found.dispatch is None  # VITA's loader builds nothing from it
    assert found.disagreements == ()
    explained = explain(tmp_path / "model")
    assert any(FAMILIES[name].label in remark for remark in explained.remarks)


@pytest.mark.parametrize("name", FAMILIES)
def test_validate_asks_which_part_is_meant(tmp_path: Path, name: str) -> None:
    report = validate(at(tmp_path / "model", name))
    assert [(one.rule, one.severity) for one in report.findings] == [("other-family", "error")]
    (found,) = report.findings
    assert "--kind" in found.hint
    assert "swap-tower" not in str(report)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_hint_names_the_commands_that_work(tmp_path: Path, name: str) -> None:
    root = at(tmp_path / "model", name)
    (found,) = validate(root).findings
    config = None if "vision_config" in FAMILIES[name].config else _tower(tmp_path, name)
    plans: dict[str, Callable[[], object]] = {
        "extract-tower": lambda: plan_extract_tower(root, tower_config=config),
        "extract-projector": lambda: plan_extract_projector(root),
    }
    for command, plan in plans.items():
        refused: VitaCkptError | None = None
        try:
            plan()
        except VitaCkptError as error:
            refused = error
        assert (command in found.hint) == (refused is None), (refused, found.hint)


@pytest.mark.parametrize("name", WITH_TOWER)
def test_the_tower_of_another_family_is_validated_and_taken_out(tmp_path: Path, name: str) -> None:
    root = at(tmp_path / "model", name)
    write_tower(tmp_path / "tower-clip", CLIP)
    assert validate(root, kind="vision-tower").findings == ()
    config = None if "vision_config" in FAMILIES[name].config else _tower(tmp_path, name)
    out = apply(plan_extract_tower(root, tower_config=config), tmp_path / "out")
    assert inspect(out).kind == "vision-tower"


def _tower(tmp_path: Path, name: str) -> Path:
    family = "internvit" if name == "long-vita" else "clip"
    return write_tower(tmp_path / f"config-{family}", TowerSpec(family))


@pytest.mark.parametrize("name", ["llava-hf", "llava-hf-new", "internvl", "tinyllava"])
def test_the_language_model_of_another_family_is_validated(tmp_path: Path, name: str) -> None:
    assert validate(at(tmp_path / "model", name), kind="language-model").findings == ()


@pytest.mark.parametrize("name", ["llava-hf", "llava-hf-new", "internvl", "tinyllava", "vita-e"])
def test_names_tell_a_family_without_a_config(tmp_path: Path, name: str) -> None:
    found = inspect(at(tmp_path / "model", name, config=False))
    assert (found.kind, FAMILIES[name].label in str(found.family)) == ("multimodal-model", True)


def test_a_family_that_is_not_known_is_no_vita_checkpoint(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m", typed(checkpoint_shapes(SPEC)), vita_like("my_vlm", "MyVLM"))
    found = inspect(root)
    assert found.kind == "multimodal-model"
    assert "my_vlm" in str(found.family)
    assert [one.rule for one in validate(root).findings] == ["other-family"]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_put_into_another_family(tmp_path: Path, name: str) -> None:
    base = at(tmp_path / "model", name)
    adapter = write_adapter(tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    tower = write_tower(tmp_path / "clip", CLIP)
    plans: tuple[Callable[[], object], ...] = (
        lambda: plan_merge_projector(base, adapter),
        lambda: plan_merge_projector(base, adapter, tower=tower),
        lambda: plan_swap_tower(base, tower),
        lambda: plan_resize_embeddings(base, tokens=64),
    )
    for plan in plans:
        with pytest.raises(InputError, match="other-family") as error:
            plan()
        assert FAMILIES[name].label in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "kind", "label"),
    [
        ("bunny-qwen2", "bunny-checkpoint", "Bunny"),
        ("llava_qwen", "llava-next-checkpoint", "LLaVA-NeXT"),
        ("llava_mistral", "llava-checkpoint", "LLaVA"),
    ],
)
def test_a_relative_is_of_a_kind_of_its_own(
    tmp_path: Path, model_type: str, kind: str, label: str
) -> None:
    config = vita_like(model_type, "SomeForCausalLM")
    found = inspect(write_model(tmp_path / "m", typed(checkpoint_shapes(SPEC)), config))
    assert (found.kind, found.family) == (kind, label)
    assert model_type in str(found.family_evidence)


def test_the_projector_of_tinyllava_is_a_donor(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", SPEC)
    root = at(tmp_path / "model", "tinyllava")
    plan = plan_merge_projector(base, root)
    assert len(plan.tensor_edits) == 4
    assert any("connector._connector." in note for note in plan.notes)
    assert len(plan_extract_projector(root).tensor_edits) == 4
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "connector_type": "mlp2x_relu"}))
    with pytest.raises(AdapterError, match=r"unknown-projector.*mlp2x_relu"):
        plan_extract_projector(root)


def test_the_tower_in_vita_e_is_described_by_the_one_that_its_config_names(tmp_path: Path) -> None:
    root = at(tmp_path / "model", "vita-e")
    tower = write_tower(tmp_path / "tower-clip", CLIP)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "mm_vision_tower": str(tower)}))
    assert plan_extract_tower(root).tensor_edits


def test_the_projector_of_a_run_of_another_family_is_a_donor(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", SPEC)
    run = tmp_path / "run"
    run.mkdir()
    write_adapter(run / "mm_projector.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    (run / "config.json").write_text(json.dumps(vita_like("bunny-qwen2", "Qwen2ForCausalLM")))
    assert len(plan_merge_projector(base, run).tensor_edits) == 4


def test_lucy_is_vita(tmp_path: Path) -> None:
    spec = replace(SPEC, config={"model_type": "vita-qwen2"})
    found = inspect(write_checkpoint(tmp_path / "lucy", spec))
    assert (found.kind, found.family, found.backbone) == ("vita-checkpoint", None, "Qwen2")
    rules = {one.rule for one in validate(tmp_path / "lucy").findings}
    assert rules == {"tower-path-unreachable"}


def test_a_vita_model_that_calls_itself_something_else_is_vita(tmp_path: Path) -> None:
    """Its class says so: the wrong model_type is a finding, and no other family."""
    spec = replace(SPEC, config={"model_type": "llava"})
    rules = {one.rule for one in validate(write_checkpoint(tmp_path / "m", spec)).findings}
    assert "unknown-model-type" in rules


PEFT = "base_model.model."


def _unmerged(shapes: dict[str, Any]) -> dict[str, Any]:
    """The state dict of the model that PEFT wraps."""
    found: dict[str, Any] = {}
    for name, shape in shapes.items():
        if name.endswith("layers.0.self_attn.q_proj.weight"):
            module = PEFT + name.removesuffix(".weight")
            found[f"{module}.base_layer.weight"] = shape
            found[f"{module}.lora_A.default.weight"] = (4, shape[1])
            found[f"{module}.lora_B.default.weight"] = (shape[0], 4)
        elif "mm_projector" in name:
            before, after = (PEFT + name).split("mm_projector.")
            found[f"{before}mm_projector.original_module.{after}"] = shape
            found[f"{before}mm_projector.modules_to_save.default.{after}"] = shape
        else:
            found[PEFT + name] = shape
    return found


@pytest.mark.parametrize("keep", ["base_layer", "original_module", "lora_A"])
def test_an_unmerged_save_of_peft_is_named(tmp_path: Path, keep: str) -> None:
    spec = Spec()
    names = {
        name: shape
        for name, shape in _unmerged(checkpoint_shapes(spec)).items()
        if keep in name
        or not any(w in name for w in ("base_layer", "original_module", "lora_", "modules_to_save"))
    }
    root = write_model(tmp_path / "m", typed(names), checkpoint_config(spec, "F32"))
    assert inspect(root).kind == "peft-model"
    report = validate(root)
    assert [one.rule for one in report.findings] == ["unmerged-peft"]
    assert "merge_and_unload" in report.findings[0].hint


def test_a_lone_shard_is_named_and_leads_to_its_directory(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c", shards=3)
    shard = next(root.glob("*-00002-of-*"))
    assert inspect(shard).kind == "shard"
    (found,) = validate(shard).findings
    assert (found.rule, str(root) in found.hint) == ("lone-shard", True)


def test_the_tower_of_a_plain_clip_is_a_tower_still(tmp_path: Path) -> None:
    root = write_model(tmp_path / "m", typed(TOWER), {"model_type": "clip_vision_model"})
    assert inspect(root).kind == "vision-tower"
