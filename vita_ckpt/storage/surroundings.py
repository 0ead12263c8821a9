"""What lies around a checkpoint and decides what it becomes: tokenizer, audio, LoRA base."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.model_card import MODEL_CARD
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.directory import open_checkpoint
from vita_ckpt.storage.places import reached_from
from vita_ckpt.storage.source import read_json_object, reading

_LARGEST_CARD: Final = 4 << 20


def count_tokens(checkpoint: Checkpoint) -> int | None:
    """What ``len(tokenizer)`` will be; None where no file that can be read here says so.

    ``tokenizer.json`` knows all tokens, added ones included; ``vocab.json`` needs
    ``added_tokens.json`` beside it. A sentencepiece model alone is not read. Raises InputError for
    a file that is no JSON.
    """
    tokenizer = _read(checkpoint, "tokenizer.json")
    if tokenizer is not None:
        model = tokenizer.get("model")
        vocab = model.get("vocab") if isinstance(model, Mapping) else None
        known = _vocabulary(vocab)
        added = tokenizer.get("added_tokens")
        if known is None or not isinstance(added, list | None):
            return None
        contents = [entry.get("content") for entry in added or [] if isinstance(entry, Mapping)]
        return len(known | {content for content in contents if isinstance(content, str)})
    vocab = _read(checkpoint, "vocab.json")
    if vocab is None:
        return None
    return len(vocab.keys() | (_read(checkpoint, "added_tokens.json") or {}).keys())


def reaches(checkpoint: Checkpoint, path: str) -> str | None:
    """Where a path in a checkpoint's config leads: from here, beside the checkpoint, or in it.

    Of a checkpoint on the hub only what lies in its repository.
    """
    return reached_from(checkpoint.root, path)


def read_model_card(checkpoint: Checkpoint) -> bytes:
    """The README of a checkpoint; nothing where there is none. Raises InputError for a huge one."""
    file = checkpoint.files.get(MODEL_CARD)
    if file is None:
        return b""
    with reading(file.path) as source:
        size = source.file.size
        if size > _LARGEST_CARD:
            raise InputError(
                "model-card-too-large",
                file.path,
                expected=f"at most {_LARGEST_CARD} bytes",
                got=str(size),
                hint="leave --model-card out",
            )
        return source.read(size, 0)


def find_base(run: Checkpoint) -> Checkpoint | None:
    """The checkpoint that a LoRA run was trained on, here or in the hub's cache; None if absent.

    A run on the hub is judged by its own repository, not by what happens to lie here. Raises
    HubError and StaleInputError.
    """
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    path = reaches(run, named) or (None if is_remote(run.root) else _in_hub_cache(named))
    try:
        return open_checkpoint(path) if path is not None else None
    except INCONCLUSIVE:
        raise
    except InputError:
        return None


def _in_hub_cache(name: str) -> str | None:
    """The newest snapshot of a hub id that has been downloaded."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - slow, seldom needed

    folder = os.path.join(HF_HUB_CACHE, "models--" + name.replace("/", "--"), "snapshots")
    try:
        found = [os.path.join(folder, entry) for entry in os.listdir(folder)]
    except (OSError, ValueError):  # a name that no file can have
        return None
    return max(found, key=os.path.getmtime, default=None)


def _vocabulary(vocab: Any) -> set[str] | None:
    if isinstance(vocab, Mapping):
        return set(vocab)
    if isinstance(vocab, list):  # unigram: [piece, score]
        pieces = (entry[0] for entry in vocab if isinstance(entry, list) and entry)
        return {piece for piece in pieces if isinstance(piece, str)}
    return None


def _read(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    file = checkpoint.files.get(name)
    return read_json_object(file.path)[0] if file is not None else None
