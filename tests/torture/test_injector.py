"""Calls that are held: each fails, is preceded by a signal or happens, just as it was told."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM, signal

import pytest

from tests.torture.injector import Held, Injection, hold
from tests.torture.zygote import ends

pytestmark = [
    pytest.mark.torture,
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # of threads that it leaves
]


def disturbed(work: Callable[[], object], *injections: Injection) -> tuple[int, Held]:
    """How a fork ends that does some work, and what was held of it."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            listener = hold(sorted({injection.name for injection in injections}))
            socket.send_fds(there, [b"."], [listener])
            work()
            os._exit(0)
        os._exit(1)
    with here, there:
        _, (listener,), _, _ = socket.recv_fds(here, 1, 1)
    held = Held(pid, listener, injections)
    if not ends(pid, 10, held):
        os.kill(pid, SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(listener)
    return os.waitstatus_to_exitcode(status), held


def most(held: Held) -> dict[str, list[int]]:
    return {name: sorted(counts.values()) for name, counts in held.calls.items()}


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make directories from 1 to 5, whether that succeeds or not, and take the first away."""
    monkeypatch.chdir(tmp_path)

    def work() -> None:
        for number in range(1, 6):
            with suppress(OSError):
                os.mkdir(str(number))
        os.rmdir("1")

    return work


def made(tmp_path: Path) -> list[str]:
    return sorted(os.listdir(tmp_path))


def test_one_call_fails(steps: Callable[[], None], tmp_path: Path) -> None:
    code, held = disturbed(steps, Injection("mkdir", 3, error=errno.ENOSPC))
    assert (code, held.failed, most(held)) == (0, 1, {"mkdir": [5]})
    assert made(tmp_path) == ["2", "4", "5"]


def test_every_call_fails_from_one_on(steps: Callable[[], None], tmp_path: Path) -> None:
    code, held = disturbed(steps, Injection("mkdir", 3, error=errno.EIO, persistent=True))
    assert (code, held.failed) == (0, 3)
    assert made(tmp_path) == ["2"]


def test_what_was_killed_does_not_happen(steps: Callable[[], None], tmp_path: Path) -> None:
    for _ in range(20):
        code, held = disturbed(steps, Injection("mkdir", 3, signal=SIGKILL))
        assert (code, most(held)) == (-SIGKILL, {"mkdir": [3]})
        assert made(tmp_path) == ["1", "2"]
        for name in made(tmp_path):
            os.rmdir(tmp_path / name)


def test_what_a_signal_comes_before_happens(steps: Callable[[], None], tmp_path: Path) -> None:
    def work() -> None:
        signal(SIGTERM, lambda *_: os._exit(7))
        steps()

    code, _ = disturbed(work, Injection("mkdir", 3, signal=SIGTERM))
    assert code == 7
    assert made(tmp_path) == ["1", "2", "3"]


def test_a_kill_after_a_failure(steps: Callable[[], None], tmp_path: Path) -> None:
    failure = Injection("mkdir", 4, error=errno.EIO)
    kill = Injection("rmdir", 1, signal=SIGKILL, after_failure=True)
    assert disturbed(steps, failure, kill)[0] == -SIGKILL
    assert made(tmp_path) == ["1", "2", "3", "5"]
    never = Injection("mkdir", 9, error=errno.EIO)
    assert disturbed(steps, never, kill)[0] == 0


def test_threads_are_counted_apart(tmp_path: Path) -> None:
    def threads() -> None:
        for size in (2, 3):
            thread = threading.Thread(target=make, args=(size,))
            thread.start()
            thread.join()

    def make(size: int) -> None:
        for number in range(size):
            with suppress(OSError):
                os.mkdir(tmp_path / f"{size}-{number}")

    code, held = disturbed(threads, Injection("mkdir", 2, error=errno.EIO))
    assert (code, held.failed, most(held)) == (0, 2, {"mkdir": [2, 3]})
    assert made(tmp_path) == ["2-0", "3-0", "3-2"]


def test_a_run_that_never_ends(tmp_path: Path) -> None:
    def work() -> None:
        while True:
            with suppress(OSError):
                os.mkdir(tmp_path)

    code, held = disturbed(work, Injection("mkdir", 1, error=errno.EINTR, persistent=True))
    assert (code, held.is_endless) == (-SIGKILL, True)
