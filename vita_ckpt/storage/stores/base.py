"""Define what a store answers: what lies at a path, and sources to read from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from vita_ckpt.core.checkpoint import File

Range = tuple[int, int]  # offset and size, in bytes


class Source(Protocol):
    """A file that is read here and there, wherever it lies."""

    @property
    def file(self) -> File:
        """Its identity, without a digest."""

    def read(self, size: int, offset: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``; a file that ends before is an error."""

    def expect(self, ranges: Iterable[Range]) -> None:
        """Say what will be read soon, so that what lies far away can be fetched all at once."""


class Kind(Enum):
    """What can lie at a path."""

    FILE = auto()
    DIRECTORY = auto()
    DIRECTORY_LINK = auto()
    BROKEN_LINK = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies at a path; ``file`` is the identity of a regular file."""

    kind: Kind
    file: File | None = None

    @property
    def is_directory(self) -> bool:
        """Whether there are names in it."""
        return self.kind in (Kind.DIRECTORY, Kind.DIRECTORY_LINK)
