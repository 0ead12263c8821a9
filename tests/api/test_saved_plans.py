"""A saved plan does what its operation makes of its inputs, or nothing: no edit is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from fixtures.builder import (
    Spec,
    TowerSpec,
    checkpoint_config,
    language_model,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tokenizer,
    write_tower,
)
from tests.fuzz.damage import Change, changed, changes
from tests.fuzz.sandbox import is_one_line
from vita_ckpt import (
    InputError,
    Plan,
    UsageError,
    VisionModelArgs,
    VitaCkptError,
    apply,
    initialize_vision_modules,
    load_plan,
    open_checkpoint,
    plan_convert,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_projector,
    plan_resize_embeddings,
    plan_set,
    plan_swap_tower,
    save_plan,
)


def merge(root: Path) -> Plan:
    return plan_merge_projector(root / "base", root / "adapter.safetensors", dtype="f32")


def merge_extras(root: Path) -> Plan:
    return plan_merge_projector(root / "base", root / "base", extras=["embed_tokens"])


def assemble(root: Path) -> Plan:
    return plan_merge_projector(root / "plain", root / "run", tower=root / "clip")


def swap(root: Path) -> Plan:
    config = root / "clip" / "config.json"
    return plan_swap_tower(
        root / "base", root / "clip", projector="reinit", seed=5, tower_config=config
    )


def swap_with_adapter(root: Path) -> Plan:
    adapter = write_adapter(root / "other.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    return plan_swap_tower(root / "base", root / "clip", projector=adapter)


def extract_tower(root: Path) -> Plan:
    return plan_extract_tower(root / "base")


def extract_projector(root: Path) -> Plan:
    return plan_extract_projector(root / "base", bare=True)


def set_keys(root: Path) -> Plan:
    return plan_set(root / "base", {"mm_projector_lr": 1e-5, "use_s2": None})


def convert(root: Path) -> Plan:
    options: dict[str, Any] = {"names": "transformers", "dtype": "bf16", "keep": ["*norm*"]}
    return plan_convert(root / "mixtral", **options, max_shard_size="9KB", parts=["language_model"])


def resize(root: Path) -> Plan:
    return plan_resize_embeddings(root / "base", tokens=34, init="copy:7", multiple_of=4)


def resize_for_a_tokenizer(root: Path) -> Plan:
    return plan_resize_embeddings(root / "base", tokenizer=root / "tokenizer", init="normal")


OPERATIONS = (
    resize,
    resize_for_a_tokenizer,
    convert,
    merge,
    merge_extras,
    assemble,
    swap,
    swap_with_adapter,
    extract_tower,
    extract_projector,
    set_keys,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    write_tower(root / "tower-internvit", TowerSpec())
    write_checkpoint(root / "base")
    (root / "tokenizer").mkdir()
    write_tokenizer(root / "tokenizer", 35)
    write_checkpoint(root / "mixtral", Spec(model_type="vita-mixtral", tower=TowerSpec("clip")))
    (root / "base" / "preprocessor_config.json").write_text('{"crop_size": 8}\n')
    write_tower(root / "clip", TowerSpec("clip", image_size=16, patch_size=4))
    write_adapter(root / "adapter.safetensors", mm_projector("linear", 32, 16))
    spec = Spec()
    config = checkpoint_config(spec, "F32")
    plain = write_checkpoint(root / "plain", spec, only=language_model(spec))
    own = {k: v for k, v in config.items() if not k.startswith("mm_") and k != "use_mm_proj"}
    (plain / "config.json").write_text(json.dumps({**own, "model_type": "qwen2"}))
    run = root / "run"
    run.mkdir()
    write_adapter(run / "mm_projector.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    (run / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "clip"}))
    return root


def effect(plan: Plan) -> Any:
    """What applying a plan writes, the lineage included."""
    target = plan.target()
    return target.tensors, target.config, target.files, target.texts, plan.record, plan.operation


@pytest.mark.parametrize("make", OPERATIONS)
def test_a_saved_plan_is_the_plan(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Plan]
) -> None:
    plan = make(root)
    save_plan(plan, tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    assert load_plan("plan.json") == plan


@pytest.mark.parametrize("make", OPERATIONS)
def test_a_changed_plan_is_refused_or_does_the_same(
    root: Path, tmp_path: Path, make: Callable[[Path], Plan]
) -> None:
    path = tmp_path / "plan.json"
    original = make(root)
    save_plan(original, path)
    sound, expected = path.read_bytes(), effect(original)

    def check(how: list[Change]) -> None:
        path.write_bytes(changed(sound, how))
        try:
            loaded = load_plan(path)
        except InputError as error:
            assert is_one_line(str(error))
        else:
            assert effect(loaded) == expected

    settings(max_examples=40)(given(how=changes)(check))()


ADDED: tuple[dict[str, Any], ...] = (
    {"edit": "put-file", "name": "adapter_config.json", "text": "{}"},
    {"edit": "put-file", "name": "tokenizer_config.json", "text": "{}"},
    {"edit": "put-file", "name": "../x.json", "text": "{}"},
    {"edit": "drop-file", "name": "config.json"},
    {"edit": "set-config", "key": "auto_map", "value": {"AutoModel": "evil--x"}},
    {"edit": "set-config", "key": "mm_projector_lr", "value": float("nan")},
    {"edit": "set-config", "key": "mm_vision_tower", "value": "a\x1b[31m"},
    {"edit": "drop-tensor", "name": "lm_head.weight"},
    {"edit": "unknown", "name": "x"},
    {
        "edit": "add-tensor",
        "name": "x",
        "init": {"dtype": "F32", "shape": [1 << 40], "seed": 0, "name": "x", "bound": None},
    },
)


@pytest.mark.parametrize("make", OPERATIONS)
@pytest.mark.parametrize("edit", ADDED)
def test_nothing_can_be_added(
    root: Path, tmp_path: Path, make: Callable[[Path], Plan], edit: dict[str, Any]
) -> None:
    path = tmp_path / "plan.json"
    save_plan(make(root), path)
    plan = json.loads(path.read_text())
    plan["edits"].append({**edit, "reason": "asked for"})
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError, match="invalid-plan") as caught:
        load_plan(path)
    assert is_one_line(str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        {"operation": "upgrade"},
        {"operation": "swap-tower"},
        {"request": {"values": {"auto_map": "x"}}},
        {"request": {"values": {"mm_projector_lr": 10**400}}},
        {"request": {"values": {"mm_projector_lr": float("inf")}}},
        {"request": {"values": {"mm_audio_encoder": "a\ud800"}}},
        {"request": {"values": {}, "more": 1}},
        {"request": {}},
        {"request": None},
        {"more": 1},
        {"record": None},
    ],
)
def test_a_request_is_what_the_operation_takes(
    root: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "plan.json"
    save_plan(set_keys(root), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="invalid-plan") as caught:
        load_plan(path)
    assert is_one_line(str(caught.value))


def test_a_request_and_its_edits_changed_alike_are_another_plan_of_the_operation(
    root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    save_plan(set_keys(root), path)
    path.write_text(path.read_text().replace("1e-05", "2e-05"))
    assert effect(load_plan(path)) == effect(
        plan_set(root / "base", {"mm_projector_lr": 2e-5, "use_s2": None})
    )


def test_an_input_on_a_path_that_is_no_utf8(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write_checkpoint(folder / "base")
    path = tmp_path / "plan.json"
    save_plan(plan_set(folder / "base", {"use_s2": True}), path)
    out = apply(load_plan(path), tmp_path / "out")
    assert open_checkpoint(out).config is not None


def test_a_plan_that_cannot_be_computed_again_is_not_saved(root: Path, tmp_path: Path) -> None:
    tower = open_checkpoint(root / "clip")
    args = VisionModelArgs(tower, "clip", tower.config, projector="reinit")
    plan = initialize_vision_modules(open_checkpoint(root / "base"), args)
    with pytest.raises(UsageError, match="plan-not-repeatable"):
        save_plan(plan, tmp_path / "plan.json")
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    "values",
    [
        {"mm_projector_lr": float("nan")},
        {"image_aspect_ratio": "a\x1b[31m"},
        {"tokenizer_model_max_length": [1]},
    ],
)
def test_a_run_gives_only_values_that_its_keys_can_have(
    root: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "mm_projector.safetensors").write_bytes(
        (root / "run" / "mm_projector.safetensors").read_bytes()
    )
    config = json.loads((root / "run" / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | values))
    with pytest.raises(VitaCkptError, match="invalid-run-config"):
        plan_merge_projector(root / "plain", run, tower=root / "clip")
