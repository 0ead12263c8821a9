"""Fetch files and tensors from the hub: whole files to the cache, parts to a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from vita_ckpt.core.checkpoint import LocalFile, RemoteFile, TensorRef
from vita_ckpt.errors import HubError, StaleInputError
from vita_ckpt.storage.hub.byte_ranges import Put, Span, coalesced, fetch
from vita_ckpt.storage.hub.cache import cached, is_blob_cached, note_revision
from vita_ckpt.storage.hub.concurrency import at_once
from vita_ckpt.storage.hub.session import attempted
from vita_ckpt.storage.hub.store import HubStore
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.reading.shards import read_shard
from vita_ckpt.storage.stores.local import LOCAL, identify
from vita_ckpt.storage.system.os_errors import io_error


def download(store: HubStore, files: Iterable[RemoteFile]) -> dict[RemoteFile, LocalFile]:
    """Return local copies of whole files from huggingface_hub's cache; download missing ones.

    Raises HubError if the download fails, OutputError if the disk refuses, StaleInputError if the
    content differs from what was read before.
    """
    commits: dict[tuple[str, str], list[RemoteFile]] = {}
    for file in files:
        commits.setdefault((file.repository, file.commit), []).append(file)
    found: dict[RemoteFile, LocalFile] = {}
    for (repository, commit), wanted in commits.items():
        missing = [file for file in wanted if cached(file) is None]
        if missing:
            _download(store, repository, commit, missing)
        for file in wanted:
            found[file] = _checked(file)
    return found


def fetch_tensors(
    store: HubStore, refs: Collection[TensorRef], folder: str
) -> dict[TensorRef, TensorRef]:
    """Return the same tensors in local files: from the cache, or else fetched without the rest.

    Fetched bytes go to new sparse files in ``folder``, each as long as the file on the hub. Raises
    as :func:`~vita_ckpt.storage.hub.byte_ranges.fetch` does, and OutputError if the disk refuses.
    """
    of_file: dict[RemoteFile, list[TensorRef]] = {}
    for ref in refs:
        if isinstance(ref.source, RemoteFile):
            of_file.setdefault(ref.source, []).append(ref)
    places: dict[RemoteFile, LocalFile] = {}
    missing: dict[RemoteFile, list[Span]] = {}
    for file, parts in of_file.items():
        if cached(file) is not None:
            places[file] = _checked(file)
        else:
            missing[file] = list(coalesced((ref.offset, ref.offset + ref.span) for ref in parts))
    places |= _fetch(store, missing, folder)
    return {
        ref: replace(ref, source=places[file]) for file, parts in of_file.items() for ref in parts
    }


def outline(
    store: HubStore, files: Collection[RemoteFile], folder: str
) -> dict[RemoteFile, LocalFile]:
    """Return local files as long as weight files on the hub, with no more in them than headers.

    They are new sparse files in ``folder``; what was downloaded whole is that. Raises HubError,
    StaleInputError as reading does, and OutputError if the disk refuses.
    """
    store.prefetch([file.path for file in files], lambda path: read_shard(store, path, ""))
    found: dict[RemoteFile, LocalFile] = {}
    for number, file in enumerate(files):
        with store.open(file.path):  # raises what kept it from being read
            pass
        if cached(file) is not None:
            found[file] = _checked(file)
            continue
        path = os.path.join(folder, f"{number}{os.path.splitext(file.name)[1]}")
        with disk_errors(path), open(path, "xb") as handle:
            for offset, data in store.read_so_far(file):
                handle.seek(offset)
                handle.write(data)
            handle.truncate(file.size)
        found[file] = replace(identify(path), digest=file.digest)
    return found


def _fetch(
    store: HubStore, missing: dict[RemoteFile, list[Span]], folder: str
) -> dict[RemoteFile, LocalFile]:
    paths = {file: os.path.join(folder, f"{n}.part") for n, file in enumerate(missing)}
    size = sum(stop - start for spans in missing.values() for start, stop in spans)
    with disk_errors(folder), _bar(size) as step:
        room = os.statvfs(folder)
        if size > room.f_bavail * room.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for file, path in paths.items():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.ftruncate(descriptor, file.size)
            finally:
                os.close(descriptor)
        fetch(
            store.session,
            (
                (file, span, partial(_opened, paths[file], step))
                for file, spans in missing.items()
                for span in spans
            ),
        )
    return {file: replace(identify(path), digest=file.digest) for file, path in paths.items()}


@contextmanager
def _opened(path: str, step: Any) -> Iterator[Put]:
    """Open a partial file for one thread, which may outlive the call that waits for it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def put(data: bytes, offset: int) -> None:
        step(len(data))
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view = view[count:]
            offset += count

    try:
        yield put
    finally:
        os.close(descriptor)


@contextmanager
def _bar(size: int) -> Iterator[Any]:
    """Show huggingface_hub's own progress bar, which follows its settings; hidden for 0 bytes."""
    from huggingface_hub import utils  # noqa: PLC0415 - slow

    library: Any = utils
    hidden = True if size == 0 else None  # None: where stderr is no terminal
    with library.tqdm(
        total=size, unit="B", unit_scale=True, desc="fetching tensors", disable=hidden
    ) as bar:
        yield bar.update


@contextmanager
def disk_errors(path: str) -> Iterator[None]:
    """Convert OSError to an OutputError about ``path``."""
    try:
        yield
    except OSError as error:
        raise io_error(error, path, "nothing of it was kept") from error


def _download(store: HubStore, repository: str, commit: str, files: Collection[RemoteFile]) -> None:
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow

    def download_one(file: RemoteFile) -> None:
        # A file of another commit may have the same content; then only a link is made.
        moves = not is_blob_cached(file)
        get = partial(hf_hub_download, repository, file.name, revision=commit)
        store.session.retry(partial(attempted, f"{repository}@{commit}", get))
        store.session.count(file.size if moves else 0)

    at_once([partial(download_one, file) for file in files])
    _note_revisions(store, repository, commit)


def _note_revisions(store: HubStore, repository: str, commit: str) -> None:
    """Record in the cache which branches and tags point to a commit, as huggingface_hub does.

    Offline, the commit is found only by this record.
    """
    for revision in store.revisions(repository, commit):
        with disk_errors(revision):
            note_revision(repository, revision, commit)


def _checked(file: RemoteFile) -> LocalFile:
    """Return a file in the cache after checking that its content is what was read before."""
    path = cached(file)
    if path is None:
        raise HubError(
            "not-on-hub", file.path, expected="the file in the cache once it was downloaded"
        )
    found = identify(path)
    if file.digest:
        is_json = file.name.endswith(".json")
        read = read_json(LOCAL, path)[1] if is_json else read_shard(LOCAL, path, "")[0].file
        if read.digest != file.digest:
            raise StaleInputError(
                "input-changed",
                path,
                expected=f"the content of {file.path}",
                got="another one in the cache",
                hint="remove it from the cache (hf cache)",
            )
    return replace(found, digest=file.digest)
