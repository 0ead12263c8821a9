"""Follow what a config names: the base of a LoRA run, an audio encoder."""

from __future__ import annotations

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores


def reaches(checkpoint: Checkpoint, path: str, stores: Stores) -> str | None:
    """Where a path in a checkpoint's config leads: from here, beside the checkpoint, or in it.

    Of a checkpoint on the hub only what lies in its repository.
    """
    return stores.store_of(checkpoint.root).reached_from(checkpoint.root, path)


def find_base(run: Checkpoint, stores: Stores) -> Checkpoint | None:
    """The checkpoint that a LoRA run was trained on, here or in the hub's cache; None if absent.

    A run on the hub is judged by its own repository, not by what happens to lie here. Raises
    HubError and StaleInputError.
    """
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    from vita_ckpt.storage.hub.cache import newest_snapshot  # noqa: PLC0415 - seldom needed

    path = reaches(run, named, stores)
    if path is None and stores.store_of(run.root).is_local:
        path = newest_snapshot(named)
    try:
        return open_checkpoint(path, stores) if path is not None else None
    except INCONCLUSIVE:
        raise
    except InputError:
        return None
