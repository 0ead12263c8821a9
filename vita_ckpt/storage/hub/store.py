"""Answer for a repository on the hub what a store answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from vita_ckpt.core.address import is_inside
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError, InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.hub.concurrency import at_once
from vita_ckpt.storage.hub.errors import offline
from vita_ckpt.storage.hub.repository import Repository, hub
from vita_ckpt.storage.stores.base import Entry, Range


@dataclass(frozen=True, slots=True)
class _RemoteSource:
    """A file of a repository, for reading here and there."""

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


def open_remote(path: str) -> _RemoteSource:
    """The file at an address pinned to a commit, as a source."""
    repository, below = hub().at(path)
    if below not in repository.files:
        if repository.look(below) is None:
            check_known(path)
        code = "not-a-regular-file" if repository.look(below) else "not-on-hub"
        raise InputError(code, path, expected="a regular file")
    error = repository.failed.pop(below, None)
    if error is not None:
        raise error
    return _RemoteSource(repository, repository.files[below])


def look(path: str) -> Entry | None:
    """What lies at an address pinned to a commit."""
    repository, below = hub().at(path)
    return repository.look(below)


def listing(path: str) -> list[str]:
    """The names in a directory of a repository, sorted."""
    repository, below = hub().at(path)
    return repository.listing(below)


def expect_headers(root: str, names: list[str]) -> None:
    """Fetch the headers of the weight files ``names`` below ``root``, several at a time.

    What fails is said when the file is opened; a name that leads out of the repository is refused
    by whoever looks at it, and nothing is opened for it. Raises HubError for a file of which it
    cannot be known whether there is one.
    """
    from vita_ckpt.storage.reading.shards import read_shard  # noqa: PLC0415 - it imports the places

    repository, below = hub().at(root)
    paths = {n: f"{below}/{n}" if below else n for n in names if n and is_inside(n)}
    for name, path in paths.items():
        if repository.look(path) is None:
            check_known(f"{root}/{name}")

    def warm(name: str, path: str) -> None:
        repository.failed.pop(path, None)  # of an earlier time, when nobody asked for it any more
        try:
            read_shard(root, name)
        except (HubError, StaleInputError) as error:
            repository.failed[path] = error
        except InputError:
            pass  # of what was received, and is kept

    at_once([partial(warm, *one) for one in paths.items()])


def check_known(path: str) -> None:
    """Raise HubError if what is not listed may be on the hub all the same: offline, who knows."""
    if hub().session.is_offline:
        raise offline(path)
