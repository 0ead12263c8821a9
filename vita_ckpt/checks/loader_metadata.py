"""Check what loaders read from a config and an index beside the tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import (
    INDEX_SUFFIX,
    LOADED_FORMATS,
    SAFETENSORS,
    SAFETENSORS_SUFFIX,
    TORCH,
)
from vita_ckpt.core.report import Finding


def check_loaders(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check for what keeps a loader from reading files that are otherwise sound."""
    for shard in checkpoint.shards if checkpoint.training is None else ():
        said = shard.metadata.get("format", "")
        if shard.format == "safetensors" and said not in LOADED_FORMATS:
            yield finding(
                "no-format-metadata",
                shard.name,
                f'expected {{"format": "pt"}} in its __metadata__, got {said or "none"}',
                hint="any surgery that rewrites the file adds it, as does save_file(…, metadata="
                '{"format": "pt"})',
                file=shard.file.path,
            )
    first = checkpoint.shards[0].file.path if checkpoint.shards else checkpoint.root
    if checkpoint.layout == "file" and checkpoint.config is not None and first != checkpoint.root:
        yield finding(
            "weights-misnamed",
            first,
            f"expected {SAFETENSORS}, or another name that loaders look for",
            hint=f"rename it to {SAFETENSORS if first.endswith(SAFETENSORS_SUFFIX) else TORCH}",
            file=first,
        )
    index = checkpoint.index
    if index is not None and not isinstance(index.get("metadata"), Mapping):
        name = next(name for name in checkpoint.files if name.endswith(INDEX_SUFFIX))
        yield finding(
            "no-index-metadata",
            name,
            "expected a metadata object, such as one with total_size, got none",
            hint='add "metadata": {} to it',
            file=checkpoint.files[name].path,
        )
