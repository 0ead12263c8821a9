"""Say what was read of files that hold more than the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import LORA_FILES, TRAINED_FILES
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.remedies import validate

_DIRECTORIES: Final = ("safetensors", "torch", "lora")


def reading_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield which of several sets of weights was chosen, and which objects were not made."""
    others = [
        name
        for name, reason in checkpoint.left_out.items()
        if reason is LeftOut.OTHER_WEIGHTS
        and (name in LORA_FILES if checkpoint.layout == "lora" else name not in TRAINED_FILES)
    ]
    if others and checkpoint.shards and checkpoint.layout in _DIRECTORIES:
        yield (
            f"{checkpoint.root}: {checkpoint.shards[0].name} is read, not {listed(others, 2)}; "
            f"{validate(checkpoint.root)} compares them"
        )
    for shard in checkpoint.shards:
        name = shard.name or shard.file.path
        if shard.other_keys and not checkpoint.key:
            keys = listed(shard.other_keys)
            yield f"{name}: {shard.key} is read, not {keys}; --key chooses"
        if shard.objects:
            yield (
                f"{name}: objects beside the tensors are not made: {listed(shard.objects)}; "
                "torch.load(weights_only=True) refuses this file"
            )


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for a sentence, the first of them if they are many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
