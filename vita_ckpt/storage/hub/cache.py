"""Find files in huggingface_hub's cache."""

from __future__ import annotations

import os

from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError


def cached(file: RemoteFile) -> str | None:
    """The path of a file in huggingface_hub's cache; None if it was not downloaded.

    Raises HubError if what lies there has another size.
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


def cache_folder(repository: str) -> str:
    """Where huggingface_hub's cache has a repository: blobs, snapshots of commits, and refs."""
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - slow
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415

    return os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))


def newest_snapshot(name: str) -> str | None:
    """The newest snapshot of a hub id that has been downloaded."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - slow, seldom needed

    folder = os.path.join(HF_HUB_CACHE, "models--" + name.replace("/", "--"), "snapshots")
    try:
        found = [os.path.join(folder, entry) for entry in os.listdir(folder)]
    except (OSError, ValueError):  # a name that no file can have
        return None
    return max(found, key=os.path.getmtime, default=None)
