"""Tensors in pieces: streamed, converted, checked and compared as if they lay in one place."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.api.validate import check_values
from vita_ckpt.core.checkpoint import Checkpoint, Pieces, TensorRef, cast, parts_of, uncast
from vita_ckpt.core.training.pieces import joined, offsets_in_mesh, part_of_vector, tiled
from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.stores.local import identify
from vita_ckpt.storage.tensors import stream
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes


def _stored(path: Path, array: np.ndarray) -> TensorRef:
    """Append the bytes of an array to a file, after some that belong to nothing."""
    before = path.read_bytes() if path.exists() else b""
    path.write_bytes(before + b"?" * 5 + np.ascontiguousarray(array).tobytes())
    return TensorRef(identify(str(path)), len(before) + 5, "F32", array.shape)


def _in_one_file(path: Path, arrays: list[np.ndarray]) -> list[TensorRef]:
    data, places = b"", []
    for array in arrays:
        data += b"?" * 3
        places.append(len(data))
        data += np.ascontiguousarray(array).tobytes()
    path.write_bytes(data)
    file = identify(str(path))
    refs = zip(places, arrays, strict=True)
    return [TensorRef(file, place, "F32", array.shape) for place, array in refs]


def _bytes(tensor: object) -> bytes:
    with Inputs() as inputs:
        return b"".join(tensor_bytes(tensor, inputs, "t"))  # type: ignore[arg-type]


@given(st.data())
def test_any_grid_is_streamed_in_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    whole = np.arange(np.prod(shape), dtype="<f4").reshape(shape)
    cuts = [
        sorted({0, size} | data.draw(st.sets(st.integers(0, size), max_size=2))) for size in shape
    ]
    bounds = [list(itertools.pairwise(c)) for c in cuts]
    chunks = list(itertools.product(*bounds))
    data.draw(st.randoms(use_true_random=False)).shuffle(chunks)
    arrays = [whole[tuple(slice(low, high) for low, high in chunk)] for chunk in chunks]
    path = tmp_path_factory.mktemp("pieces") / "file"
    refs = _in_one_file(path, arrays)
    placed = [(tuple(low for low, _ in c), ref) for c, ref in zip(chunks, refs, strict=True)]
    tensor = tiled("t", shape, placed)
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == (shape, "F32", whole.nbytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_CAST_STEP", data.draw(st.sampled_from([8, 64, 1 << 20])))
        patch.setattr(stream, "_SMALLEST_STEP", 8)
        assert _bytes(tensor) == whole.tobytes()
        halves = cast(tensor, "F16")
        assert halves.dtype == "F16"
        assert _bytes(halves) == whole.astype("<f2").tobytes()
    assert uncast(halves) == tensor
    assert cast(halves, "F32") == tensor
    assert len(parts_of(tensor)) == len(chunks)


def test_a_grid_that_does_not_cover_is_refused(tmp_path: Path) -> None:
    one, two = _in_one_file(tmp_path / "f", [np.zeros((2, 3), "<f4"), np.zeros((2, 3), "<f4")])
    assert tiled("t", (4, 3), [((0, 0), one), ((2, 0), two)]).shape == (4, 3)
    assert tiled("t", (2, 3), [((0, 0), one), ((0, 0), two)]) == one  # a replica
    for chunks in ([((0, 0), one)], [((0, 0), one), ((1, 0), two)], [((0, 0), one), ((3, 0), two)]):
        with pytest.raises(MalformedFileError, match="training-state-layout"):
            tiled("t", (4, 3), chunks)
    with pytest.raises(MalformedFileError, match="training-state-layout"):
        tiled("t", (4, 3), [])


def test_a_range_outside_its_vector_is_refused(tmp_path: Path) -> None:
    vector = _stored(tmp_path / "f", np.arange(6, dtype="<f4"))
    assert _bytes(part_of_vector(vector, 2, 3)) == np.arange(2, 5, dtype="<f4").tobytes()
    for start, count in ((4, 3), (7, 0), (-1, 2)):
        with pytest.raises(MalformedFileError, match="training-state-layout"):
            part_of_vector(vector, start, count)


def test_pieces_of_a_vector(tmp_path: Path) -> None:
    vector = _stored(tmp_path / "f", np.arange(8, dtype="<f4"))
    tensor = joined((2, 3), [part_of_vector(vector, 5, 2), part_of_vector(vector, 0, 4)])
    assert isinstance(tensor, Pieces)
    assert _bytes(tensor) == np.array([5, 6, 0, 1, 2, 3], "<f4").tobytes()
    alone = joined((2, 2), [part_of_vector(vector, 1, 4)])
    assert isinstance(alone, TensorRef)
    assert alone.shape == (2, 2)


def test_values_are_found_at_their_place(tmp_path: Path) -> None:
    whole = np.arange(1, 25, dtype="<f4").reshape(4, 6)
    whole[2, 4] = np.nan
    left, right = _in_one_file(tmp_path / "f", [whole[:, :3], whole[:, 3:]])
    tensor = tiled("t", (4, 6), [((0, 0), left), ((0, 3), right)])
    checkpoint = Checkpoint("", "state", {"t": tensor})
    (found,) = check_values(checkpoint)
    assert found.rule == "value-nan"
    assert found.message.endswith("in 1 of 24 elements, the first at [2, 4]")


def test_offsets_in_a_mesh() -> None:
    # torch cuts 7 over 4 ranks into 2, 2, 2, 1, and 5 into 2, 2, 1 and nothing.
    assert [offsets_in_mesh((7,), (0,), (rank,), (4,)) for rank in range(4)] == [
        (0,),
        (2,),
        (4,),
        (6,),
    ]
    assert offsets_in_mesh((5,), (0,), (3,), (4,)) == (5,)
    assert offsets_in_mesh((6, 4), (None, 1), (1, 1), (2, 2)) == (0, 2)
    assert offsets_in_mesh((7, 4), (0, 0), (1, 1), (2, 2)) == (6, 0)
