"""``--key``: which state dict of several is read, on every command that takes a donor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from fixtures.builder import Spec, mm_projector, read_tensors
from tests.conftest import Cli, assert_one_error

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a training loop saves: weights, their average, an optimiser, its arguments."""
    model, ema = (
        {f"model.mm_projector.{n}": torch.full(s, fill) for n, s in MLP.items()}
        for fill in (1.0, 2.0)
    )
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}}
    value = {"ema": ema, "model": model, "optimizer": optimizer, "args": argparse.Namespace(a=1)}
    torch.save(value, tmp_path / "last.pt")
    return tmp_path / "last.pt"


def fill_of(path: Path) -> float:
    values = {float(t.flatten()[0]) for t in torch.load(path, weights_only=True).values()}
    (value,) = values
    return value


def test_extract_says_the_choice_and_takes_another(cli: Cli, trained: Path, tmp_path: Path) -> None:
    result = cli("extract-projector", "--from", trained, "--out", tmp_path / "a.bin")
    assert result.code == 0, result.err
    assert "last.pt: model is read, not ema; --key chooses" in result.err
    assert "argparse.Namespace; torch.load(weights_only=True) refuses" in result.err
    assert fill_of(tmp_path / "a.bin") == 1
    chosen = cli(
        "extract-projector", "--from", trained, "--key", "ema", "--out", tmp_path / "b.bin"
    )
    assert chosen.code == 0
    assert "--key" not in chosen.err
    assert fill_of(tmp_path / "b.bin") == 2


def test_merge_and_a_saved_plan(cli: Cli, base: Path, trained: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    saved = cli(
        *("merge-projector", "--base", base, "--adapter", trained, "--key", "ema"),
        *("--plan-out", plan),
    )
    assert saved.code == 0, saved.err
    assert json.loads(plan.read_text())["inputs"][1]["key"] == "ema"
    assert cli("apply", plan, "--out", out).code == 0
    direct = tmp_path / "direct"
    merge = ("merge-projector", "--base", base, "--adapter", trained)
    assert cli(*merge, "--key", "ema", "--out", direct).code == 0
    assert read_tensors(out) == read_tensors(direct)
    assert cli(*merge, "--out", tmp_path / "other").code == 0
    assert read_tensors(tmp_path / "other") != read_tensors(direct)


def test_inspect_and_validate(cli: Cli, trained: Path) -> None:
    result = cli("inspect", trained, "--tensors", "--key", "optimizer.state.0")
    assert "exp_avg" in result.out
    plain = cli("inspect", trained)
    assert "model is read, not ema" in plain.err
    report = cli("validate", trained).out
    assert "weights-with-objects" in report
    assert "several-state-dicts" in report


def test_validate_looks_at_the_state_dict_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    ema = {f"model.mm_projector.{n}": torch.full(s, float("nan")) for n, s in MLP.items()}
    model = {name: torch.ones_like(tensor) for name, tensor in ema.items()}
    torch.save({"model": model, "ema": ema}, tmp_path / "last.pt")
    path = tmp_path / "last.pt"
    assert cli("validate", path).code == 0
    chosen = cli("validate", path, "--key", "ema")
    assert (chosen.code, "ema, which was read" in chosen.out) == (1, True)
    assert "nan" in chosen.out.lower()
    assert cli("validate", path, "--key", "model").code == 0


def test_validate_refuses_a_key_that_leads_nowhere(cli: Cli, base: Path, trained: Path) -> None:
    assert_one_error(cli("validate", trained, "--key", "emma"), 3, "key-not-found", "model, ema")
    assert_one_error(cli("validate", base, "--key", "ema"), 2, "key-without-torch-file", "ema")


def test_swap_tower_takes_one_for_its_donors(
    cli: Cli, base: Path, trained: Path, tmp_path: Path
) -> None:
    tower = tmp_path / "tower-internvit"  # beside the base
    swap = ("swap-tower", "--base", base, "--tower", tower, "--projector", trained)
    result = cli(*swap, "--key", "ema", "--dry-run")
    assert result.code == 0, result.err
    assert "--key" not in result.err
    assert "model is read, not ema" in cli(*swap, "--dry-run").err


def test_keys_that_lead_nowhere(cli: Cli, base: Path, trained: Path, tmp_path: Path) -> None:
    extract = ("extract-projector", "--out", tmp_path / "x.bin", "--key", "emma", "--from")
    assert_one_error(cli(*extract, trained), 3, "key-not-found", "emma", "model, ema")
    assert_one_error(cli(*extract, base), 2, "key-without-torch-file", "emma")


def test_what_extract_bare_writes_is_taken_back(cli: Cli, base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.bin"
    assert cli("extract-projector", "--from", base, "--bare", "--out", bare).code == 0
    out = tmp_path / "out"
    result = cli("merge-projector", "--base", base, "--adapter", bare, "--out", out)
    assert result.code == 0, result.err
    assert "without a prefix" in result.err
    assert read_tensors(out) == read_tensors(base)
