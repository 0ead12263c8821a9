"""A short sample of every sweep that needs nothing installed: the faults come from wrappers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.disk import Disk, Nodes, Tree
from tests.torture.faults import Fault
from tests.torture.guarantees import after_crash, after_error, after_kill, after_success
from tests.torture.power import Crash, crashes, unsynced_when_moved
from tests.torture.runner import Runner
from tests.torture.scenarios import SCENARIOS, Prepared, mid_surgery, state

pytestmark = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


Recording = tuple[int, Disk]


@pytest.fixture(scope="module")
def recordings() -> dict[str, Recording]:
    return {}


@pytest.fixture
def recording(
    prepared: Prepared, runner: Runner, tmp_path: Path, recordings: dict[str, Recording]
) -> Recording:
    """How many changing calls a scenario makes, and what they do."""
    name = prepared.scenario.name
    if name not in recordings:
        root = prepared.fresh(tmp_path / "run")
        disk = Disk(str(root), str(root))
        count, trace = runner.run_recorded(prepared.scenario.argv, root)
        disk.replay(trace)
        assert disk.now.tree() == Nodes.load(str(root)).tree()
        after_success(prepared, root)
        recordings[name] = count, disk
    return recordings[name]


def spread(count: int, points: int) -> Iterator[int]:
    """The first, the last and some between of ``count`` numbers from 1."""
    yield from sorted({1 + (count - 1) * point // (points - 1) for point in range(points)})


def test_killed(prepared: Prepared, recording: Recording, runner: Runner, tmp_path: Path) -> None:
    count, _ = recording
    for at in spread(count, 5):
        root = prepared.fresh(tmp_path / "run")
        run = runner.run_faulty(prepared.scenario.argv, root, Fault(at))
        assert run.killed, run
        after_kill(prepared, root)


def test_killed_and_run_again(
    prepared: Prepared, recording: Recording, runner: Runner, tmp_path: Path
) -> None:
    """The next run finds what a killed one left, and does what that should have done."""
    count, _ = recording
    scenario = prepared.scenario
    for at in spread(count, 2):
        root = prepared.fresh(tmp_path / "run")
        assert runner.run_faulty(scenario.argv, root, Fault(at)).killed
        was_done = state(root, scenario) == prepared.new and not mid_surgery(
            root / scenario.subject
        )
        run = runner.run(scenario.argv, root)
        if not was_done:
            assert run.code == 0, run
            after_kill(prepared, root)
        elif not scenario.can_be_done_again:
            assert run.code in (2, 3), run  # the output exists; there is nothing to undo
            after_kill(prepared, root)
        else:  # it is done once more
            assert run.code == 0, run
            assert names_and_weights(state(root, scenario)) == names_and_weights(prepared.new)


def names_and_weights(tree: Tree) -> dict[str, object]:
    return {name: name.endswith(".safetensors") and content for name, content in tree.items()}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_failed(
    prepared: Prepared, recording: Recording, runner: Runner, tmp_path: Path, error: int
) -> None:
    count, _ = recording
    for at in spread(count, 3):
        for persistent in (False, True):
            root = prepared.fresh(tmp_path / "run")
            run = runner.run_faulty(prepared.scenario.argv, root, Fault(at, error, persistent))
            after_error(prepared, root, run, persistent=persistent)


def test_without_power(prepared: Prepared, recording: Recording, tmp_path: Path) -> None:
    _, disk = recording
    assert unsynced_when_moved(disk) == []
    states = list(crashes(disk, samples=2, every=4))
    ends = [crash for crash in states if crash.last]
    for crash in (*_some(states, 12), *_some(ends, 3)):
        after_crash(prepared, crash, tmp_path / "crashed")


def _some(crashes: list[Crash], most: int) -> list[Crash]:
    """Evenly spread ones of them."""
    return crashes[:: max(1, len(crashes) // most)]
