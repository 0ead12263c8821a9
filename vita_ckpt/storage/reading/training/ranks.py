"""Open files that each rank wrote for itself: sharded safetensors, and DTensors."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from vita_ckpt.core.checkpoint import (
    Shape,
    Stored,
    Tensor,
    TensorRef,
)
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.filenames import (
    DTENSOR,
    HF_SHARD,
)
from vita_ckpt.core.training.pieces import offsets_in_mesh, tiled
from vita_ckpt.core.training.state import Engine, TrainingState
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.dcp import (
    read_hf_shard,
)
from vita_ckpt.storage.formats.dtensor import RankFile, read_rank
from vita_ckpt.storage.reading.training.find import Place
from vita_ckpt.storage.reading.training.found import (
    Found,
    check_ranks,
    disagreement,
    main_dtype,
    missing_rank,
    read_all,
    refuse_copies,
    step_of,
)
from vita_ckpt.storage.stores.base import Store


def open_hf_shards(store: Store, place: Place, weights: TrainedWeights) -> Found:
    """Open the unconsolidated shards of ``HuggingFaceStorageWriter``."""
    refuse_copies(place, weights)
    matches = [match for name in place.names if (match := HF_SHARD.fullmatch(name)) is not None]
    ranks = sorted({int(match["rank"]) for match in matches})
    there = {(int(match["rank"]), int(match["file"])) for match in matches}
    for match in matches:
        for number in range(1, int(match["files"]) + 1):
            if (int(match["rank"]), number) not in there:
                raise missing_rank(
                    os.path.join(place.root, match[0]), f"file {number} of {match['files']} too"
                )
    if ranks != list(range(1, len(ranks) + 1)):
        missing = next(n for n in range(1, len(ranks) + 1) if n not in ranks)
        raise missing_rank(
            os.path.join(place.root, matches[0][0]), f"files of every rank, {missing} among them"
        )
    files = {number: match[0] for number, match in enumerate(matches)}
    shards = read_all(store, place.root, files, read_hf_shard)
    parts: dict[str, list[tuple[Shape, TensorRef]]] = {}
    for opened, offsets in shards.values():
        for name, ref in opened.tensors.items():
            parts.setdefault(name, []).append((offsets[name], ref))
    tensors: dict[str, Tensor] = {}
    for name, held in parts.items():
        if len({len(ref.shape) for _, ref in held}) > 1:
            raise disagreement(
                held[1][1].source, name, held[0][1].shape, held[1][1].shape, held[0][1].source
            )
        ends = [tuple(map(sum, zip(o, ref.shape, strict=True))) for o, ref in held]
        shape = tuple(map(max, zip(*ends, strict=True)))
        tensors[name] = tiled(f"{place.root}: {name}", shape, held)
    state = TrainingState(
        Engine.HF_SHARDS,
        ranks=len(ranks),
        step=step_of(place.root),
        dtype=main_dtype(tensors),
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
    return Found(state, tensors, [opened.file for opened, _ in shards.values()])


def open_dtensors(store: Store, place: Place, weights: TrainedWeights) -> Found:
    """Open files in which each rank saved its DTensors."""
    refuse_copies(place, weights)
    matches = [match for name in place.names if (match := DTENSOR.fullmatch(name)) is not None]
    of_model = [m for m in matches if m["what"] not in ("optim", "extra_state")] or matches
    what = Counter(match["what"] for match in of_model).most_common(1)[0][0]
    named = {int(m["rank"]): m[0] for m in of_model if m["what"] == what}
    sizes = {int(m["ranks"]) for m in of_model if m["what"] == what}
    ranks = min(sizes)
    if len(sizes) > 1:
        raise InputError(
            "left-over-rank",
            os.path.join(place.root, max(named.values())),
            expected="files of one world size",
            got=f"files of {', '.join(map(str, sorted(sizes)))} ranks",
            hint="move those of the other run away",
        )
    check_ranks(place.root, named, ranks, "parts")
    files = read_all(store, place.root, named, read_rank)
    tensors: dict[str, Tensor] = dict(files[0].whole)
    for name in files[0].parts:
        tensors[name] = _of_mesh(name, files)
    state = TrainingState(
        Engine.DTENSOR,
        ranks=ranks,
        dtype=main_dtype(tensors),
        master_bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )
    return Found(state, tensors, [file.file for file in files.values()])


def _of_mesh(name: str, files: Mapping[int, RankFile]) -> Stored:
    """Return a tensor whose parts are in the files of the ranks."""
    parts = [file.parts[name] for file in files.values() if name in file.parts]
    one = parts[0]
    for part, file in zip(parts, files.values(), strict=False):
        same = (part.shape, part.shards) == (one.shape, one.shards)
        if len(parts) != len(files) or not same:
            raise disagreement(
                file.file, name, (one.shape, one.shards), (part.shape, part.shards), files[0].file
            )
    sizes = [1 + max(part.coordinates[i] for part in parts) for i in range(len(one.shards))]
    chunks = [
        (offsets_in_mesh(part.shape, part.shards, part.coordinates, sizes), part.local)
        for part in parts
    ]
    return tiled(f"{files[0].file.path}: {name}", one.shape, chunks)
