"""vita-ckpt merge-lora: options, what is printed, what is left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fixtures.builder import read_tensors, snapshot
from tests.conftest import GOLDEN, Cli, assert_one_error

CASE = GOLDEN / "L3"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CASE / "base", tmp_path / "base"))


def test_a_new_directory_and_its_lineage(cli: Cli, tmp_path: Path, base: Path) -> None:
    out = tmp_path / "out"
    arguments = ("merge-lora", "--base", base, "--adapter", CASE / "lora", "--out", out)
    result = cli(*arguments, "--digest", "--model-card", "--check")
    assert result.code == 0, result
    assert "LoRA: r 5, alpha 7: 14 deltas merged, 4 other tensors as trained" in result.err
    assert read_tensors(out) == read_tensors(CASE / "merged_by_upstream")
    (entry,) = json.loads((out / "vita_ckpt.json").read_text())["operations"]
    assert (entry["operation"], *entry["inputs"]) == ("merge-lora", "base", "adapter")
    assert len(entry["written"]["tensors"]) == 18
    assert cli("validate", "--deep", out).code == 0
    assert "merge-lora" in cli("history", out).out
    assert_one_error(cli(*arguments), 2, "output-exists")


def test_in_place_and_undo(cli: Cli, base: Path) -> None:
    before = read_tensors(base)
    arguments = ("merge-lora", "--base", base, "--adapter", CASE / "lora", "--in-place")
    result = cli(*arguments)
    assert result.code == 0, result
    assert read_tensors(base) == read_tensors(CASE / "merged_by_upstream")
    assert_one_error(cli(*arguments), 3, "lora-already-merged", "twice")
    assert cli("undo", base).code == 0
    assert read_tensors(base) == before


def test_a_dry_run_and_a_saved_plan(cli: Cli, tmp_path: Path, base: Path) -> None:
    before = snapshot(base)
    arguments = ("merge-lora", "--base", base, "--adapter", CASE / "lora", "--dtype", "f16")
    result = cli(*arguments, "--dry-run", "--json")
    assert result.code == 0, result
    summary = json.loads(result.out)
    assert {tensor["after"]["dtype"] for tensor in summary["tensors"]} == {"F16"}
    plan = tmp_path / "plan.json"
    assert cli(*arguments, "--plan-out", plan).code == 0
    assert snapshot(base) == before
    assert cli("apply", plan, "--out", tmp_path / "out").code == 0
    assert read_tensors(tmp_path / "out") == read_tensors(CASE / "merged_by_loader_fp16")


def test_the_base_that_the_run_names(
    cli: Cli, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    result = cli("merge-lora", "--adapter", CASE / "lora", "--out", tmp_path / "out")
    assert result.code == 0, result
    monkeypatch.chdir(shutil.copytree(CASE / "lora", tmp_path / "a" / "b" / "lora"))
    result = cli("merge-lora", "--adapter", ".", "--out", tmp_path / "other")
    assert_one_error(result, 3, "lora-base-absent", "--base")


def test_what_it_does_not_take(cli: Cli, tmp_path: Path, base: Path) -> None:
    run = ("--adapter", CASE / "lora", "--out", tmp_path / "out")
    for more, code, word in (
        (("--base", base, *run, "--lora-alpha", "7"), 2, "options-exclude-each-other"),
        (("--base", base, *run, "--dtype", "f8"), 2, "unknown-dtype"),
        (("--base", base, "--out", tmp_path / "out"), 3, "lora-empty"),
        (("--out", tmp_path / "out"), 2, "option-needed"),
        (("--base", base, "--adapter", base, "--out", tmp_path / "out"), 3, "not-a-lora-run"),
    ):
        assert_one_error(cli("merge-lora", *more), code, word)
    assert not (tmp_path / "out").exists()


def test_it_is_verified_before_it_is_written(cli: Cli, tmp_path: Path, base: Path) -> None:
    pytest.importorskip("torch")
    shutil.copytree(CASE / "tower-internvit", tmp_path / "tower-internvit")
    run = Path(shutil.copytree(CASE / "lora", tmp_path / "lora"))
    out = tmp_path / "out"
    arguments = ("merge-lora", "--base", base, "--adapter", run, "--out", out, "--verify")
    result = cli(*arguments)
    assert result.code == 0, result
    assert "it works" in result.err
    assert read_tensors(out) == read_tensors(CASE / "merged_by_upstream")
    shutil.rmtree(out)
    settings = json.loads((run / "adapter_config.json").read_text())
    settings["lora_alpha"] = 1e30  # the logits overflow, and no value is infinite before
    (run / "adapter_config.json").write_text(json.dumps(settings))
    result = cli(*arguments)
    assert result.code == 1, result
    assert result.err.splitlines()[-1] == "error: verification-failed: nothing was written"
    assert not out.exists()
