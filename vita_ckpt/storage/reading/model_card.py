"""Read the model card of a checkpoint."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import MODEL_CARD
from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.paths import Stores

_LARGEST_CARD: Final = 4 << 20


def read_model_card(checkpoint: Checkpoint, stores: Stores) -> bytes:
    """The README of a checkpoint; nothing where there is none. Raises InputError for a huge one."""
    file = checkpoint.files.get(MODEL_CARD)
    if file is None:
        return b""
    with stores.open(file.path) as source:
        size = source.file.size
        if size > _LARGEST_CARD:
            raise InputError(
                "model-card-too-large",
                file.path,
                expected=f"at most {_LARGEST_CARD} bytes",
                got=str(size),
                hint="leave --model-card out",
            )
        return source.read(size, 0)
