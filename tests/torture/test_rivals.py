"""Several writers at once: one wins, the others say so, and nothing is a mixture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from fixtures.builder import Spec, mm_projector, read_tensors, write_adapter, write_checkpoint
from tests.torture.guarantees import after_success, settled
from tests.torture.runner import Run, Runner
from tests.torture.scenarios import SCENARIOS, call, mid_surgery, prepare

MERGE, *_ = (scenario for scenario in SCENARIOS if scenario.name == "merge")
RECOVER, *_ = (scenario for scenario in SCENARIOS if scenario.name == "recover-merge")
SPEC = Spec()


def race(runner: Runner, argvs: Sequence[tuple[str, ...]], cwd: Path) -> list[Run]:
    """Runs that begin at the same moment."""
    pids = [runner.start(argv, cwd) for argv in argvs]
    runner.go(pids)
    return [runner.wait(pid) for pid in pids]


def assert_one_line(run: Run) -> None:
    assert len(run.err.splitlines()) == 1, run
    assert run.err.startswith("error: "), run
    assert "internal-error" not in run.err, run


@pytest.mark.parametrize(
    ("writers", "rounds"),
    [(4, 2), pytest.param(16, 20, marks=pytest.mark.torture)],
)
def test_one_output(
    writers: int, rounds: int, runner: Runner, tmp_path: Path, tally: Counter[str]
) -> None:
    prepared = prepare(MERGE, runner, tmp_path)
    for _ in range(rounds):
        root = prepared.fresh(tmp_path / "run")
        runs = race(runner, [MERGE.argv] * writers, root)
        assert sorted(run.code for run in runs) == [0] + [2] * (writers - 1), runs
        for run in runs:
            if run.code:
                assert_one_line(run)
                assert "output-exists" in run.err, run
                came_first = "got one that appeared meanwhile" in run.err
                tally["lost at the rename" if came_first else "lost before"] += 1
        after_success(prepared, root)
        tally["rounds"] += 1


@pytest.mark.torture
def test_one_checkpoint(runner: Runner, tmp_path: Path, tally: Counter[str]) -> None:
    """Eight merges in place, each of another adapter: the end is what one of them wrote."""
    shapes = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)
    for turn in range(20):
        root = tmp_path / str(turn)
        base = write_checkpoint(root / "base", SPEC, dtype="BF16", shards=3)
        before = read_tensors(base)
        adapters = [
            write_adapter(root / f"{n}.safetensors", shapes, dtype="BF16", seed=n)
            for n in range(10, 18)
        ]
        argvs = [
            ("merge-projector", "--base", "base", "--adapter", adapter.name, "--in-place")
            for adapter in adapters
        ]
        runs = race(runner, argvs, root)
        winners = [adapter for adapter, run in zip(adapters, runs, strict=True) if run.code == 0]
        for run in runs:
            if run.code:
                assert_one_line(run)
        assert winners, runs
        assert not mid_surgery(base)
        assert read_tensors(base) in [before | read_tensors(adapter) for adapter in winners]
        tally["rounds"] += 1
        tally["writers that won"] += len(winners)


@pytest.mark.torture
def test_one_recovery(runner: Runner, tmp_path: Path, tally: Counter[str]) -> None:
    prepared = prepare(RECOVER, runner, tmp_path)
    for _ in range(20):
        root = prepared.fresh(tmp_path / "run")
        runs = race(runner, [RECOVER.argv] * 8, root)
        assert 0 in {run.code for run in runs}, runs
        for run in runs:
            if run.code:
                assert_one_line(run)
        tally[f"came to the {settled(prepared, root)} state"] += 1


def test_a_base_that_changes_while_it_is_merged(runner: Runner, tmp_path: Path) -> None:
    """Another writer of the base between the plan and the rename: detected, nothing is left."""
    prepared = prepare(MERGE, runner, tmp_path)
    root = prepared.fresh(tmp_path / "run")
    before = {path.name for path in root.iterdir()}
    plan = root / "plan.json"
    argv = ("merge-projector", "--base", root / "base", "--adapter", root / "adapter.safetensors")
    assert call(*argv, "--plan-out", plan).code == 0
    shard = next((root / "base").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    run = call("apply", plan, "--out", root / "out")
    assert run.code == 3
    assert_one_line(run)
    assert "input-changed" in run.err
    assert {path.name for path in root.iterdir()} == before | {"plan.json"}
