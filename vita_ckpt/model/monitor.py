"""Watch over the ranks of a run: what one of them fails at, and that they get on, ends them all."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from vita_ckpt.errors import InputError, VitaCkptError

# How long a rank waits at its end for the others to have heard why, in seconds.
_FAREWELL: Final = 3.0
_BEAT: Final = 0.25


@dataclass(frozen=True)
class Failure:
    """Why a run ends: the error, the rank that says it, and the one that cannot answer any more."""

    error: VitaCkptError
    speaker: int
    gone: int | None


class Monitor:
    """Publish the progress of this rank in a store, and read there what the others do.

    Two threads: one talks to the store, the other ends the process if that one hears of no progress
    for ``timeout`` seconds, even if the store itself does not answer. While a rank loads, its being
    alive counts as progress. The process is ended from a thread because the main one cannot be
    interrupted while it waits for another rank.
    """

    def __init__(self, store: Any, rank: int, size: int, *, hosts: int | None, timeout: float):
        self._store = store
        self._rank = rank
        self._size = size
        self._hosts = hosts  # the rank that the store lives in, None if the launcher has it
        self._timeout = timeout
        self._ticks = 0
        self._waiting = False
        self._loading = True
        self._heard: dict[int, tuple[str, float]] = {}
        self._progress = time.monotonic()
        self._stopped = threading.Event()
        self._end = threading.Lock()  # taken by the one thread that ends this process

    def start(self) -> None:
        """Begin to watch."""
        self._store.set(f"rank/{self._rank}", "0 1 0")
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._talk, self._time)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Watch no more, and wait until every rank is done: a launcher kills who is left."""
        self._stopped.set()
        self._threads[0].join(_FAREWELL)
        deadline = time.monotonic() + _FAREWELL
        with suppress(RuntimeError):
            self._store.add("done", 1)
            while self._store.add("done", 0) < self._size and time.monotonic() < deadline:
                time.sleep(0.01)

    def tick(self, *_: object) -> None:
        """Count a step of this rank's work; fits as a hook of a module."""
        self._ticks += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that this rank waits for another one."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            self._ticks += 1

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Say that this rank loads, which may take as long as it takes."""
        self._loading = True
        try:
            yield
        finally:
            self._loading = False
            self._ticks += 1

    def missing(self) -> int | None:
        """Wait for a moment, and return a rank that shows no sign of life, if there is one."""
        time.sleep(2 * _BEAT)  # what it said last is heard by then
        before = dict(self._heard)
        time.sleep(4 * _BEAT)
        others = (rank for rank in range(self._size) if rank != self._rank)
        return next((r for r in others if self._heard.get(r) == before.get(r)), None)

    def fail(self, error: VitaCkptError, *, gone: int | None = None) -> Failure:
        """End the other ranks with an error; return the failure that came first."""
        self._end.acquire()  # never released: this process ends now
        self._stopped.set()
        speaker = 0 if gone != 0 else min(r for r in range(self._size) if r != gone)
        mine = Failure(error, speaker, gone)
        # The store may not answer.
        late = threading.Timer(_FAREWELL, os._exit, (error.exit_code,))
        late.start()
        try:
            return _failure(self._store.compare_set("failure", "", pickle.dumps(mine).hex()))
        except RuntimeError:
            return self._store_lost()
        finally:
            late.cancel()

    def farewell(self, failure: Failure) -> None:
        """Wait until every rank knows, and the line is said: a launcher kills who is left."""
        present = self._size - (failure.gone is not None)
        deadline = time.monotonic() + _FAREWELL
        with suppress(RuntimeError):
            self._store.add("heard", 1)
            if failure.speaker == self._rank:
                self._store.add("said", 1)
            while time.monotonic() < deadline:
                heard = self._store.add("heard", 0)
                said = self._store.add("said", 0)
                if said and (self._hosts != self._rank or heard >= present):
                    return
                time.sleep(0.02)

    def _talk(self) -> None:
        beat = 0
        pause = min(_BEAT, self._timeout / 8)
        while not self._stopped.wait(pause):
            beat += 1
            if self._loading and not self._waiting:
                self._ticks += 1
            try:
                state = f"{self._ticks} {int(self._waiting)} {beat}"
                self._store.set(f"rank/{self._rank}", state)
                if self._store.check(["failure"]):
                    self._leave(_failure(self._store.get("failure")))
                self._listen()
            except RuntimeError:
                if not self._stopped.is_set():
                    self._leave(self._store_lost())

    def _listen(self) -> None:
        for rank in range(self._size):
            if not self._store.check([f"rank/{rank}"]):
                continue
            text = self._store.get(f"rank/{rank}").decode()
            before, _ = self._heard.get(rank, ("", 0.0))
            if text == before:
                continue
            if text.split()[0] != before.partition(" ")[0]:
                self._progress = time.monotonic()
            self._heard[rank] = (text, time.monotonic())

    def _time(self) -> None:
        while not self._stopped.wait(min(_BEAT, self._timeout / 8)):
            if time.monotonic() - self._progress > self._timeout:
                self._leave(self._hanging())

    def _hanging(self) -> Failure:
        """Name a rank that is not heard of any more, else one that does not wait for another."""
        now = time.monotonic()
        others = [rank for rank in self._heard if rank != self._rank]
        silent = [r for r in others if now - self._heard[r][1] > self._timeout / 2]
        busy = [r for r in self._heard if self._heard[r][0].split()[1] == "0"]
        if len(silent) == len(others) and self._hosts is not None:
            silent = [self._hosts]
        rank = next(iter([*silent, *busy, self._rank]))
        error = InputError(
            "rank-hangs",
            f"rank {rank}",
            expected=f"progress within {self._timeout:g} s",
            hint="--rank-timeout allows more",
        )
        alive = [other for other in range(self._size) if other not in silent and other != rank]
        return Failure(error, min(alive, default=self._rank), rank)

    def _store_lost(self) -> Failure:
        if self._hosts is None:
            error = InputError("rank-lost", "the launcher", expected="its store to answer")
            return Failure(error, 0, None)
        error = InputError("rank-lost", f"rank {self._hosts}", got="it ended")
        speaker = min(rank for rank in range(self._size) if rank != self._hosts)
        return Failure(error, speaker, self._hosts)

    def _leave(self, failure: Failure) -> NoReturn:
        self._end.acquire()  # never released: this process ends now
        if failure.speaker == self._rank:
            with suppress(OSError):
                os.write(2, f"error: {failure.error}\n".encode())
        # A store in a rank that hangs does not answer, but the others find out by themselves.
        if self._hosts is None or failure.gone != self._hosts:
            with suppress(RuntimeError):
                self._store.compare_set("failure", "", pickle.dumps(failure).hex())
            self.farewell(failure)
        os._exit(failure.error.exit_code)


def _failure(stored: bytes) -> Failure:
    failure: Failure = pickle.loads(bytes.fromhex(stored.decode()))  # noqa: S301 - our own rank's
    return failure
