"""Several calls to the hub at once, and an end that waits for none of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Final, TypeVar

_T = TypeVar("_T")

_THREADS: Final = 8


def at_once(calls: Iterable[Callable[[], _T]]) -> list[_T]:
    """The results of ``calls`` in their order, several of them made at a time.

    The first error, or an interruption of whoever waits here, is the end: what has not begun never
    does, and nobody waits for what is under way, since a server may leave it hanging. It ends by
    itself or with the process, so a call must own whatever it writes to.
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

    for _ in range(min(_THREADS, len(futures))):
        Thread(target=work, daemon=True).start()
    try:
        for _ in futures:
            ended.get().result()
    finally:
        waiting.clear()
    return [future.result() for future in futures]
