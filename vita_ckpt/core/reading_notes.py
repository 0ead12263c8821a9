"""Say what was read of files that hold more than the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vita_ckpt.core.checkpoint import Checkpoint


def reading_notes(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield which state dict was chosen of several, and which objects were not made."""
    for shard in checkpoint.shards:
        name = shard.name or shard.file.path
        if shard.other_keys and not checkpoint.key:
            others = listed(shard.other_keys)
            yield f"{name}: {shard.key} is read, not {others}; --key chooses"
        if shard.objects:
            yield (
                f"{name}: objects beside the tensors are not made: {listed(shard.objects)}; "
                "torch.load(weights_only=True) refuses this file"
            )


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names for a sentence, the first of them if they are many."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
