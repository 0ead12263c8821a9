"""Plan another number of token embeddings: the table and the head grow or shrink together."""

from __future__ import annotations

from typing import Any, Final, Literal

from vita_ckpt.core.anatomy.language_tensors import DEFAULTS
from vita_ckpt.core.anatomy.parts import EMBED_TOKENS, LM_HEAD
from vita_ckpt.core.binding.modules import is_tied
from vita_ckpt.core.checkpoint import Checkpoint, Mean, Part, Pieces, RandomInit, Tensor, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import BITS, CAST_SOURCES
from vita_ckpt.core.kinds import refuse_relative, refuse_unmerged
from vita_ckpt.core.plan import Edit, Plan, Record, ReplaceTensor, SetConfig
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.remedies import mend_names
from vita_ckpt.core.requirements import LAYOUTS, refuse_training_state
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.surgery.preconditions import require_binding

# How new rows begin: "copy" is a row that is there.
Init = Literal["mean", "normal", "zeros", "copy"]

# No table has as many rows: a number that is larger is a mistake.
_MOST_ROWS: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class NewRows:
    """How new rows begin.

    ``"mean"`` is the mean of the rows that are there, ``"normal"`` is drawn with the config's
    ``initializer_range``, each row from its own random stream of ``seed``; ``copied`` is the row of
    ``"copy"``.
    """

    init: Init = "mean"
    seed: int = 0
    copied: int | None = None


def plan_resize_embeddings(
    checkpoint: Checkpoint,
    tokens: int,
    *,
    needed: int | None,
    new: NewRows,
    multiple_of: int = 1,
) -> Plan:
    """Return a plan that gives ``embed_tokens`` and ``lm_head`` rows for ``tokens`` tokens.

    Rows are added up to a multiple of ``multiple_of``. ``needed`` is the number of rows that the
    tokenizer needs, None where that is not known. Other rows stay as they are, byte for byte.

    Raises UsageError for a number that is none, and InputError where the tokenizer has more tokens,
    or the tensors are not those of a language model.
    """
    refuse_training_state(checkpoint)
    refuse_unmerged(checkpoint)
    refuse_relative(checkpoint, "a checkpoint, or a plain language model,")
    if not 0 < tokens < _MOST_ROWS or not 0 < multiple_of < _MOST_ROWS:
        raise UsageError(
            "invalid-size",
            f"{tokens} tokens, a multiple of {multiple_of}",
            expected=f"numbers from 1 to {_MOST_ROWS - 1}",
        )
    rows = -(-tokens // multiple_of) * multiple_of
    if needed is not None and tokens < needed:
        raise InputError(
            "too-few-rows",
            checkpoint.root,
            expected=f"at least {needed} tokens, which the tokenizer has",
            got=f"{tokens}",
            hint="give the smaller tokenizer: --tokenizer DIR",
        )
    table = _table(checkpoint)
    if new.copied is not None and not 0 <= new.copied < table.shape[0]:
        raise UsageError(
            "unknown-token",
            f"copy:{new.copied}",
            expected=f"a row from 0 to {table.shape[0] - 1}",
        )
    edits: list[Edit] = []
    change = f"{table.shape[0]} rows to {rows}"
    ties = is_tied(checkpoint.config or {})
    if rows != table.shape[0]:
        for name in (EMBED_TOKENS, LM_HEAD):
            ref = checkpoint.refs.get(name)
            if ref is not None:
                drawn = EMBED_TOKENS if ties else name  # a head that is tied stays the same
                resized = _resized(drawn, ref, rows, new, _std(checkpoint))
                edits.append(ReplaceTensor(name, resized, change))
    if (checkpoint.config or {}).get("vocab_size") != rows:
        edits.append(SetConfig("vocab_size", rows, "the rows of the embeddings"))
    asked: dict[str, Any] = {"tokens": tokens, "multiple_of": multiple_of, "init": new.init}
    grows = rows > table.shape[0]
    if new.copied is not None:
        asked["copied"] = new.copied
    record = Record(
        arguments=asked,
        seed=new.seed if grows and new.init == "normal" else None,
        needs_alignment=needs_alignment(checkpoint),
    )
    return require_binding(Plan("resize-embeddings", checkpoint, tuple(edits), record=record))


def _table(checkpoint: Checkpoint) -> TensorRef:
    """Return the embeddings. Raises InputError unless a head beside them has as many rows."""
    table, head = (checkpoint.refs.get(name) for name in (EMBED_TOKENS, LM_HEAD))
    what = LAYOUTS.get(checkpoint.layout, "weights")
    if checkpoint.layout not in ("safetensors", "torch") or table is None:
        raise InputError(
            "no-embeddings",
            checkpoint.root,
            expected=f"a checkpoint directory with {EMBED_TOKENS}",
            got=f"{what} without it" if table is None else what,
            hint=f"{mend_names(checkpoint.root)} gives tensors upstream's names"
            if checkpoint.layout in ("safetensors", "torch")
            else "give the checkpoint",
        )
    for name, ref in ((EMBED_TOKENS, table), (LM_HEAD, head or table)):
        if len(ref.shape) != 2 or ref.shape != table.shape or ref.dtype not in CAST_SOURCES:
            raise InputError(
                "no-embeddings",
                f"{checkpoint.root}: {name}",
                expected=f"rows in a floating dtype, as many as {EMBED_TOKENS} has",
                got=f"{ref.dtype} {list(ref.shape)}",
            )
    return table


def _std(checkpoint: Checkpoint) -> float:
    value = (checkpoint.config or {}).get("initializer_range")
    default: float = DEFAULTS["Qwen2"]["initializer_range"]
    is_number = type(value) in (int, float) and 0 <= float(value or 0) < 1e6
    return float(value) if value is not None and is_number else default


def _resized(name: str, ref: TensorRef, rows: int, new: NewRows, std: float) -> Tensor:
    width = ref.shape[1]
    if rows < ref.shape[0]:
        return TensorRef(ref.source, ref.offset, ref.dtype, (rows, width), ref.strides)
    return Pieces((ref, *_new_rows(name, ref, rows, new, std)), (rows, width))


def _new_rows(name: str, ref: TensorRef, rows: int, new: NewRows, std: float) -> tuple[Part, ...]:
    there, width = ref.shape
    shape = (rows - there, width)
    if new.init == "mean":
        return (Mean(ref, ref.dtype, shape),)
    if new.init == "zeros":
        return (RandomInit(ref.dtype, shape, new.seed, name, None),)
    if new.init == "normal":
        return tuple(
            RandomInit(ref.dtype, (1, width), new.seed, f"{name}[{row}]", None, std=std)
            for row in range(there, rows)
        )
    step, column = ref.strides or (width, 1)
    offset = ref.offset + (new.copied or 0) * step * BITS[ref.dtype] // 8
    return (TensorRef(ref.source, offset, ref.dtype, shape, (0, column)),)
