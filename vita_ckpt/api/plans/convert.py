"""Plan to write a model in another form."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from vita_ckpt.api.locate import StrPath, open_checkpoint
from vita_ckpt.api.plans.inputs import (
    check_choice,
    have_same_bytes,
    noted,
)
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.core.filenames import shards_in_all
from vita_ckpt.core.options import (
    FORMATS,
    NAMES,
    TIES,
    Format,
    Names,
    Tie,
)
from vita_ckpt.core.plan import (
    Plan,
    WeightFiles,
)
from vita_ckpt.core.sharding import parse_size
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.surgery import conversion


def plan_convert(
    checkpoint: Checkpoint | StrPath,
    *,
    names: Names | None = None,
    dtype: str | None = None,
    parts: Collection[str] = (),
    keep: Collection[str] = (),
    max_shard_size: int | str | None = None,
    format: Format = "safetensors",
    tie: Tie = "auto",
    ignore_index: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to write the same model in another form: names, dtype, weight files.

    ``names`` are those of the loader it is for: ``"upstream"``, which VITA's loader binds, or
    ``"transformers"``, of transformers 5.6 and newer. What wrappers added to names goes away, and
    Mixtral's experts are split or fused. ``dtype`` (``"bf16"``, ``"f16"``, ``"f32"``) is what
    floating tensors are converted to, of the ``parts`` that are named if there are any, but not
    those whose names match a glob of ``keep``. ``max_shard_size`` is in bytes or a text such as
    ``"5GB"``, 0 for one file; None keeps each tensor in its file. ``tie`` says what becomes of a
    head that the config ties to the embeddings: ``"auto"`` drops one that equals them, ``"untie"``
    makes it a tensor of its own. ``ignore_index`` takes the weight files for what they are.

    Raises InputError where the result is not what that loader binds or two tensors would get one
    name, and UsageError for an invalid option.
    """
    stores = Stores() if stores is None else stores
    if isinstance(checkpoint, Checkpoint):
        opened = checkpoint
    else:
        opened = open_checkpoint(checkpoint, ignore_index=ignore_index, stores=stores)
    for value, known, option in (
        (names, (None, *NAMES), "--names"),
        (format, FORMATS, "--format"),
        (tie, TIES, "--tie"),
    ):
        check_choice(value, known, option)
    code = dtype_code(dtype)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    plan = conversion.plan_convert(
        opened,
        names=names,
        dtype=code,
        only=_texts(parts),
        keep=_texts(keep),
        weight_files=WeightFiles(format, size),
        tie=tie,
        head_is_table=_head_is_table(opened, names),
    )
    request = {
        "names": names,
        "dtype": code,
        "parts": sorted(_texts(parts)),
        "keep": sorted(_texts(keep)),
        "max_shard_size": size,
        "format": format,
        "tie": tie,
        "ignore_index": ignore_index,
    }
    notes = (*plan.notes, *_absent_shards(opened)) if ignore_index else plan.notes
    return noted(replace(plan, request=request, notes=notes))


def _texts(names: Collection[str]) -> Collection[str]:
    return (names,) if isinstance(names, str) else names


def _head_is_table(checkpoint: Checkpoint, names: Names | None) -> bool | None:
    """Return whether a stored head equals the embeddings; None if there is none here."""
    pair = conversion.head_and_table(checkpoint, names)
    return None if pair is None else have_same_bytes(*pair)


def _absent_shards(checkpoint: Checkpoint) -> Iterator[str]:
    """Say that the names of the weight files promise more of them than are there."""
    found = len(checkpoint.shards)
    promised = max(shards_in_all(shard.name) for shard in checkpoint.shards)
    if promised > found:
        yield f"{found} of {promised} shards are there, by their names: the model is incomplete"
