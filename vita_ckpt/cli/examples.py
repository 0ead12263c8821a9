"""Give an example of each command, for its ``--help``.

A test runs each line in a directory where ``VITA-1.5`` is a checkpoint, ``old`` what it was before
a merge, ``run`` a projector run, ``lora-run`` a LoRA run, ``siglip-384`` a vision tower,
``audio-run`` the run of an audio adapter, ``audio-encoder`` an audio encoder, and ``zero-run`` and
``fsdp-run`` what the trainings of two models left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "inspect": (
        "vita-ckpt inspect VITA-1.5",
        "vita-ckpt inspect VITA-1.5 --tensors '*mm_projector*'",
    ),
    "explain": (
        "vita-ckpt explain VITA-1.5",
        "vita-ckpt explain VITA-1.5 --loader vita-1.5 --json",
    ),
    "diff": (
        "vita-ckpt diff old VITA-1.5",
        "vita-ckpt diff old VITA-1.5 --values --only 'model.mm_projector.*'",
    ),
    "history": ("vita-ckpt history VITA-1.5",),
    "validate": (
        "vita-ckpt validate VITA-1.5",
        "vita-ckpt validate VITA-1.5 run --values --output junit=report.xml",
    ),
    "verify": (
        "vita-ckpt verify VITA-1.5",
        "vita-ckpt verify VITA-1.5 --against old --dtype bfloat16",
    ),
    "rules": ("vita-ckpt rules", "vita-ckpt rules missing-tensor"),
    "merge-projector": (
        "vita-ckpt merge-projector --base VITA-1.5 --adapter run --out merged",
        "vita-ckpt merge-projector --base VITA-1.5 --adapter run --in-place",
    ),
    "merge-lora": (
        "vita-ckpt merge-lora --base VITA-1.5 --adapter lora-run --out merged",
        "vita-ckpt merge-lora --base VITA-1.5 --adapter lora-run --dtype f16 --in-place",
    ),
    "extract-projector": ("vita-ckpt extract-projector --from VITA-1.5 --out mm_projector.bin",),
    "swap-tower": (
        "vita-ckpt swap-tower --base VITA-1.5 --tower siglip-384 --projector reinit --out swapped",
    ),
    "extract-tower": ("vita-ckpt extract-tower --from VITA-1.5 --out tower",),
    "consolidate": (
        "vita-ckpt consolidate fsdp-run --out trained.safetensors",
        "vita-ckpt consolidate zero-run --tag global_step3 --config VITA-1.5 --out trained",
    ),
    "merge-audio-adapter": (
        "vita-ckpt merge-audio-adapter --base VITA-1.5 --adapter audio-run --out merged",
    ),
    "extract-audio-adapter": (
        "vita-ckpt extract-audio-adapter --from VITA-1.5 --out audio_adpter.bin",
    ),
    "swap-audio-encoder": (
        "vita-ckpt swap-audio-encoder --base VITA-1.5 --audio-encoder audio-encoder --out swapped",
    ),
    "extract-audio-encoder": ("vita-ckpt extract-audio-encoder --from VITA-1.5 --out encoder",),
    "convert": (
        "vita-ckpt convert VITA-1.5 --dtype bf16 --max-shard-size 5GB --out converted",
        "vita-ckpt convert VITA-1.5 --names transformers --out for-transformers-5",
    ),
    "resize-embeddings": (
        "vita-ckpt resize-embeddings VITA-1.5 --tokens 256 --multiple-of 64 --out resized",
    ),
    "set": ("vita-ckpt set VITA-1.5 image_aspect_ratio=pad --in-place",),
    "apply": (
        "vita-ckpt set VITA-1.5 image_aspect_ratio=pad --plan-out plan.json",
        "vita-ckpt apply plan.json --out padded",
    ),
    "undo": (
        "vita-ckpt set VITA-1.5 image_aspect_ratio=pad --in-place",
        "vita-ckpt undo VITA-1.5",
    ),
    "recover": ("vita-ckpt recover VITA-1.5",),
    "clean": ("vita-ckpt clean", "vita-ckpt clean VITA-1.5 --undo"),
    "push": ("vita-ckpt push VITA-1.5 org/name --private",),
}


def epilog(name: str, columns: int) -> str:
    """Return the examples of a command as click prints them in so many columns, line by line."""
    lines = (line for example in EXAMPLES.get(name, ()) for line in _fitted(example, columns - 6))
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _fitted(example: str, width: int) -> Iterator[str]:
    """Break a command before an option where it does not fit, as it can be typed."""
    line, *options = re.split(r" (?=--)", example)
    for option in options:
        if len(f"{line} {option} \\") > width:
            yield f"{line} \\"
            line = f"    {option}"
        else:
            line = f"{line} {option}"
    yield line
