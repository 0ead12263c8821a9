"""Evaluate portions of a scan by threads, by processes, and by the processes of a team."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final, Generic, TypeVar

from vita_ckpt.core.team import ALONE, Team, shares
from vita_ckpt.errors import InputError
from vita_ckpt.storage.system.threads import run_all
from vita_ckpt.storage.system.worker_process import READY

P = TypeVar("P")
R = TypeVar("R")
Progress = Callable[[int], None]

# A process is worth its start, a tenth of a second and 30 MB, for so many bytes.
_WORTH: Final = 256 << 20
MOST: Final = 8
# Two keep a disk or a page cache busy.
_READERS: Final = 2
# The search path is this interpreter's: with -I nothing else adds to it.
_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from vita_ckpt.storage.system.worker_process import main; main()"
)


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


def evaluate_each(
    work: Callable[[P], R], portions: Sequence[P], *, workers: int
) -> Generator[R, None, None]:
    """Yield what ``work`` makes of each portion, in their order, in so many other processes.

    They are as those of :func:`evaluate_apart`, but for their stderr, which is this one's. An error
    of any is raised at once. If the caller stops or is interrupted, the processes are killed: a
    server may leave them hanging. Where none can be started this process does the work.
    """
    waiting = deque((portion, Future[R]()) for portion in portions)
    futures = [future for _, future in waiting]
    free: SimpleQueue[Callable[[P], R]] = SimpleQueue()
    ended: SimpleQueue[Future[R]] = SimpleQueue()

    def serve() -> None:
        evaluator = free.get()
        while True:
            try:
                portion, future = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(evaluator(portion))
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                future.set_exception(error)
            ended.put(future)

    with ExitStack() as processes:
        started = 0
        for _ in range(min(workers, len(portions)) if _may_start() else 0):
            with suppress(OSError):  # no more processes available: continue with fewer
                processes.enter_context(_Worker(work, free, stderr=None, alone=True))
                started += 1
        if not started:
            free.put(work)
        try:
            for _ in range(started or 1):
                Thread(target=serve, daemon=True).start()
            for future in futures:
                while not future.done():
                    ended.get().result()
                yield future.result()
        finally:
            waiting.clear()


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
        for _ in range(count - 1 if apart and _may_start() else 0):
            with suppress(OSError):  # no more processes available: continue with fewer
                self._workers.enter_context(_Worker(work, self._free))

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


def _may_start() -> bool:
    """Return whether what runs this process is a Python interpreter."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class _Worker:
    """A process that evaluates portions; it puts itself into ``free`` once it is ready.

    It is not in the terminal's group of processes: an interrupt is this process's to handle, at
    whose end, whatever it is, the worker ends. One that is ``alone``, since this process does not
    evaluate, is free too if it never gets ready, and says so.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        free: SimpleQueue[Any],
        *,
        stderr: int | None = subprocess.DEVNULL,
        alone: bool = False,
    ) -> None:
        self._alone = alone
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and no shell
            [sys.executable, "-I", "-c", _PROGRAM, *map(os.path.abspath, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - both are pipes
        assert self._process.stdout is not None  # noqa: S101
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._thread = Thread(target=self._start, args=(work, free), daemon=True)

    def __enter__(self) -> _Worker:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()  # it writes nothing
        self._process.wait()
        self._thread.join()
        for pipe in (self._requests, self._answers):
            with suppress(BrokenPipeError):  # a request that was never read
                pipe.close()

    def __call__(self, portion: Any) -> Any:
        try:
            self._send(portion)
            found, value = pickle.load(self._answers)  # noqa: S301 - this program's own
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                "worker-killed",
                f"process {self._process.pid}",
                expected="it to finish",
                got="a kill, perhaps because memory ran out",
            ) from error
        if found:
            return value
        raise value

    def _start(self, work: Callable[[Any], Any], free: SimpleQueue[Any]) -> None:
        is_ready = False
        with suppress(OSError):
            self._send(work)
            is_ready = self._answers.read(len(READY)) == READY
        if is_ready or self._alone:
            free.put(self)

    def _send(self, value: Any) -> None:
        pickle.dump(value, self._requests, pickle.HIGHEST_PROTOCOL)
        self._requests.flush()
