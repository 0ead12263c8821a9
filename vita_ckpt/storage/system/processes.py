"""Start processes of this interpreter that evaluate what is pickled to them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeVar

from vita_ckpt.errors import InputError
from vita_ckpt.storage.system.worker_process import READY

P = TypeVar("P")
R = TypeVar("R")

# The search path is this interpreter's: with -I nothing else adds to it.
_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[1:]; "
    "from vita_ckpt.storage.system.worker_process import main; main()"
)


def evaluate_each(
    work: Callable[[P], R], portions: Sequence[P], *, workers: int
) -> Generator[R, None, None]:
    """Yield what ``work`` makes of each portion, in their order, in so many other processes.

    They are as those of :func:`workers.evaluate_apart`, but for their stderr, which is this one's.
    An error of any is raised at once. If the caller stops or is interrupted, the processes are
    killed: a server may leave them hanging. Where none can be started this process does the work.
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
        for _ in range(min(workers, len(portions)) if may_start() else 0):
            with suppress(OSError):  # no more processes available: continue with fewer
                processes.enter_context(Worker(work, free, stderr=None, alone=True))
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


def may_start() -> bool:
    """Return whether what runs this process is a Python interpreter."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class Worker:
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

    def __enter__(self) -> Worker:
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
        """Evaluate a portion; raise its error, or InputError if the process was killed."""
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
