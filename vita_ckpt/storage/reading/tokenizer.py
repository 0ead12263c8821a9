"""Read the tokenizer of a checkpoint: how many tokens it will have, and its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from vita_ckpt.core.checkpoint import Checkpoint, File
from vita_ckpt.core.filenames import ADDED_TOKENS, TOKENIZER, TOKENIZER_FILES, VOCABULARY
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.reading.paths import Stores, find, read_json

# No tokenizer of a language model is as large.
_LARGEST_FILE: Final = 64 << 20


def count_tokens(checkpoint: Checkpoint, stores: Stores) -> int | None:
    """Return what ``len(tokenizer)`` will be; None if no supported file determines it.

    ``tokenizer.json`` lists all tokens, including added ones; ``vocab.json`` needs
    ``added_tokens.json`` beside it. A sentencepiece model alone is not read. Raises InputError for
    a file that is not JSON.
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


def token_ids(checkpoint: Checkpoint, stores: Stores) -> dict[str, int] | None:
    """Return the id of every token; None if no supported file determines it.

    The files are those of :func:`count_tokens`. Raises InputError for a file that is not JSON.
    """
    tokenizer = _read(stores, checkpoint, TOKENIZER)
    if tokenizer is None:
        vocab = _read(stores, checkpoint, VOCABULARY)
        if vocab is None:
            return None
        return _ids([*vocab.items(), *(_read(stores, checkpoint, ADDED_TOKENS) or {}).items()])
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, Mapping) else None
    if not isinstance(vocab, Mapping | list) or not isinstance(added, list | None):
        return None
    if isinstance(vocab, Mapping):
        pairs: list[tuple[Any, Any]] = list(vocab.items())
    else:  # unigram: [piece, score]
        pieces = (entry[0] if isinstance(entry, list) and entry else None for entry in vocab)
        pairs = [(piece, index) for index, piece in enumerate(pieces)]
    pairs += [(e.get("content"), e.get("id")) for e in added or [] if isinstance(e, Mapping)]
    return _ids(pairs)


def read_tokenizer_files(path: str, stores: Stores) -> tuple[Checkpoint, dict[str, str]]:
    """Return a directory with a tokenizer as a checkpoint without weights, and its texts by name.

    Raises InputError if it is no directory, or a file of the tokenizer is no text, or of an
    unlikely size.
    """
    store = stores.store_of(path)
    root, entry = find(store, path)
    if not entry.is_directory:
        raise InputError("not-a-tokenizer", path, expected="a directory with a tokenizer")
    files: dict[str, File] = {}
    texts: dict[str, str] = {}
    for name in store.listing(root):
        found = store.look(os.path.join(root, name)) if name in TOKENIZER_FILES else None
        if found is None or found.file is None:
            continue
        files[name] = found.file
        texts[name] = _text(stores, found.file)
    return Checkpoint(root, "none", {}, files=files), texts


def _ids(pairs: Iterable[tuple[Any, Any]]) -> dict[str, int] | None:
    found: dict[str, int] = {}
    for token, number in pairs:
        if not isinstance(token, str) or type(number) is not int or number < 0:
            return None
        found[token] = number
    return found


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


def new_tokenizer_files(base: Checkpoint, run: Checkpoint, stores: Stores) -> dict[str, str]:
    """Return the files of the run's tokenizer that the base lacks, or has otherwise.

    Raises InputError for one that is no text, or of an unlikely size.
    """
    found: dict[str, str] = {}
    for name in sorted(TOKENIZER_FILES):
        if name not in run.files:
            continue
        file, there = run.files[name], base.files.get(name)
        text = _text(stores, file)
        if there is None or there.size != file.size or _content(stores, there) != text.encode():
            found[name] = text
    return found


def _text(stores: Stores, file: File) -> str:
    try:
        return _content(stores, file).decode()
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x} at {error.start}, which is no UTF-8"
        raise _unlikely(file, byte) from error


def _content(stores: Stores, file: File) -> bytes:
    if file.size > _LARGEST_FILE:
        raise _unlikely(file, f"{file.size} bytes")
    with stores.open(file.path) as source:
        return source.read(source.file.size, 0)


def _unlikely(file: File, got: str) -> MalformedFileError:
    return MalformedFileError(
        "invalid-tokenizer-file",
        file.path,
        expected="a text file of a tokenizer",
        got=got,
        hint="take a sound copy of it, or save the tokenizer again",
    )
