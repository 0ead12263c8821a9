"""Every changing system call of every scenario: killed before it, and failed, by the kernel."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.torture import strace
from tests.torture.disk import Disk, Nodes
from tests.torture.guarantees import after_error, after_interrupt, after_kill, after_success, undone
from tests.torture.injector import Injection
from tests.torture.runner import Run, Runner
from tests.torture.scenarios import SCENARIOS, Prepared, state

pytestmark = [
    pytest.mark.torture,
    pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name),
]

# Two threads share the work, and which does how much of it differs from run to run. An N that one
# run does not reach is tried again; the sweep of a name ends where no attempt reaches N.
_ATTEMPTS = 6
_RECORDINGS = 3
_ERRORS = ("ENOSPC", "EIO", "EDQUOT", "EINTR")

# Calls that only ask for speed, and those that take something back.
_MAY_FAIL = frozenset({"sync_file_range", "ioctl", "unlink", "unlinkat", "rmdir"})
_TAKE_BACK = frozenset(
    {"unlink", "unlinkat", "rmdir", "openat", "write", "pwrite64", "rename", "fsync", "ftruncate"}
)


Least = dict[str, int]


@pytest.fixture(scope="module")
def recordings() -> dict[str, Least]:
    return {}


@pytest.fixture
def least(
    prepared: Prepared, runner: Runner, tmp_path: Path, recordings: dict[str, Least]
) -> Least:
    """The calls that change what is below, and how many of each some thread makes in every run."""
    name = prepared.scenario.name
    if name not in recordings:
        recordings[name] = recorded(prepared, runner, tmp_path)
    return recordings[name]


def test_killed_before_every_call(
    prepared: Prepared, runner: Runner, tmp_path: Path, tally: Counter[str], least: Least
) -> None:
    for name in sorted(least):
        reached = 0
        for number in range(1, 10_000):
            for _ in range(_ATTEMPTS):
                kill = Injection(name, number, signal=SIGKILL)
                root, run = injected(prepared, runner, tmp_path, kill)
                if run.killed:
                    break
                tally["that were not reached"] += 1
                assert run.code == 0, run
                after_success(prepared, root)
            if not run.killed:
                break
            assert run.calls[name] == number, run
            reached = number
            tally["runs killed"] += 1
            tally[f"came to the {after_kill(prepared, root)} state"] += 1
            prepared.judged("go on", root, partial(go_on, prepared, runner, root))
        assert reached >= least[name], (name, reached, least)


def test_killed_while_it_cleans_up(
    prepared: Prepared, runner: Runner, tmp_path: Path, tally: Counter[str], least: Least
) -> None:
    """A call fails late, so that what was done must be taken back, and then a kill hits that."""
    for failing in sorted(least.keys() - {"openat", *_MAY_FAIL}):
        failure = Injection(failing, least[failing], error=errno.ENOSPC)
        for name in sorted(_TAKE_BACK - {failing}):
            for number in range(1, 10_000):
                kill = Injection(name, number, signal=SIGKILL, after_failure=True)
                root, run = injected(prepared, runner, tmp_path, failure, kill)
                if not run.killed:
                    break
                assert run.failed, run
                tally["runs killed"] += 1
                tally[f"came to the {after_kill(prepared, root)} state"] += 1
    assert tally["runs killed"]


def test_asked_to_end_before_every_call(
    prepared: Prepared, runner: Runner, tmp_path: Path, tally: Counter[str], least: Least
) -> None:
    """SIGTERM: it cleans up and says what it left, which is the old state or the new one."""
    for name in sorted(least):
        for number in range(1, 10_000):
            term = Injection(name, number, signal=SIGTERM)
            root, run = injected(prepared, runner, tmp_path, term)
            if run.calls.get(name, 0) < number:
                break
            tally["runs asked to end"] += 1
            tally[after_interrupt(prepared, root, run)] += 1


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "persistently"])
@pytest.mark.parametrize("error", _ERRORS)
def test_failed_at_every_call(
    prepared: Prepared,
    runner: Runner,
    tmp_path: Path,
    tally: Counter[str],
    least: Least,
    error: str,
    persistent: bool,
) -> None:
    for name in sorted(least):
        for number in range(1, 10_000):
            failure = Injection(name, number, error=getattr(errno, error), persistent=persistent)
            root, run = injected(prepared, runner, tmp_path, failure)
            if not run.failed:
                break
            tally["runs failed"] += 1
            if run.timed_out:
                # CPython makes open, read, write and fsync again when they are interrupted (PEP
                # 475): where they always are it never ends. It is held to what a kill may leave.
                assert error == "EINTR" and persistent, run
                after_kill(prepared, root)
                tally["never ended"] += 1
            else:
                tally[after_error(prepared, root, run, persistent=persistent)] += 1
        assert number > 1, name


def test_a_whole_process_does_the_same(
    prepared: Prepared, tmp_path: Path, runner: Runner, tally: Counter[str]
) -> None:
    """Runs are forks of a process that has imported everything: they leave nothing out."""
    root = prepared.fresh(tmp_path / "run")
    disk = Disk(str(root), str(root))
    program = "from vita_ckpt.cli.main import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", program, *prepared.scenario.argv]
    run = strace.run(command, root, tmp_path / "trace")
    assert run.returncode == 0, run
    disk.replay(strace.parse((tmp_path / "trace").read_text().splitlines()))
    assert disk.now.tree() == Nodes.load(str(root)).tree()
    after_success(prepared, root)
    forked = record(prepared, runner, tmp_path)
    assert names(forked) == names(disk)
    tally["calls compared"] += len(disk.concerned)


def recorded(prepared: Prepared, runner: Runner, tmp_path: Path) -> Least:
    """The calls that change what is below, and how many of each some thread makes in every run."""
    least: Least = {}
    for _ in range(_RECORDINGS):
        disk = record(prepared, runner, tmp_path)
        most: Counter[str] = Counter()
        for traced in disk.concerned:
            most[traced.name] = max(most[traced.name], traced.number)
        least = {name: min(count, least.get(name, count)) for name, count in most.items()}
    assert "fsync" in least
    return least


def record(prepared: Prepared, runner: Runner, tmp_path: Path) -> Disk:
    """An undisturbed run as effects; they lead to exactly what is on the disk."""
    root = prepared.fresh(tmp_path / "run")
    disk = Disk(str(root), str(root))
    run = runner.run(prepared.scenario.argv, root, strace=strace.OPTIONS)
    assert run.code == 0, run
    disk.replay(strace.parse(run.trace))
    assert disk.now.tree() == Nodes.load(str(root)).tree()
    after_success(prepared, root)
    return disk


def names(disk: Disk) -> Counter[str]:
    return Counter(traced.name for traced in disk.concerned)


def injected(
    prepared: Prepared, runner: Runner, tmp_path: Path, *injections: Injection
) -> tuple[Path, Run]:
    """A run with faults in its calls, and where it was."""
    root = prepared.fresh(tmp_path / "run")
    return root, runner.run(prepared.scenario.argv, root, injections=injections)


def go_on(prepared: Prepared, runner: Runner, root: Path) -> str:
    """After a run that was killed the next one succeeds, and undo takes it back."""
    scenario = prepared.scenario
    if state(root, scenario) == prepared.old and not scenario.interrupted:
        run = runner.run(scenario.argv, root)
        assert run.code == 0, run
        after_success(prepared, root)
    if scenario.can_be_undone:
        undone(prepared, root)
    return "gone on"
