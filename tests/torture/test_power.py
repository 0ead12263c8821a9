"""Power cuts in every scenario, from what strace saw it do; and the order of its syncs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.torture import strace
from tests.torture.disk import Disk, Nodes
from tests.torture.guarantees import after_crash
from tests.torture.power import crashes, pending_at, unsynced_when_moved
from tests.torture.runner import Runner
from tests.torture.scenarios import SCENARIOS, Prepared

pytestmark = [
    pytest.mark.torture,
    pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name),
]

# In place each state is made a directory and mended: tens of milliseconds; else it is compared.
_SAMPLES_IN_PLACE = 40
_SAMPLES = 1000


@pytest.fixture
def disk(prepared: Prepared, runner: Runner, tmp_path: Path) -> Disk:
    root = prepared.fresh(tmp_path / "run")
    disk = Disk(str(root), str(root))
    run = runner.run(prepared.scenario.argv, root, strace=strace.OPTIONS)
    assert run.code == 0, run
    disk.replay(strace.parse(run.trace))
    assert disk.now.tree() == Nodes.load(str(root)).tree()
    return disk


def test_whatever_a_power_cut_leaves(
    prepared: Prepared, disk: Disk, tmp_path: Path, tally: Counter[str]
) -> None:
    samples = _SAMPLES_IN_PLACE if prepared.scenario.in_place else _SAMPLES
    for crash in crashes(disk, samples=samples):
        tally["states"] += 1
        tally[f"came to the {after_crash(prepared, crash, tmp_path / 'crashed')} state"] += 1
    assert tally["states"] > 3


def test_synced_before_it_is_renamed_and_the_directory_after(
    disk: Disk, tally: Counter[str]
) -> None:
    assert unsynced_when_moved(disk) == []
    end = len(disk.effects)
    nodes = disk.start.copy()
    for index, effect in enumerate(disk.effects):
        if index not in pending_at(disk.effects, end):
            nodes.apply(effect)
    # Nothing that can be seen hangs on what was never synced.
    visible = {p: c for p, c in disk.now.tree().items() if not p.startswith("base/.vita-ckpt")}
    lasting = {p: c for p, c in nodes.tree().items() if not p.startswith("base/.vita-ckpt")}
    assert {p: c for p, c in lasting.items() if not p.startswith(".vita-ckpt")} == visible
    tally["effects in order"] += end
