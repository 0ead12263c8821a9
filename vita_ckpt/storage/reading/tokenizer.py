"""Count the tokens that a checkpoint's tokenizer will have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import ADDED_TOKENS, TOKENIZER, VOCABULARY
from vita_ckpt.storage.reading.paths import Stores, read_json


def count_tokens(checkpoint: Checkpoint, stores: Stores) -> int | None:
    """What ``len(tokenizer)`` will be; None where no file that can be read here says so.

    ``tokenizer.json`` knows all tokens, added ones included; ``vocab.json`` needs
    ``added_tokens.json`` beside it. A sentencepiece model alone is not read. Raises InputError for
    a file that is no JSON.
    """
    tokenizer = _read(stores, checkpoint, TOKENIZER)
    if tokenizer is not None:
        model = tokenizer.get("model")
        vocab = model.get("vocab") if isinstance(model, Mapping) else None
        known = _vocabulary(vocab)
        added = tokenizer.get("added_tokens")
        if known is None or not isinstance(added, list | None):
            return None
        contents = [entry.get("content") for entry in added or [] if isinstance(entry, Mapping)]
        return len(known | {content for content in contents if isinstance(content, str)})
    vocab = _read(stores, checkpoint, VOCABULARY)
    if vocab is None:
        return None
    return len(vocab.keys() | (_read(stores, checkpoint, ADDED_TOKENS) or {}).keys())


def _vocabulary(vocab: Any) -> set[str] | None:
    if isinstance(vocab, Mapping):
        return set(vocab)
    if isinstance(vocab, list):  # unigram: [piece, score]
        pieces = (entry[0] for entry in vocab if isinstance(entry, list) and entry)
        return {piece for piece in pieces if isinstance(piece, str)}
    return None


def _read(stores: Stores, checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    file = checkpoint.files.get(name)
    return read_json(stores, file.path)[0] if file is not None else None
