"""Several calls at once, where the system gives fewer threads than are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest

from vita_ckpt.storage.hub.concurrency import at_once
from vita_ckpt.storage.system import threads as module


def limited(most: int) -> Callable[..., Thread]:
    """Threads of which so many can be started."""
    started = 0

    class Limited(Thread):
        def start(self) -> None:
            nonlocal started
            if started == most:
                raise RuntimeError("can't start new thread")
            started += 1
            super().start()

    return Limited


@pytest.mark.parametrize("most", [1, 3])
def test_fewer_threads_do_it_too(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(module, "Thread", limited(most))
    assert at_once([partial(int, i) for i in range(20)]) == list(range(20))


def test_no_thread_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Thread", limited(0))
    with pytest.raises(RuntimeError, match="can't start"):
        at_once([partial(int, i) for i in range(20)])


def test_what_has_not_begun_at_the_first_error_never_does() -> None:
    begun: list[int] = []

    def call(number: int) -> None:
        begun.append(number)
        time.sleep(0.05)
        raise ValueError(number)

    with pytest.raises(ValueError, match=r"[0-9]"):
        at_once([partial(call, i) for i in range(500)])
    count = len(begun)
    time.sleep(0.2)
    assert len(begun) == count < 100
