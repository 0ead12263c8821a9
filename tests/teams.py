"""A team of threads: each makes the same calls, as the processes of a launcher do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Barrier
from typing import Any, TypeVar

from vita_ckpt.core.team import Team

T = TypeVar("T")


@dataclass(frozen=True)
class _Member:
    rank: int
    size: int
    table: list[Any]
    barrier: Barrier
    neighbours: int = 1

    def gather(self, value: T, /) -> list[T]:
        self.table[self.rank] = value
        self.barrier.wait()
        values = list(self.table)
        self.barrier.wait()
        return values

    def agreement(self) -> AbstractContextManager[None]:
        return nullcontext()


def together(size: int, call: Callable[[Team], T]) -> list[T]:
    """Call a function once for each member of a team, at the same time."""
    table, barrier = [None] * size, Barrier(size, timeout=60)
    with ThreadPoolExecutor(size) as threads:
        members = [_Member(rank, size, table, barrier) for rank in range(size)]
        return list(threads.map(call, members))
