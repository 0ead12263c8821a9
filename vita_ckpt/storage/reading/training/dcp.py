"""Open what torch.distributed.checkpoint wrote: chunks that its metadata places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from vita_ckpt.core.checkpoint import (
    File,
    Tensor,
    TensorRef,
)
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.filenames import (
    METADATA,
)
from vita_ckpt.core.training.model_entry import model_entries, optimizer_entries, trained_names
from vita_ckpt.core.training.pieces import tiled
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.dcp import (
    StoredChunk,
    StoredTensor,
    announce,
    chunk_in_safetensors,
    chunk_in_zips,
    is_safetensors,
    read_metadata,
)
from vita_ckpt.storage.formats.safetensors import SafetensorsFile, read_safetensors
from vita_ckpt.storage.reading.index import check_inside
from vita_ckpt.storage.reading.training.find import Place
from vita_ckpt.storage.reading.training.found import (
    Found,
    main_dtype,
    missing_rank,
    refuse_copies,
    step_of,
)
from vita_ckpt.storage.stores.base import Store


def open_dcp(store: Store, place: Place, weights: TrainedWeights) -> Found:
    """Open a directory of ``torch.distributed.checkpoint``, which has one set of weights."""
    refuse_copies(place, weights)
    if METADATA not in place.names:
        raise InputError(
            "incomplete-save",
            place.root,
            expected=f"{METADATA}, which is written last",
            got="files of ranks without it",
            hint="the save was interrupted: take an earlier one",
        )
    with store.open(os.path.join(place.root, METADATA)) as source:
        metadata = read_metadata(source)
    paths = {name: tensor.path for name, tensor in metadata.tensors.items()}
    entries = model_entries(paths)
    if not entries:
        raise InputError(
            "no-model",
            place.root,
            expected="a model among the entries",
            got=", ".join(list(metadata.tensors)[:4]) or "no tensors",
            hint="an optimizer's directory? name the model's beside it",
        )
    chunks = [
        (metadata.tensors[entry], chunk)
        for entry in entries
        for chunk in metadata.tensors[entry].chunks
    ]
    placed, files = _placed(store, place, chunks)
    tensors: dict[str, Tensor] = {}
    for entry, name in entries.items():
        stored = metadata.tensors[entry]
        tensors[name] = tiled(
            f"{metadata.file.path}: {entry}",
            stored.shape,
            [(chunk.offsets, placed[entry, chunk]) for chunk in stored.chunks],
        )
    moments = optimizer_entries(paths)
    trained = trained_names(tensors, (paths[entry] for entry in moments))
    rest = tuple(name for name in tensors if name not in set(trained)) if trained else ()
    state = TrainingState(
        Engine.DCP,
        version=metadata.version,
        ranks=_ranks_of(place.names),
        step=step_of(place.root),
        dtype=main_dtype(tensors),
        trained=trained,
        frozen=rest,
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        moment_bytes=sum(
            chunk.length for entry in moments for chunk in metadata.tensors[entry].chunks
        ),
    )
    return Found(state, tensors, [metadata.file, *files])


def _placed(
    store: Store, place: Place, chunks: Sequence[tuple[StoredTensor, StoredChunk]]
) -> tuple[dict[tuple[str, StoredChunk], TensorRef], list[File]]:
    """Return where the values of each tensor's chunks are, and the files that hold them."""
    by_file: dict[str, list[tuple[StoredTensor, StoredChunk]]] = {}
    for stored, chunk in chunks:
        by_file.setdefault(chunk.file, []).append((stored, chunk))
    placed: dict[tuple[str, StoredChunk], TensorRef] = {}
    files: list[File] = []
    for name, held in by_file.items():
        path = os.path.join(place.root, name)
        check_inside(store, place.root, name, os.path.join(place.root, METADATA))
        if store.look(path) is None:
            raise missing_rank(path, f"the file that {METADATA} names")
        with store.open(path) as source:
            opened: SafetensorsFile | None = None
            if is_safetensors(source):
                opened = read_safetensors(source)
            else:
                announce(source, (chunk for _, chunk in held))
            files.append(source.file if opened is None else opened.file)
            for stored, chunk in held:
                placed[stored.name, chunk] = (
                    chunk_in_zips(source, stored, chunk)
                    if opened is None
                    else chunk_in_safetensors(opened, stored, chunk)
                )
    return placed, files


def _ranks_of(names: Iterable[str]) -> int | None:
    ranks = {name.split("_")[2] for name in names if name.startswith("__") and "_" in name[2:]}
    return len(ranks) or None
