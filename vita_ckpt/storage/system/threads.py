"""Run several calls at a time in threads; the first error stops them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

_T = TypeVar("_T")


def run_all(
    calls: Iterable[Callable[[], _T]], threads: int, *, grace: float | None = None
) -> list[_T]:
    """Return the results of ``calls`` in their order, running up to ``threads`` at a time.

    After the first error, or an interrupt of the caller, no further call starts. Calls in progress
    are waited for, with ``grace`` at most that many seconds, since a server may leave them hanging.
    Such a call continues on its own, so it must own whatever it writes to.
    """
    waiting = deque((call, Future[_T]()) for call in calls)
    if len(waiting) == 1:
        return [waiting[0][0]()]
    futures = [future for _, future in waiting]
    ended: SimpleQueue[Future[_T]] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                call, future = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)
                waiting.clear()
            ended.put(future)

    started: list[Thread] = []
    try:
        for _ in range(min(threads, len(futures))):
            thread = Thread(target=work, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads available: continue with fewer
                if not started:
                    raise
                break
            started.append(thread)
        for _ in futures:
            ended.get().result()
    finally:
        waiting.clear()
        latest = None if grace is None else time.monotonic() + grace
        for thread in started:
            thread.join(None if latest is None else max(0, latest - time.monotonic()))
    return [future.result() for future in futures]
