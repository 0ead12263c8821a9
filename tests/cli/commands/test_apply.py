"""``vita-ckpt apply``: saved plans run later."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fixtures.builder import read_tensors
from tests.conftest import Cli, assert_one_error


def test_a_saved_plan_runs_later(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    merge = ["merge-projector", "--base", base, "--adapter", adapter]
    plan = tmp_path / "plan.json"
    assert cli(*merge, "--plan-out", plan).code == 0
    assert not (tmp_path / "out").exists()
    assert cli("apply", plan, "--out", tmp_path / "out").code == 0
    assert cli(*merge, "--out", tmp_path / "direct").code == 0
    assert read_tensors(tmp_path / "out") == read_tensors(tmp_path / "direct")
    assert_one_error(cli("-q", *merge, "--plan-out", plan), 2, "output-exists", "plan.json")
    os.utime(adapter, ns=(1, 1))
    result = cli("apply", plan, "--out", tmp_path / "late")
    assert_one_error(result, 3, "input-changed", "adapter.safetensors")
    assert not (tmp_path / "late").exists()


def test_a_saved_extraction(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert cli("extract-projector", "--from", base, "--plan-out", tmp_path / "plan.json").code == 0
    assert cli("apply", tmp_path / "plan.json", "--out", tmp_path / "p.safetensors").code == 0
    assert len(read_tensors(tmp_path / "p.safetensors")) == 4


def test_a_plan_can_be_looked_at(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    cli("merge-projector", "--base", base, "--adapter", adapter, "--plan-out", plan)
    result = cli("apply", plan, "--dry-run")
    assert result.code == 0
    assert "would write" in result.out
    assert_one_error(cli("apply", plan), 2, "no-output")


def test_a_plan_whose_base_is_a_lone_file(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / "plan.json"
    cli("merge-projector", "--base", base, "--adapter", adapter, "--plan-out", path)
    plan = json.loads(path.read_text())
    plan["inputs"] = plan["inputs"][1:]
    plan["edits"] = []
    plan["record"]["roles"] = []
    path.write_text(json.dumps(plan))
    assert_one_error(cli("apply", path, "--out", tmp_path / "out"), 3, "invalid-plan")
    plan["edits"] = [{"edit": "set-config", "key": "\ud800", "value": 1, "reason": ""}]
    path.write_text(json.dumps(plan))
    assert_one_error(cli("apply", path, "--out", tmp_path / "out"), 3, "invalid-plan")


def test_a_plan_that_is_none(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("{}", "[]", "no", '{"format": "vita-ckpt-plan", "version": 1, "inputs": []}'):
        path.write_text(text)
        done = cli("apply", path, "--out", tmp_path / "out")
        assert_one_error(done, 3, "plan.json")
        assert "None" not in done.err
    assert_one_error(cli("apply", tmp_path / "nowhere", "--out", tmp_path / "out"), 3, "nowhere")


def test_a_saved_plan_in_place(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    call = ("merge-projector", "--base", base, "--adapter", adapter)
    assert cli(*call, "--plan-out", saved).code == 0
    assert cli("apply", saved, "--in-place").code == 0
    assert read_tensors(adapter).items() <= read_tensors(base).items()
    assert_one_error(cli("apply", saved, "--in-place"), 3, "input-changed")
    assert cli("undo", base).code == 0
    (tmp_path / "plan.json").unlink()
    assert cli(*call, "--plan-out", saved).code == 0
    data = json.loads(saved.read_text())
    saved.write_text(json.dumps({**data, "record": None}))
    assert_one_error(cli("apply", saved, "--in-place"), 3, "invalid-plan", "record")
