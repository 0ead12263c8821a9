"""Define the interface of a store: look up paths, and open sources to read from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from enum import Enum, auto
from typing import Protocol

from vita_ckpt.core.checkpoint import File
from vita_ckpt.core.dataclass import dataclass

Range = tuple[int, int]  # offset and size, in bytes


class Source(Protocol):
    """A file that is read by range, local or remote."""

    @property
    def file(self) -> File:
        """The file's identity, without a digest."""

    def read(self, size: int, offset: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``.

        Raises MalformedFileError at the end of the file.
        """

    def expect(self, ranges: Iterable[Range]) -> None:
        """Announce ranges that will be read soon, so that a remote store fetches them together."""


class Kind(Enum):
    """The kinds of entries at a path."""

    FILE = auto()
    DIRECTORY = auto()
    DIRECTORY_LINK = auto()
    BROKEN_LINK = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry at a path; ``file`` is the identity of a regular file."""

    kind: Kind
    file: File | None = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory, or a link to one."""
        return self.kind in (Kind.DIRECTORY, Kind.DIRECTORY_LINK)


class Store(Protocol):
    """A place that holds files: the local disk, or repositories on the hub.

    Paths are strings with ``/`` between their components. Only the store that a path belongs to
    splits it.
    """

    @property
    def is_local(self) -> bool:
        """Whether paths of this store are paths of the operating system."""

    def absolute(self, path: str) -> str:
        """Return ``path`` in the form that this store's other methods accept."""

    def look(self, path: str) -> Entry | None:
        """Return what is at ``path``; None if there is nothing or it cannot be reached."""

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. Raises InputError if it cannot be listed."""

    def open(self, path: str) -> AbstractContextManager[Source]:
        """Open the regular file at ``path``. Raises InputError for anything else."""

    def prefetch(self, paths: Collection[str], read: Callable[[str], object]) -> None:
        """Announce that ``read`` will be called with each of ``paths`` soon.

        A remote store calls it now, for several paths at a time, and keeps the received bytes.
        Errors are raised when the file is opened.
        """

    def check_known(self, path: str) -> None:
        """Raise HubError if the store cannot tell whether anything is at ``path``."""

    def why_absent(self, path: str) -> str:
        """Return the reason why nothing was found at ``path``, as text for messages."""

    def folder_of(self, path: str) -> str:
        """Return the directory of a file, with links resolved."""

    def stays_below(self, root: str, name: str) -> bool:
        """Return whether ``name`` is that of a file below ``root``, with links resolved."""

    def reached_from(self, root: str, path: str) -> str | None:
        """Return what a path in a config in ``root`` resolves to; None if there is nothing."""
