"""Define what a store answers: what lies at a path, and sources to read from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from vita_ckpt.core.checkpoint import File

Range = tuple[int, int]  # offset and size, in bytes


class Source(Protocol):
    """A file that is read by range, wherever it lies."""

    @property
    def file(self) -> File:
        """Return the file's identity, without a digest."""

    def read(self, size: int, offset: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``; a file that ends before is an error."""

    def expect(self, ranges: Iterable[Range]) -> None:
        """Announce ranges that will be read soon, so that a remote store fetches them together."""


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
        """Return whether there are names in it."""
        return self.kind in (Kind.DIRECTORY, Kind.DIRECTORY_LINK)


class Store(Protocol):
    """A place where files lie: the local disk, or repositories on the hub.

    Paths are strings with ``/`` between their components. Only the store that a path belongs to
    takes it apart.
    """

    @property
    def is_local(self) -> bool:
        """Return whether paths of this store are paths of the operating system."""

    def absolute(self, path: str) -> str:
        """Return ``path`` in the form that this store's other methods take."""

    def look(self, path: str) -> Entry | None:
        """Return what lies at ``path``; None for nothing, or nothing that can be reached."""

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. Raises InputError if it cannot be listed."""

    def open(self, path: str) -> AbstractContextManager[Source]:
        """Open the regular file at ``path``. Raises InputError for anything else."""

    def prefetch(self, paths: Collection[str], read: Callable[[str], object]) -> None:
        """Announce that ``read`` will be called with each of ``paths`` soon.

        A remote store calls it now, for several paths at a time, and keeps what it receives. What
        fails is raised when the file is opened.
        """

    def check_known(self, path: str) -> None:
        """Raise HubError if the store cannot tell whether anything lies at ``path``."""

    def why_absent(self, path: str) -> str:
        """Return why nothing was found at ``path``, for a person."""

    def folder_of(self, path: str) -> str:
        """Return the directory that a file lies in, its links resolved."""

    def stays_below(self, root: str, name: str) -> bool:
        """Return whether ``name`` is that of a file below ``root``, its links resolved."""

    def reached_from(self, root: str, path: str) -> str | None:
        """Return where a path that a config in ``root`` names leads; None if to nothing."""
