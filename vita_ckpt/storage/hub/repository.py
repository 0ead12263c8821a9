"""List a repository at a commit, and read its files by range or from the cache."""

from __future__ import annotations

import json
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Final
from urllib.parse import quote

from vita_ckpt.core.address import Address, is_inside
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError, InputError, MalformedFileError
from vita_ckpt.storage.hub.byte_ranges import fetch_bytes
from vita_ckpt.storage.hub.cache import cached, cached_commit, cached_files
from vita_ckpt.storage.hub.concurrency import at_once
from vita_ckpt.storage.hub.errors import offline
from vita_ckpt.storage.hub.session import Session
from vita_ckpt.storage.stores.base import Entry, Kind, Range
from vita_ckpt.storage.stores.local import opened, read_at

_LARGEST_LISTING: Final = 64 << 20
_LARGEST_FILE: Final = (1 << 63) - 1  # the largest size in a file system


@dataclass(slots=True)
class Repository:
    """The files of one commit by their paths, with the bytes read so far.

    ``failed`` holds errors of prefetched files, to be raised when the file is opened.
    """

    session: Session
    name: str
    commit: str
    files: dict[str, RemoteFile]
    failed: dict[str, InputError] = field(default_factory=dict)
    _sorted: list[str] = field(init=False)
    # Of each file what was read of it: where it starts, and the bytes, both in order.
    _blocks: dict[str, tuple[list[int], list[bytes]]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._sorted = sorted(self.files)

    def look(self, below: str) -> Entry | None:
        """Return what is at a path in the repository."""
        if below in self.files:
            return Entry(Kind.FILE, self.files[below])
        return Entry(Kind.DIRECTORY) if next(self._names(below), None) is not None else None

    def listing(self, below: str) -> list[str]:
        """Return the names in a directory, sorted."""
        return sorted(set(self._names(below)))

    def _names(self, below: str) -> Iterator[str]:
        """Yield the names in a directory; its contents are contiguous in the sorted paths."""
        folder = f"{below}/" if below else ""
        place = bisect_left(self._sorted, folder)
        while place < len(self._sorted) and self._sorted[place].startswith(folder):
            name, is_folder, _ = self._sorted[place][len(folder) :].partition("/")
            yield name
            # "0" is the character after "/".
            end = f"{folder}{name}0"
            place = bisect_left(self._sorted, end, place) if is_folder else place + 1

    def read(self, file: RemoteFile, size: int, offset: int) -> bytes:
        """Return bytes of a file and keep them: headers and small files are read repeatedly.

        What an earlier read has begun with is not fetched again.
        """
        known = self._known(file, size, offset)
        if len(known) == size:
            return known
        data = known + self._fetch(file, size - len(known), offset + len(known))
        with self._lock:
            starts, blocks = self._blocks.setdefault(file.name, ([], []))
            place = bisect_left(starts, offset)
            if place < len(starts) and starts[place] == offset:
                blocks[place] = max(blocks[place], data, key=len)
            else:
                starts.insert(place, offset)
                blocks.insert(place, data)
        return data

    def read_so_far(self, file: RemoteFile) -> list[tuple[int, bytes]]:
        """Return what was read of a file: offsets and bytes, in order; some may overlap."""
        with self._lock:
            return list(zip(*self._blocks.get(file.name, ([], [])), strict=True))

    def _known(self, file: RemoteFile, size: int, offset: int) -> bytes:
        """Return the first of ``size`` bytes, as many of them as were read without a gap."""
        known = b""
        with self._lock:
            starts, blocks = self._blocks.get(file.name, ([], []))
            while len(known) < size:
                position = offset + len(known)
                place = bisect_right(starts, position) - 1
                start = position - starts[place] if place >= 0 else 0
                more = blocks[place][start : start + size - len(known)] if place >= 0 else b""
                if not more:
                    break
                known += more
        return known

    def _fetch(self, file: RemoteFile, size: int, offset: int) -> bytes:
        path = cached(file)
        if path is None:
            return fetch_bytes(self.session, file, offset, offset + size)
        with opened(path) as (descriptor, _):
            return read_at(descriptor, size, offset, path)

    def expect(self, file: RemoteFile, ranges: Iterable[Range]) -> None:
        """Fetch ranges that will be read soon, several at a time."""
        at_once([partial(self.read, file, size, offset) for offset, size in ranges])


def list_repository(session: Session, name: str, revision: str) -> Repository:
    """List the files of a revision, from the hub or, offline, from the cache."""
    if session.is_offline:
        return _list_cached(session, name, revision)
    subject = f"{name}@{revision}" if revision != "main" else name
    url = f"{session.endpoint}/api/models/{name}/revision/{quote(revision, safe='')}?blobs=true"

    def attempt() -> bytes:
        parts: list[bytes] = []
        size = 0
        with session.get(url, subject) as answer:
            for chunk in answer.chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > _LARGEST_LISTING:
                    raise _no_listing(subject, f"more than {_LARGEST_LISTING} bytes")
        return b"".join(parts)

    try:
        answered = json.loads(session.retry(attempt))
    except (ValueError, RecursionError) as error:
        raise _no_listing(subject, str(error)) from error
    commit = answered.get("sha") if isinstance(answered, dict) else None
    siblings = answered.get("siblings") if isinstance(answered, dict) else None
    if not isinstance(commit, str) or not Address(name, commit).is_pinned:
        raise _no_listing(subject, f"the commit {commit!r}")
    if Address(name, revision).is_pinned and commit != revision:
        raise _no_listing(subject, f"another commit, {commit}")
    if not isinstance(siblings, list):
        raise _no_listing(subject, "no files")
    files = (_file(name, commit, sibling, subject) for sibling in siblings)
    return Repository(session, name, commit, {file.name: file for file in files})


def _file(repository: str, commit: str, sibling: Any, subject: str) -> RemoteFile:
    answered = sibling if isinstance(sibling, dict) else {}
    lfs = answered.get("lfs")
    large = lfs if isinstance(lfs, dict) else {}
    name, size = answered.get("rfilename"), large.get("size", answered.get("size"))
    etag = large.get("sha256", answered.get("blobId"))
    if not isinstance(name, str) or not name or not is_inside(name):
        raise MalformedFileError(
            "path-outside-checkpoint",
            f"{subject}: {name!r}",
            expected="a file in the repository",
            hint="the repository is broken or hostile; nothing was read of it",
        )
    if type(size) is not int or not 0 <= size <= _LARGEST_FILE or not isinstance(etag, str):
        raise _no_listing(subject, f"{name} without its size and digest")
    return RemoteFile(repository, commit, name, size, etag)


def _no_listing(subject: str, got: str) -> HubError:
    return HubError(
        "hub-failed",
        subject,
        expected="the files of a repository",
        got=got,
        hint="look at HF_ENDPOINT",
    )


def _list_cached(session: Session, name: str, revision: str) -> Repository:
    """List the files of a revision that the cache holds."""
    subject = f"{name}@{revision}" if revision != "main" else name
    commit = cached_commit(name, revision)
    files = {f.name: f for f in cached_files(name, commit)} if commit is not None else {}
    if commit is None or not files:
        raise offline(subject)
    if commit != revision:
        seen = f"of {subject}, what the cache has of commit {commit[:8]} is seen"
        logging.getLogger("vita_ckpt").warning(f"HF_HUB_OFFLINE is set: {seen}")
    return Repository(session, name, commit, files)
