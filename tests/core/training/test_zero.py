"""The layouts of ZeRO against vectors that are laid out element by element."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.training.zero import Slice, slices_of_group, slices_of_stage_3
from vita_ckpt.errors import MalformedFileError

_SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6).map(
    lambda shapes: {f"p{i}": shape for i, shape in enumerate(shapes)}
)


def _joined(slices: list[Slice], vectors: dict[tuple[int, int], list[int]]) -> list[int]:
    found: list[int] = []
    for s in slices:
        taken = vectors[s.rank, s.vector][s.start : s.start + s.count]
        assert len(taken) == s.count > 0
        found += taken
    return found


@given(_SHAPES, st.integers(1, 7), st.data(), st.booleans())
def test_stages_1_and_2(
    shapes: dict[str, tuple[int, ...]], ranks: int, data: st.DataObject, keeps_padding: bool
) -> None:
    gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(shapes), max_size=len(shapes)))
    gaps[-1] = 0
    flat: list[int] = []
    wanted: dict[str, list[int]] = {}
    number = 1
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        wanted[name] = list(range(number, number + prod(shape)))
        number += prod(shape)
        flat += wanted[name] + [0] * gap
    padding = -len(flat) % (2 * ranks)
    flat += [0] * padding
    part = len(flat) // ranks
    vectors = {(rank, 3): flat[rank * part : (rank + 1) * part] for rank in range(ranks)}
    if padding and not keeps_padding and padding <= part:
        del vectors[ranks - 1, 3][-padding:]
    held = [len(vectors[rank, 3]) for rank in range(ranks)]
    found = slices_of_group("file", 3, shapes, gaps if any(gaps) else (), held)
    assert {name: _joined(slices, vectors) for name, slices in found.items()} == wanted


@given(_SHAPES, st.integers(1, 7), st.data())
def test_stage_3(shapes: dict[str, tuple[int, ...]], ranks: int, data: st.DataObject) -> None:
    of_rank: list[list[int]] = [[] for _ in range(ranks)]
    wanted: dict[str, list[int]] = {}
    number = 1
    for name, shape in shapes.items():
        count = prod(shape)
        wanted[name] = list(range(number, number + count))
        number += count
        piece = -(-count // ranks)
        padded = wanted[name] + [0] * (piece * ranks - count)
        for rank in range(ranks):
            of_rank[rank] += padded[rank * piece : (rank + 1) * piece]
    length = len(of_rank[0])
    cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=4)) | {0, length})
    bounds = list(pairwise(cuts)) or [(0, 0)]
    vectors = {
        (rank, number): of_rank[rank][low:high]
        for rank in range(ranks)
        for number, (low, high) in enumerate(bounds)
    }
    held = [[high - low for low, high in bounds] for _ in range(ranks)]
    found = slices_of_stage_3("file", shapes, held)
    assert {name: _joined(slices, vectors) for name, slices in found.items()} == wanted


@pytest.mark.parametrize("held", [[10, 10], [2, 2], [6, 1]])
def test_a_group_that_is_not_filled_is_refused(held: list[int]) -> None:
    with pytest.raises(MalformedFileError, match="training-state-layout: file"):
        slices_of_group("file", 0, {"a": (3, 4)}, (), held)


def test_stage_3_with_other_vectors_is_refused() -> None:
    for held in ([[4], [4]], [[6], [5]], [[3, 3], [6]]):
        with pytest.raises(MalformedFileError, match="training-state-layout: file"):
            slices_of_stage_3("file", {"a": (3, 3)}, held)


def test_gaps_must_be_of_every_parameter() -> None:
    with pytest.raises(MalformedFileError, match="gaps"):
        slices_of_group("file", 0, {"a": (3,), "b": (1,)}, (1,), [5])
