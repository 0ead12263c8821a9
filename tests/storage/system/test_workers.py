"""Portions evaluated in several processes: the results, the errors, and that none is left."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vita_ckpt.core.team import Alone
from vita_ckpt.errors import InputError
from vita_ckpt.storage.system.processes import evaluate_each
from vita_ckpt.storage.system.workers import evaluate, evaluate_apart


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number * number, os.getpid()


def fail(number: int) -> int:
    time.sleep(0.02)
    if os.getpid() != number:  # not in the process that asks
        raise InputError("truncated-file", "a", got="the end of it")
    return number


def die(number: int) -> int:
    time.sleep(0.02)
    if os.getpid() != number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def others() -> set[str]:
    """The processes that other tests have started."""
    return children()


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_results_are_in_order_and_made_by_several_processes(others: set[str]) -> None:
    numbers = list(range(100))
    steps: list[int] = []
    found = evaluate_apart(square, numbers, numbers, workers=3, progress=steps.append)
    assert [result for result, _ in found] == [number * number for number in numbers]
    assert os.getpid() in {process for _, process in found}
    assert 2 <= len({process for _, process in found}) <= 3
    assert sum(steps) == sum(numbers)
    assert children() <= others


def test_little_work_starts_no_process() -> None:
    found = evaluate_apart(square, [1, 2, 3], [1 << 20] * 3)
    assert {process for _, process in found} == {os.getpid()}


def test_threads_start_no_process() -> None:
    found = evaluate(square, [1, 2, 3], [1 << 30] * 3, team=Alone(neighbours=2))
    assert {process for _, process in found} == {os.getpid()}


def test_an_error_of_a_process_is_raised_as_it_is(others: set[str]) -> None:
    with pytest.raises(InputError, match="truncated-file: a"):
        evaluate_apart(fail, [os.getpid()] * 200, [1] * 200, workers=2)
    assert children() <= others


def test_a_process_that_is_killed(others: set[str]) -> None:
    with pytest.raises(InputError, match="worker-killed"):
        evaluate_apart(die, [os.getpid()] * 200, [1] * 200, workers=2)
    assert children() <= others


def test_each_is_done_by_other_processes(others: set[str]) -> None:
    found = list(evaluate_each(square, range(20), workers=2))
    assert [result for result, _ in found] == [number * number for number in range(20)]
    assert os.getpid() not in {process for _, process in found}
    left = evaluate_each(square, range(1000), workers=2)
    assert next(left)[0] == 0
    left.close()
    assert children() <= others
    with pytest.raises(InputError, match="truncated-file: a"):
        list(evaluate_each(fail, [os.getpid()] * 4, workers=1))
    with pytest.raises(InputError, match="worker-killed"):
        list(evaluate_each(die, [os.getpid()] * 4, workers=2))
    assert children() <= others


def test_each_is_done_here_where_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("", "/nowhere/python"):
        monkeypatch.setattr(sys, "executable", executable)
        assert {process for _, process in evaluate_each(square, [1, 2], workers=2)} == {os.getpid()}


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs where the interpreter should be, or something that is none."""
    for executable in ("", "/nowhere/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        found = evaluate_apart(square, [1, 2], [1, 1], workers=2)
        assert found == [(1, os.getpid()), (4, os.getpid())]


SCAN = """
import os, sys
from time import sleep
from vita_ckpt.storage.system.workers import evaluate_apart

def started(_nbytes, seen=[]):
    if not seen:
        print("started", flush=True)
        seen.append(1)

evaluate_apart(sleep, [0.02] * 10_000, [1] * 10_000, workers=2, progress=started)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_a_kill_leaves_no_process(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCAN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert ("KeyboardInterrupt" in err) == (number is signal.SIGINT)
    assert "Broken" not in err
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and _state(worker) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_is_asked_for_nothing_says_nothing() -> None:
    """The process that started it was interrupted, and sent no work."""
    program = "from vita_ckpt.storage.system.worker_process import main; main()"
    closed, write = os.pipe()
    os.close(closed)
    for stdin, stdout in ((b"", subprocess.PIPE), (pickle.dumps(abs), write)):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(write)


def _state(process: str) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
