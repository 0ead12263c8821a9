"""Indexes, configs, adapter configs, processors, provenance and plans with hostile values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_tower
from tests.fuzz.conftest import Explore
from tests.fuzz.damage import Change, Step, changed, changes, damage, damaged
from tests.fuzz.files import rewrite
from tests.fuzz.sandbox import (
    Sandbox,
    believes_no_more_than_the_library,
    is_one_line,
    survives,
)
from vita_ckpt import (
    VitaCkptError,
    apply,
    check_plan,
    load_plan,
    plan_merge_projector,
    plan_swap_tower,
    save_plan,
    summarize,
)

VITA = (
    "config.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "vision_tower_config.json",
    "vita_ckpt.json",
)


@pytest.mark.parametrize("name", VITA)
def test_a_checkpoint(explore: Explore, vita: Sandbox, name: str) -> None:
    def check(how: list[Change]) -> None:
        with vita.holding(name, changed(vita.sound[name], how)) as root:
            survives(root)
            believes_no_more_than_the_library(root)

    explore(check, sample=6, how=changes)


def test_the_config_of_its_tower(explore: Explore, vita: Sandbox) -> None:
    tower = Sandbox(vita.root.parent / "tower-internvit")

    def check(how: list[Change]) -> None:
        with tower.holding("config.json", changed(tower.sound["config.json"], how)) as root:
            survives(root)
            survives(vita.root)

    explore(check, sample=6, how=changes)


def test_an_index_of_bins(explore: Explore, bins: Sandbox) -> None:
    name = "pytorch_model.bin.index.json"

    def check(how: list[Change]) -> None:
        with bins.holding(name, changed(bins.sound[name], how)) as root:
            survives(root)

    explore(check, sample=5, how=changes)


def test_an_adapter_config(explore: Explore, lora: Sandbox) -> None:
    name = "adapter_config.json"

    def check(how: list[Change]) -> None:
        with lora.holding(name, changed(lora.sound[name], how)) as root:
            survives(root)

    explore(check, sample=8, how=changes)


def test_bytes_that_are_no_json_any_more(explore: Explore, vita: Sandbox) -> None:
    def check(name: str, how: list[Step]) -> None:
        with vita.holding(name, damaged(vita.sound[name], how)) as root:
            survives(root)

    explore(check, sample=10, name=st.sampled_from(VITA), how=damage)


@pytest.mark.parametrize("operation", ["merge", "swap"])
def test_a_saved_plan(explore: Explore, vita: Sandbox, tmp_path: Path, operation: str) -> None:
    if operation == "merge":
        donor = write_adapter(tmp_path / "a.safetensors", mm_projector("linear", 32, 16))
        plan = plan_merge_projector(vita.root, donor)
    else:
        tower = write_tower(tmp_path / "clip", TowerSpec("clip"))
        plan = plan_swap_tower(vita.root, tower, projector="reinit")
    path = tmp_path / "plan.json"
    save_plan(plan, path)
    sound = path.read_bytes()
    assert summarize(load_plan(path)).operation == plan.operation
    outputs = iter(range(1 << 30))

    def check(how: list[Change]) -> None:
        rewrite(path, changed(sound, how))
        out = tmp_path / f"out{next(outputs)}"
        try:
            loaded = load_plan(path)
            summary = json.dumps(summarize(loaded).to_dict())
            check_plan(loaded)
            if json.loads(summary)["bytes_to_write"] < 1 << 24:
                apply(loaded, out)
        except VitaCkptError as error:
            assert is_one_line(str(error))
            assert not out.exists()
        assert not list(tmp_path.glob(".vita-ckpt-*"))

    explore(check, sample=12, how=changes)
