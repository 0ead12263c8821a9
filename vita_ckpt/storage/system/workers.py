"""Evaluate portions of a scan by threads, by processes, and by the processes of a team."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import Final, Generic, TypeVar

from vita_ckpt.core.team import ALONE, Team, shares
from vita_ckpt.storage.system.threads import run_all

P = TypeVar("P")
R = TypeVar("R")
Progress = Callable[[int], None]

# A process is worth its start, a tenth of a second and 30 MB, for so many bytes.
_WORTH: Final = 256 << 20
MOST: Final = 8
# Two keep a disk or a page cache busy.
_READERS: Final = 2


def no_progress(_nbytes: int) -> None:
    """Ignore progress."""


def evaluate(
    work: Callable[[P], R],
    portions: Sequence[P],
    sizes: Sequence[int],
    *,
    team: Team = ALONE,
    threads: int | None = None,
    most: int = _READERS,
    progress: Progress = no_progress,
) -> list[R]:
    """Return what ``work`` makes of each portion, in their order, on every process of ``team``.

    ``sizes`` are the bytes of the portions. Each process of the team takes an equal share of them,
    and works with ``threads``, by default one for each CPU, at ``most`` two. That serves work that
    waits for reads, or for functions that let other threads run. ``progress`` is called with the
    bytes of each portion that is done. Raises the error of a portion.
    """
    count = threads or min(_cpus(team), most)
    return _evaluate(work, portions, sizes, team, progress, lambda _: count, False)


def evaluate_apart(
    work: Callable[[P], R],
    portions: Sequence[P],
    sizes: Sequence[int],
    *,
    team: Team = ALONE,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> list[R]:
    """Do the same for work in Python's own code, of which a process does one thing at a time.

    If there is much to do it is done by ``workers``, by default one for each CPU: this process, and
    others to which ``work``, the portions and the results are pickled. Raises InputError
    ``worker-killed`` if a process is killed.
    """

    def count(nbytes: int) -> int:
        return workers or min(_cpus(team), MOST, nbytes // _WORTH + 1)

    return _evaluate(work, portions, sizes, team, progress, count, True)


def _evaluate(
    work: Callable[[P], R],
    portions: Sequence[P],
    sizes: Sequence[int],
    team: Team,
    progress: Progress,
    count: Callable[[int], int],
    apart: bool,
) -> list[R]:
    with team.agreement():
        mine = shares(sizes, team.size)[team.rank]
        portions, sizes = portions[mine.start : mine.stop], sizes[mine.start : mine.stop]
        workers = min(count(sum(sizes)), len(portions))
        with _Crew(work, workers, apart, progress) as crew:
            found = run_all(map(partial(partial, crew.evaluate), portions, sizes), workers)
    return [result for results in team.gather(found) for result in results]


class _Crew(Generic[P, R]):
    """What evaluates portions: this process in its threads, or also other ones."""

    def __init__(self, work: Callable[[P], R], count: int, apart: bool, progress: Progress) -> None:
        self._free: SimpleQueue[Callable[[P], R]] = SimpleQueue()
        self._progress = progress
        self._lock = Lock()
        self._workers = ExitStack()
        for _ in range(1 if apart else count):
            self._free.put(work)
        if apart and count > 1:
            from vita_ckpt.storage.system.processes import Worker, may_start  # noqa: PLC0415 - few start any

            for _ in range(count - 1 if may_start() else 0):
                with suppress(OSError):  # no more processes available: continue with fewer
                    self._workers.enter_context(Worker(work, self._free))

    def __enter__(self) -> _Crew[P, R]:
        return self

    def __exit__(self, *exc: object) -> None:
        self._workers.close()

    def evaluate(self, portion: P, nbytes: int) -> R:
        """Evaluate a portion as soon as a thread or a process is free.

        A process is free once it is ready; until then, this one does the work.
        """
        evaluator = self._free.get()
        try:
            result = evaluator(portion)
        finally:
            self._free.put(evaluator)
        with self._lock:
            self._progress(nbytes)
        return result


def _cpus(team: Team) -> int:
    """Return how many CPUs fall to each process of the team on this machine."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return max(1, cpus // team.neighbours)
