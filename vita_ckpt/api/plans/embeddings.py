"""Plan another number of rows of the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from vita_ckpt.api.locate import StrPath, as_checkpoint, whole
from vita_ckpt.core.anatomy.parts import EMBED_TOKENS
from vita_ckpt.core.checkpoint import Checkpoint, File
from vita_ckpt.core.filenames import TOKENIZER_FILES
from vita_ckpt.core.plan import (
    DropFile,
    Plan,
    PutFile,
)
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tokenizer import (
    read_tokenizer_files,
    token_ids,
)
from vita_ckpt.surgery import embeddings
from vita_ckpt.surgery.embeddings import NewRows

_INITS: Final = ("mean", "normal", "zeros")
_MOST_DIGITS: Final = 9  # of a row's number


def plan_resize_embeddings(
    checkpoint: Checkpoint | StrPath,
    *,
    tokens: int | None = None,
    tokenizer: StrPath | None = None,
    init: str = "mean",
    seed: int = 0,
    multiple_of: int = 1,
    stores: Stores | None = None,
) -> Plan:
    """Plan another number of rows of ``embed_tokens`` and ``lm_head``, and ``vocab_size`` with it.

    The rows are for ``tokens`` tokens, or for those of a directory ``tokenizer``, whose files take
    the place of the checkpoint's; their number is padded to ``multiple_of``. New rows are the
    ``"mean"`` of the others, ``"zeros"``, drawn anew (``"normal"``, from ``seed``), or
    ``"copy:TOKEN"``, the row of a token or of a number. All others stay as they are.

    Raises UsageError for an invalid option, InputError where the tokenizer has more tokens, or
    what it has is not known and rows would go.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    if (tokens is None) == (tokenizer is None):
        raise UsageError(
            "options-exclude-each-other",
            "--tokenizer",
            expected="either --tokens N or --tokenizer DIR",
            got="neither" if tokens is None else "both",
        )
    path = None if tokenizer is None else whole(tokenizer, stores)
    given, texts = (opened, {}) if path is None else read_tokenizer_files(path, stores)
    ids = token_ids(given, stores)
    needed = None if ids is None else max(ids.values(), default=-1) + 1
    if tokens is None and needed is None:
        raise InputError(
            "not-a-tokenizer",
            path or "",
            expected="tokenizer.json, or vocab.json with added_tokens.json",
            hint="--tokens N works without a readable tokenizer",
        )
    wanted = tokens if tokens is not None else needed or 0
    new = _new_rows(init, seed, token_ids(opened, stores))
    plan = embeddings.plan_resize_embeddings(
        opened, wanted, needed=needed, new=new, multiple_of=multiple_of
    )
    _check_shrinking(plan, given, ids)
    if path is not None:
        plan = replace(plan, edits=(*plan.edits, *_tokenizer_edits(opened, texts, stores)))
    request = {
        "tokens": tokens,
        "tokenizer": path,
        "init": init,
        "seed": seed,
        "multiple_of": multiple_of,
    }
    return replace(plan, request=request)


def _new_rows(init: str, seed: int, ids: Mapping[str, int] | None) -> NewRows:
    if init in _INITS:
        return NewRows(init, seed)  # type: ignore[arg-type]
    kind, colon, token = init.partition(":")
    if kind != "copy" or not colon:
        raise UsageError(
            "unknown-choice",
            "--init",
            expected="mean, normal, zeros or copy:TOKEN",
            got=init,
            hint=did_you_mean(init, _INITS),
        )
    if ids is not None and token in ids:
        return NewRows("copy", seed, ids[token])
    if token.isascii() and token.isdecimal() and len(token) < _MOST_DIGITS:
        return NewRows("copy", seed, int(token))
    raise UsageError(
        "unknown-token",
        init,
        expected="a token of the checkpoint's tokenizer, or the number of a row",
        got="a checkpoint without a readable tokenizer" if ids is None else "no such token",
        hint=did_you_mean(token, ids or ()),
    )


def _check_shrinking(plan: Plan, given: Checkpoint, ids: Mapping[str, int] | None) -> None:
    """Raise InputError if rows go and a tokenizer that is not read may need them."""
    before, after = plan.base.tensors[EMBED_TOKENS], plan.target().tensors[EMBED_TOKENS]
    unread = [name for name in given.files if name.startswith(("tokenizer.", "vocab."))]
    if after.shape[0] < before.shape[0] and ids is None and unread:
        raise InputError(
            "too-few-rows",
            plan.base.root,
            expected="a readable tokenizer, to know that it does not need the removed rows",
            got=unread[0],
            hint="give one whose tokenizer.json lists its tokens: --tokenizer DIR",
        )


def _tokenizer_edits(
    base: Checkpoint, texts: Mapping[str, str], stores: Stores
) -> Iterator[PutFile | DropFile]:
    """Yield the changes that make the tokenizer of ``base`` the one with these texts."""
    for name, text in texts.items():
        there = base.files.get(name)
        if there is None or there.size != len(text.encode()) or _text(there, stores) != text:
            yield PutFile(name, text, "of the new tokenizer")
    for name in sorted(base.files.keys() & TOKENIZER_FILES - texts.keys()):
        yield DropFile(name, "of the old tokenizer")


def _text(file: File, stores: Stores) -> str:
    with stores.open(file.path) as source:
        return source.read(source.file.size, 0).decode(errors="replace")
