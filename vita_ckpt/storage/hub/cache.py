"""Read huggingface_hub's cache: blobs, snapshots of commits that link to them, and refs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vita_ckpt.core.address import Address, is_inside
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError

_COMMIT_LENGTH = 64


def cached(file: RemoteFile) -> str | None:
    """Return the path of a file in the cache; None if it was not downloaded.

    Raises HubError if the cached file has another size.
    """
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - slow

    path = try_to_load_from_cache(file.repository, file.name, revision=file.commit)
    if not isinstance(path, str):
        return None
    size = os.stat(path).st_size
    if size != file.size:
        raise HubError(
            "cache-damaged",
            path,
            expected=f"{file.size} bytes, as on the hub",
            got=f"{size} bytes",
            hint="remove it, or that repository from the cache (hf cache)",
        )
    return path


def is_blob_cached(file: RemoteFile) -> bool:
    """Return whether the content of a file is in the cache, under any commit."""
    blobs = os.path.join(_folder(file.repository), "blobs")
    return bool(file.etag) and os.path.exists(os.path.join(blobs, file.etag))


def cached_commit(repository: str, revision: str) -> str | None:
    """Return the commit of a branch or tag when it was downloaded; None if it was not."""
    if Address(repository, revision).is_pinned:
        return revision
    if not is_inside(revision):
        return None
    try:
        with open(_ref(repository, revision), encoding="utf-8") as file:
            commit = file.read(_COMMIT_LENGTH).strip()
    except (OSError, ValueError):
        return None
    return commit if Address(repository, commit).is_pinned else None


def note_revision(repository: str, revision: str, commit: str) -> None:
    """Record the commit of a branch or tag, as huggingface_hub does. Raises OSError."""
    path = _ref(repository, revision)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        file.write(commit)


def cached_files(repository: str, commit: str) -> Iterator[RemoteFile]:
    """Yield the files of a commit that the cache holds; a link's target is named by its etag."""
    root = os.path.join(_folder(repository), "snapshots", commit)
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            below = os.path.relpath(path, root)
            blob = os.path.realpath(path)
            if os.path.isfile(blob):
                etag = os.path.basename(blob) if os.path.islink(path) else ""
                yield RemoteFile(repository, commit, below, os.stat(blob).st_size, etag)


def newest_snapshot(name: str) -> str | None:
    """Return the path of the newest snapshot of ``org/name``; None if none was downloaded."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    try:
        folder = os.path.join(_folder(name), "snapshots")
        found = [os.path.join(folder, entry) for entry in os.listdir(folder)]
    except (OSError, ValueError):  # an invalid file name
        return None
    return max(found, key=os.path.getmtime, default=None)


def _ref(repository: str, revision: str) -> str:
    return os.path.join(_folder(repository), "refs", revision)


def _folder(repository: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - slow
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415

    return os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
