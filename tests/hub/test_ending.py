"""A request to end is heeded whatever the hub does, and leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.builder import Spec, write_checkpoint
from fixtures.hub_server import TOKEN, Fault
from tests.conftest import GOLDEN
from tests.forker import Fork
from tests.hub.conftest import Machine

BASE = GOLDEN / "A7" / "base"
STORED = r"^/org/vita/[0-9a-f]{40}/"
PLANNING = 4  # requests for the headers of four shards


def hanging(machine: Machine, fault: Fault, *arguments: object) -> Fork:
    """Start a command, and return it once the hub has it hanging."""
    fault = replace(fault)  # it counts
    machine.hub.faults.append(fault)
    times = fault.times
    process = machine.start(*arguments, HF_TOKEN=TOKEN)
    while fault.times == times and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    return process


def end(machine: Machine, fault: Fault, number: int, *arguments: object) -> tuple[int, str, float]:
    """Ask a command to end once the hub has it hanging; code, stderr, and seconds."""
    process = hanging(machine, fault, *arguments)
    began = time.monotonic()
    process.send_signal(number)
    try:
        ended = process.result(60)
    finally:
        process.kill()
    return ended.code, ended.err, time.monotonic() - began


@pytest.mark.parametrize(
    ("number", "fault", "arguments"),
    [
        (signal.SIGINT, Fault("^/api/", "stall", 30), ["inspect", "hf://org/vita"]),
        (signal.SIGTERM, Fault(STORED, "stall", 30, times=4), ["inspect", "hf://org/vita"]),
        (
            signal.SIGINT,
            Fault(STORED, "stall", 30, times=9, skip=PLANNING),
            ["extract-projector", "--from", "hf://org/vita", "--out", "p.bin"],
        ),
        (
            signal.SIGTERM,
            Fault("resolve/", "status", 429, 99, {"Retry-After": "50"}),
            ["validate", "hf://org/vita", "--values"],
        ),
        (
            signal.SIGTERM,
            Fault(STORED, "stall", 30, times=9, skip=PLANNING),
            ["set", "hf://org/vita", "use_s2=true", "--out", "out"],
        ),
        (
            signal.SIGTERM,
            Fault(STORED, "stall", 30, times=9, ranged=True),
            ["validate", "hf://org/vita", "hf://org/two", "--jobs", "2"],
        ),
    ],
    ids=["listing", "headers", "tensors", "waiting", "downloads", "processes"],
)
def test_it_ends_while_the_hub_hangs(
    machine: Machine, number: int, fault: Fault, arguments: list[str]
) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/two", BASE)
    code, err, seconds = end(machine, fault, number, *arguments)
    assert code == 130, err
    assert err.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in err
    assert seconds < 8, seconds
    assert list(machine.work.iterdir()) == []


def test_a_process_that_is_killed_is_one_line(machine: Machine) -> None:
    """As a machine kills one that takes too much memory."""
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/two", BASE)
    both = r"^/org/(vita|two)/[0-9a-f]{40}/"  # whichever is killed has work
    fault = Fault(both, "stall", 30, times=99, ranged=True)
    arguments = ["validate", "hf://org/vita", "hf://org/two", "--jobs", "2"]
    process = hanging(machine, fault, *arguments)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    ended = process.result(20)
    assert ended.code == 3
    assert ended.err.startswith("error: worker-killed: ")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("shards", [1, 4])
def test_an_upload_ends_too(machine: Machine, shards: int) -> None:
    write_checkpoint(machine.work / "mine", Spec(hidden=64, mlp=128, heads=2), shards=shards)
    arguments = ["push", "mine", "org/new", "--force"]
    fault = Fault("^/upload/", "stall", 30, times=9)
    code, err, seconds = end(machine, fault, signal.SIGTERM, *arguments)
    assert code == 130, err
    assert seconds < 8, seconds
    assert "org/new" in machine.hub.repos
    assert len(machine.hub.repos["org/new"].commits) == 1
