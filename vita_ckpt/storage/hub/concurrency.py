"""Several calls to the hub at once, and an end that waits for none of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Final, TypeVar

_T = TypeVar("_T")

_THREADS: Final = 8
_GRACE: Final = 0.5  # seconds for what is under way when the end comes


def at_once(calls: Iterable[Callable[[], _T]]) -> list[_T]:
    """The results of ``calls`` in their order, several of them made at a time.

    The first error, or an interruption of whoever waits here, is the end: what has not begun never
    does, and what is under way is not waited for, but a moment: a server may leave it hanging. It
    ends by itself or with the process, so a call must own whatever it writes to.
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
            ended.put(future)

    threads: list[Thread] = []
    try:
        for _ in range(min(_THREADS, len(futures))):
            thread = Thread(target=work, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no more: fewer do it too
                if not threads:
                    raise
                break
            threads.append(thread)
        for _ in futures:
            ended.get().result()
    finally:
        waiting.clear()
        latest = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(max(0, latest - time.monotonic()))
    return [future.result() for future in futures]
