"""What distinguishes two checkpoints: tensors by part, every byte compared, and config keys."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from vita_ckpt import Checkpoint, TensorRef, open_checkpoint


def content(ref: TensorRef) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and bytes of a contiguous tensor."""
    with Path(ref.source.path).open("rb") as file:
        file.seek(ref.offset)
        return ref.dtype, ref.shape, file.read(ref.nbytes)


def change(name: str, before: Checkpoint, after: Checkpoint) -> str:
    """What became of a tensor."""
    old, new = before.refs.get(name), after.refs.get(name)
    if old is None or new is None:
        return "added" if old is None else "removed"
    return "unchanged" if content(old) == content(new) else "changed"


def part(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    known = ("vision_tower", "mm_projector", "audio_encoder")
    return next((part for part in known if f".{part}." in name), "language model")


if __name__ == "__main__":
    before, after = map(open_checkpoint, sys.argv[1:])
    names = before.tensors.keys() | after.tensors.keys()
    changes = Counter((part(name), change(name, before, after)) for name in names)
    for (where, what), count in sorted(changes.items()):
        print(f"{where}: {count} tensors {what}")
    old, new = before.config or {}, after.config or {}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            print(f"{key}: {old.get(key)!r} → {new.get(key)!r}")
