"""Implement the store for repositories on the hub."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Lock

from vita_ckpt.core.address import Address, is_inside, parse_address
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import HubError, InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.hub.concurrency import MANY, at_once
from vita_ckpt.storage.hub.errors import offline
from vita_ckpt.storage.hub.repository import Repository, list_repository
from vita_ckpt.storage.hub.session import Session
from vita_ckpt.storage.stores.base import Entry, Kind, Range, Source


class HubStore:
    """Repositories on the hub, each pinned to a commit and listed once.

    Paths are addresses, ``hf://org/name@commit/…``. ``session`` makes all requests.
    """

    def __init__(self, session: Session | None = None) -> None:
        self.session = Session() if session is None else session
        self._repositories: dict[tuple[str, str], Repository] = {}
        self._lock = Lock()

    @property
    def is_local(self) -> bool:
        """Return False: paths are addresses."""
        return False

    def pin(self, address: Address, *, anew: bool = False) -> Address:
        """Return ``address`` with its revision resolved to a commit.

        A revision is resolved once, and again with ``anew``. Raises HubError if there is no such
        repository or revision, or the hub cannot be reached.
        """
        revision = address.revision or "main"
        if anew:
            self._repositories.pop((address.repository, revision), None)
        repository = self._find(address.repository, revision)
        return Address(address.repository, repository.commit, address.below)

    def revisions(self, name: str, commit: str) -> list[str]:
        """Return the branches and tags of a repository that were resolved to ``commit``."""
        return [
            revision
            for (known, revision), repository in self._repositories.items()
            if known == name and repository.commit == commit != revision
        ]

    def absolute(self, path: str) -> str:
        """Return ``path``: an address is absolute."""
        return path

    def look(self, path: str) -> Entry | None:
        """Return what is at an address pinned to a commit."""
        repository, below = self._at(path)
        return repository.look(below)

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory of a repository, sorted."""
        repository, below = self._at(path)
        return repository.listing(below)

    @contextmanager
    def open(self, path: str) -> Iterator[Source]:
        """Open the file at an address pinned to a commit.

        Raises InputError if there is no such file, and any error that :meth:`prefetch` stored for
        it.
        """
        repository, below = self._at(path)
        if below not in repository.files:
            entry = repository.look(below)
            if entry is None:
                self.check_known(path)
            code = "not-on-hub" if entry is None else "not-a-regular-file"
            raise InputError(code, path, expected="a regular file")
        error = repository.failed.pop(below, None)
        if error is not None:
            raise error
        yield _RemoteFile(repository, repository.files[below])

    def read_so_far(self, file: RemoteFile) -> list[tuple[int, bytes]]:
        """Return what was read of a file: offsets and bytes, in order; some may overlap."""
        return self._find(file.repository, file.commit).read_so_far(file)

    def prefetch(self, paths: Collection[str], read: Callable[[str], object]) -> None:
        """Call ``read`` with each of ``paths`` now, several at a time.

        Errors of the hub are raised when the file is opened. A damaged file is read again then,
        from the received bytes. Raises HubError for a file whose existence is unknown.
        """
        places = {path: self._at(path) for path in paths}
        for path, (repository, below) in places.items():
            if repository.look(below) is None:
                self.check_known(path)

        def warm(path: str, repository: Repository, below: str) -> None:
            repository.failed.pop(below, None)  # from an earlier prefetch
            try:
                read(path)
            except (HubError, StaleInputError) as error:
                repository.failed[below] = error
            except InputError:
                pass

        at_once([partial(warm, path, *place) for path, place in places.items()], MANY)

    def check_known(self, path: str) -> None:
        """Raise HubError when offline: a file that is not in the cache may still be on the hub."""
        if self.session.is_offline:
            raise offline(path)

    def why_absent(self, path: str) -> str:
        """Return that nothing is there: the listing of a commit is complete."""
        return "nothing there"

    def folder_of(self, path: str) -> str:
        """Return the directory of a file: there are no links."""
        return posixpath.dirname(path)

    def stays_below(self, root: str, name: str) -> bool:
        """Return whether ``name`` is that of a file below ``root``: there are no links."""
        return bool(name) and is_inside(name)

    def reached_from(self, root: str, path: str) -> str | None:
        """Return the address that a path in a config resolves to; None if there is nothing.

        It is looked up beside the checkpoint's directory and in it, and only in its own commit: it
        cannot refer to other repositories or to this machine.
        """
        address = parse_address(root)
        entry = self.look(root)
        is_file = entry is not None and entry.kind is Kind.FILE
        folder = posixpath.dirname(address.below) if is_file else address.below
        for start in (posixpath.dirname(folder), folder):
            below = posixpath.normpath(posixpath.join(start, path))
            below = "" if below == "." else below
            # An absolute path, or one that leads above the root, is not in the repository.
            if is_inside(below):
                found = str(replace(address, below=below))
                if self.look(found) is not None:
                    return found
        return None

    def _at(self, path: str) -> tuple[Repository, str]:
        """Return the repository of an address pinned to a commit, and the path in it."""
        address = parse_address(path)
        if not address.is_pinned:
            raise HubError("revision-not-found", path, expected="an address with a commit")
        return self._find(address.repository, address.revision), address.below

    def _find(self, name: str, revision: str) -> Repository:
        with self._lock:
            known = self._repositories.get((name, revision))
            if known is None:
                known = list_repository(self.session, name, revision)
                self._repositories[name, revision] = known
                self._repositories[name, known.commit] = known
            return known


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file of a repository, read by range."""

    repository: Repository
    file: RemoteFile

    def read(self, size: int, offset: int) -> bytes:
        if not 0 <= offset <= offset + size <= self.file.size:
            raise MalformedFileError(
                "truncated-file",
                self.file.path,
                expected=f"{size} bytes at {offset}",
                got="the end of it",
                hint="the file is cut off or damaged: upload it again",
            )
        return self.repository.read(self.file, size, offset) if size else b""

    def expect(self, ranges: Iterable[Range]) -> None:
        self.repository.expect(self.file, ranges)
