"""Run several calls at a time in threads; the first error stops them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
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
