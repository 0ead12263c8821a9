"""Run several calls at a time in threads; the first error stops them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
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
    waiting = deque(enumerate(calls))
    if len(waiting) == 1:
        return [waiting[0][1]()]
    count = len(waiting)
    results: dict[int, _T] = {}
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        while True:
            try:
                index, call = waiting.popleft()
            except IndexError:
                return
            error: BaseException | None = None
            try:
                results[index] = call()
            except BaseException as caught:  # noqa: BLE001 - raised where it is waited for
                error = caught
                waiting.clear()
            ended.put(error)

    started: list[Thread] = []
    try:
        for _ in range(min(threads, count)):
            thread = Thread(target=work, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads available: continue with fewer
                if not started:
                    raise
                break
            started.append(thread)
        for _ in range(count):
            if (error := ended.get()) is not None:
                raise error
    finally:
        waiting.clear()
        latest = None if grace is None else time.monotonic() + grace
        for thread in started:
            thread.join(None if latest is None else max(0, latest - time.monotonic()))
    return [results[index] for index in range(count)]


def in_order(calls: Iterable[Callable[[], _T]], threads: int) -> Iterator[_T]:
    """Yield the results of ``calls`` in their order, while up to ``threads`` more are computed.

    No more results than that wait for being taken. After an error, or when the caller stops, no
    further call starts, and those in progress are waited for.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - not at every start

    left = iter(calls)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(call) for call in islice(left, threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(call) for call in islice(left, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
