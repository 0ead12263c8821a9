"""Let several processes that make the same calls share what there is to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Final, Protocol, TypeVar

from vita_ckpt.core.dataclass import dataclass

T = TypeVar("T")

# Bytes of one portion of a scan: enough to hide what it costs to hand one out, few enough that all
# processes end at about the same time.
PORTION: Final = 32 << 20


class Team(Protocol):
    """The processes that make the same calls, seen from one of them: ``rank`` of ``size``."""

    @property
    def rank(self) -> int:
        """The number of this process."""

    @property
    def size(self) -> int:
        """The number of processes."""

    @property
    def neighbours(self) -> int:
        """The number of processes that share this machine, this one included."""

    def gather(self, value: T, /) -> list[T]:
        """Return the values of all processes, by rank, on each of them."""

    def agreement(self) -> AbstractContextManager[None]:
        """Run the body on every process; if it fails on any, raise the error on all alike."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A team of one process, which may share its machine with strangers."""

    neighbours: int = 1
    rank: int = 0
    size: int = 1

    def gather(self, value: T, /) -> list[T]:
        """Return the one value."""
        return [value]

    def agreement(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


ALONE: Final = Alone()


def portions(items: Iterable[T], nbytes: Callable[[T], int]) -> list[list[T]]:
    """Cut ``items``, which keep their order, into portions of at most 32 MB if they are smaller.

    The portions depend on the items alone: sums over a portion are the same whoever makes them.
    """
    cut: list[list[T]] = []
    left = 0
    for item in items:
        size = nbytes(item)
        if size > left or not cut:
            cut.append([])
            left = PORTION
        cut[-1].append(item)
        left -= size
    return cut


def shares(sizes: Sequence[int], count: int) -> list[range]:
    """Cut a sequence of portions of ``sizes`` bytes into ``count`` runs of about equal bytes."""
    bounds = [0]
    total, before = sum(sizes), 0
    for index, size in enumerate(sizes):
        # A portion belongs to the share that its middle lies in.
        while len(bounds) < count and (2 * before + size) * count >= 2 * total * len(bounds):
            bounds.append(index)
        before += size
    bounds += [len(sizes)] * (count + 1 - len(bounds))
    return [range(start, stop) for start, stop in pairwise(bounds)]
