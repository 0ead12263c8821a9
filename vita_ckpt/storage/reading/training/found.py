"""Hold what was found of a training state, and refuse what does not add up."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vita_ckpt.core.checkpoint import (
    File,
    Tensor,
)
from vita_ckpt.core.options import TrainedWeights
from vita_ckpt.core.training.state import TrainingState
from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.training.find import Place
from vita_ckpt.storage.stores.base import Source, Store

_V = TypeVar("_V")


@dataclass(slots=True)
class Found:
    """The tensors of a state, what describes it, and the files that were read."""

    state: TrainingState
    tensors: dict[str, Tensor] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)


def read_all(
    store: Store, root: str, names: Mapping[int, str], read: Callable[[Source], _V]
) -> dict[int, _V]:
    """Read a file of each rank."""
    paths = {rank: os.path.join(root, name) for rank, name in names.items()}

    def opened(path: str) -> _V:
        with store.open(path) as source:
            return read(source)

    store.prefetch(list(paths.values()), opened)
    return {rank: opened(path) for rank, path in paths.items()}


def check_ranks(root: str, files: Mapping[int, str], ranks: int, what: str) -> None:
    """Raise InputError unless there is a file for each of ``ranks`` ranks, and for no other."""
    missing = [rank for rank in range(min(ranks, len(files) + 1)) if rank not in files]
    if missing:
        example = next(iter(files.values()), "")
        raise missing_rank(
            os.path.join(root, example),
            f"the {what} of {ranks} ranks, rank {missing[0]} among them",
            f"{len(files)} files",
        )
    more = [name for rank, name in files.items() if rank >= ranks]
    if more:
        raise InputError(
            "left-over-rank",
            os.path.join(root, more[0]),
            expected=f"the {what} of {ranks} ranks",
            got=f"{len(files)} files: some are left over from a run with more ranks",
            hint="move the files of that run away",
        )


def missing_rank(path: str, expected: str, got: str = "nothing there") -> InputError:
    """Return the error for a file of a rank that is not there."""
    return InputError(
        "missing-rank",
        path,
        expected=expected,
        got=got,
        hint="copy the files of every machine into one directory",
    )


def disagreement(file: File, what: str, ours: Any, theirs: Any, other: File) -> InputError:
    """Return the error for two files that say different things."""
    return InputError(
        "ranks-disagree",
        file.path,
        expected=f"{what} {ours!r}, as in {os.path.basename(other.path)}",
        got=repr(theirs),
        hint="the files are of two saves or runs: take those of one",
    )


def refuse_copies(place: Place, weights: TrainedWeights) -> None:
    """Raise InputError if copies are asked for of a state that has none."""
    if weights == "copies":
        raise InputError(
            "no-copies",
            place.root,
            expected="copies in the dtype of training beside float32 masters",
            got=f"{place.engine}, which has one set of weights",
            hint="leave --weights out; --dtype converts",
        )


def main_dtype(tensors: Mapping[str, Tensor]) -> str:
    """Return the dtype of most bytes, empty without tensors."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    return sizes.most_common(1)[0][0] if sizes else ""


def step_of(root: str) -> int | None:
    """Return the step at the end of a directory's name, None if there is none."""
    digits = os.path.basename(root).rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 12 else None
