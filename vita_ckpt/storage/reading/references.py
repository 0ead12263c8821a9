"""Resolve what a config refers to: the base of a LoRA run, an audio encoder."""

from __future__ import annotations

from typing import Any

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import ADAPTER_CONFIG
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores, find, read_json, read_optional


def reaches(checkpoint: Checkpoint, path: str, stores: Stores) -> str | None:
    """Return what a path in a checkpoint's config resolves to; None if there is nothing.

    It is looked up in the working directory, beside the checkpoint and in it; for a checkpoint on
    the hub only in its repository.
    """
    return stores.store_of(checkpoint.root).reached_from(checkpoint.root, path)


def find_base(run: Checkpoint, stores: Stores) -> Checkpoint | None:
    """Return the checkpoint that a LoRA run was trained on; None if it is not found.

    It is looked up locally and in the hub's cache; for a run on the hub only in its own repository.
    Raises HubError and StaleInputError.
    """
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    path = _path_of_base(run, named, stores)
    try:
        return open_checkpoint(path, stores) if path is not None else None
    except INCONCLUSIVE:
        raise
    except InputError:
        return None


def find_named_base(run: Checkpoint, stores: Stores) -> Checkpoint | None:
    """Return the base that a run names, if it may be followed and is found; None if not.

    The name is a stranger's: a relative path that leads nowhere up is looked up in the working
    directory, beside the run and in it, a hub id in the hub's cache. Raises what opening raises.
    """
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named or not _is_plain(named):
        return None
    path = _path_of_base(run, named, stores)
    return open_checkpoint(path, stores) if path is not None else None


def _path_of_base(run: Checkpoint, named: str, stores: Stores) -> str | None:
    path = reaches(run, named, stores)
    if path is None and stores.store_of(run.root).is_local:
        from vita_ckpt.storage.hub.cache import newest_snapshot  # noqa: PLC0415 - seldom needed

        return newest_snapshot(named)
    return path


def _is_plain(path: str) -> bool:
    """Return whether a path is relative and stays below where it starts."""
    components = path.split("/")
    return not (is_remote(path) or components[0] in ("", "~") or ".." in components)


def read_adapter_config(path: str, stores: Stores) -> dict[str, Any] | None:
    """Read an ``adapter_config.json``, at ``path`` or in it; None if the directory has none."""
    store = stores.store_of(path)
    root, entry = find(store, path)
    if not entry.is_directory:
        return read_json(store, root)[0]
    return read_optional(store, root, ADAPTER_CONFIG)[0]
