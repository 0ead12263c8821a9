"""Split tensors into weight files, as huggingface_hub and ``save_pretrained`` do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.filenames import SAFETENSORS, TORCH
from vita_ckpt.errors import UsageError

# Decimal units, as huggingface_hub reads them.
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]{1,18})([KMGT]B)?", re.ASCII | re.IGNORECASE)
_NUMBERS: Final = re.compile(r"([0-9]{1,9})", re.ASCII)

# The head comes last, as in the state dict of a model.
_ORDER: Final = {part: rank for rank, part in enumerate(parts.LABELS)}


def parse_size(text: str) -> int:
    """Return the bytes that a size such as ``5GB`` means; a number alone is bytes.

    Units are decimal, as in huggingface_hub. Raises UsageError for anything else.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            "invalid-size", text, expected="a size such as 5GB or 200MB, or 0 for one file"
        )
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def split(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Return the names of the tensors of each file; ``sizes`` are in bytes, in the model's order.

    The rule is that of ``split_state_dict_into_shards_factory`` in huggingface_hub: a file is
    closed when the next tensor does not fit, and a tensor larger than ``most`` has a file of its
    own. With ``most`` 0 there is one file.
    """
    if not most:
        return [list(sizes)]
    files: list[list[str]] = []
    current: list[str] = []
    size = 0
    for name, nbytes in sizes.items():
        if nbytes > most:
            files.append([name])
            continue
        if size + nbytes > most:
            files.append(current)
            current, size = [], 0
        current.append(name)
        size += nbytes
    return [*files, current] if current else files


def shard_name(format: Literal["safetensors", "torch"], number: int, count: int) -> str:
    """Return the name that ``save_pretrained`` gives file ``number`` of ``count``, from 1 on."""
    stem, dot, suffix = (SAFETENSORS if format == "safetensors" else TORCH).rpartition(".")
    return f"{stem}{dot}{suffix}" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.{suffix}"


def model_order(name: str) -> tuple[bool, int, list[str | int]]:
    """Return a key that sorts names by part, then by the numbers and words in them.

    It depends on the name alone, so the files of a checkpoint do not depend on how it lay before.
    """
    words: list[str | int] = [*_NUMBERS.split(name)]
    words[1::2] = map(int, words[1::2])
    return name == parts.LM_HEAD, _ORDER[parts.part_of(name)], words
