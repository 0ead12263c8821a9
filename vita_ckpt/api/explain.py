"""Explain what each loader would do with a directory, and where loaders disagree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.checks.explain.disagreements import divergences
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import explain_loaders
from vita_ckpt.checks.explain.matching import Lookup
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.anatomy.families import VITA, recognise
from vita_ckpt.core.binding.loaders import model_name
from vita_ckpt.core.checkpoint import Checkpoint, Layout
from vita_ckpt.core.file_listing import Trouble, WeightFiles
from vita_ckpt.core.filenames import (
    ADDED_TOKENS,
    CARRIED_CONFIG,
    CONFIG,
    ORIGIN_CONFIG,
    PROCESSOR,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TOKENIZER,
    VOCABULARY,
)
from vita_ckpt.core.kinds import kind_of
from vita_ckpt.core.quantisation import describe
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.reading.audio import find_audio_encoder
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.references import find_base
from vita_ckpt.storage.reading.tokenizer import count_tokens
from vita_ckpt.storage.reading.tower import find_tower, processor_around, read_carried_config

_LOOKED_INTO: Final = (TOKENIZER, VOCABULARY, ADDED_TOKENS, CARRIED_CONFIG, PROCESSOR)
_T = TypeVar("_T")


def explain(path: StrPath, *, stores: Stores | None = None) -> Explanation:
    """Replay VITA's, transformers' and huggingface_hub's loaders over a directory, file by file.

    Headers and configs only; what is broken is where a loader stops, not an error. A tower
    directory that is reachable is looked into. Raises InputError if nothing is there.
    """
    stores = Stores() if stores is None else stores
    files = read_weight_files(locate(path, stores), stores)
    traces = explain_loaders(files, _look_up(files, stores))
    return Explanation(files.root, traces, divergences(traces), tuple(_remarks(files)))


def _remarks(files: WeightFiles) -> Iterator[str]:
    """Yield what a directory is, where that is no plain model of VITA."""
    tensors = {name: ref for file in files.files.values() for name, ref in file.tensors.items()}
    layout: Layout = "file" if files.lone else "safetensors"
    checkpoint = Checkpoint(files.root, layout, tensors, config=files.config)
    kind = kind_of(checkpoint)
    if kind.relative is not None:
        yield f"another family's: {kind.relative.label}"
    told = recognise(files.config, tensors)
    if told is not None and told.family is not VITA:
        yield f"{told.family.label}, by {told.evidence}" + (f"; {told.doubt}" * bool(told.doubt))
    if kind.quantisation is not None:
        yield f"quantised: {describe(checkpoint, kind.quantisation)}"
    if files.serving_config is not None:
        yield f"VITA's config is {ORIGIN_CONFIG}, {CONFIG} is a server's"


def _look_up(files: WeightFiles, stores: Stores) -> Lookup:
    """Look up what the config names: the tower, the audio encoder, and the tokenizer."""
    config: Mapping[str, Any] = files.config or {}
    beside = _beside(files, stores)
    tokens, no_tokens = _attempt(lambda: count_tokens(beside, stores))
    is_indexed = SAFETENSORS_INDEX in files.names or SAFETENSORS in files.names
    found = Lookup(
        name=model_name(files.root),
        safetensors=is_indexed,
        carried=_attempt(lambda: read_carried_config(beside, stores))[0],
        audio=find_audio_encoder(beside, stores),
        tokens=tokens,
        tokenizer_trouble=no_tokens,
        base=None if is_indexed else find_base(beside, stores),
    )
    name = config.get("mm_vision_tower")
    if not isinstance(name, str) or not name:
        return found
    tower = find_tower(beside, stores)
    path = tower.path if tower is not None else None
    processor, trouble = _attempt(lambda: processor_around(beside, tower, stores))
    found = replace(found, tower=tower, processor=processor, processor_trouble=trouble)
    if path is None:
        return found
    return replace(
        found,
        files=_attempt(lambda: read_weight_files(path, stores))[0],
        from_here=not is_remote(path) and "\0" not in name and os.path.exists(name),
    )


def _beside(files: WeightFiles, stores: Stores) -> Checkpoint:
    """Return the directory with the small files in it that are looked into, without weights."""
    store = stores.store_of(files.root)
    paths = {n: os.path.join(files.root, n) for n in files.names if n in _LOOKED_INTO}
    entries = {name: store.look(path) for name, path in paths.items()}
    found = {n: e.file for n, e in entries.items() if e is not None and e.file is not None}
    return Checkpoint(
        files.root,
        "safetensors",
        {},
        config=files.config,
        adapter_config=files.adapter_config,
        files=found,
    )


def _attempt(read: Callable[[], _T]) -> tuple[_T | None, Trouble | None]:
    """Return what is read, or why it cannot be."""
    try:
        return read(), None
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return None, Trouble(error.code, str(error))
