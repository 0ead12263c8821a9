"""The compiled loops find what numpy finds, to the last digit, or leave it to numpy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.distance import Distance
from vita_ckpt.storage.tensors.distance import Meter
from vita_ckpt.storage.tensors.native import BLOCK, Native, Range, compiled

DTYPES = ("BF16", "F16", "F32")
PAIRS = list(product(DTYPES, DTYPES))
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}


@pytest.fixture(scope="module")
def native() -> Native:
    found = compiled()
    if found is None:
        pytest.skip("no loops were compiled, or not for this processor")
    return found


@contextmanager
def files(*contents: bytes) -> Iterator[list[int]]:
    """Descriptors of files in memory."""
    descriptors = [os.memfd_create("test") for _ in contents]
    try:
        for descriptor, content in zip(descriptors, contents, strict=True):
            os.write(descriptor, content)
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def by_numpy(before: bytes, after: bytes, dtypes: tuple[str, str]) -> Distance:
    meter, total = Meter(), Distance()
    old, new = (WIDTHS[dtype] for dtype in dtypes)
    for start in range(0, len(before) // old, BLOCK):
        stop = start + BLOCK
        total += meter.distance(
            before[start * old : stop * old], after[start * new : stop * new], dtypes
        )
    return total


def natively(native: Native, before: bytes, after: bytes, dtypes: tuple[str, str]) -> Distance:
    with files(b"?" + before, b"??" + after) as (old, new):
        found = native.distance(
            Range(old, 1, dtypes[0]), Range(new, 2, dtypes[1]), len(before) // WIDTHS[dtypes[0]]
        )
    assert found is not None
    return found


def drawn(dtype: str, seed: int, count: int, scale: float) -> bytes:
    values = np.random.default_rng(seed).standard_normal(count) * scale
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def is_finite(data: bytes, dtype: str) -> bool:
    if dtype == "BF16":
        return bool((np.frombuffer(data, "<u2") & 0x7F80 != 0x7F80).all())
    return bool(np.isfinite(np.frombuffer(data, {"F16": "<f2", "F32": "<f4"}[dtype])).all())


def test_the_loops_are_compiled_where_a_compiler_is() -> None:
    """It is the build that says whether there are loops; a processor may have none for them."""
    if shutil.which("cc"):
        assert Path(__file__).parents[3].joinpath("vita_ckpt/storage/tensors/native.so.1").exists()


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alike", "far apart"])
def test_distances_are_the_same_to_the_last_digit(
    native: Native, dtypes: tuple[str, str], scale: float
) -> None:
    """Counts around one and two rows of lanes, a block, and what is read at once."""
    for count in (1, 511, 513, 1024, 1537, BLOCK + 700, 4 * BLOCK + 1):
        before, after = drawn(dtypes[0], 1, count, 1.0), drawn(dtypes[1], 2, count, scale)
        assert natively(native, before, after, dtypes) == by_numpy(before, after, dtypes)


def test_the_same_elements_are_read_once(native: Native) -> None:
    data = drawn("BF16", 3, BLOCK + 5, 1.0)
    with files(data) as (file,):
        side = Range(file, 0, "BF16")
        assert native.distance(side, side, BLOCK + 5) == by_numpy(data, data, ("BF16", "BF16"))


@pytest.mark.parametrize("dtypes", PAIRS, ids="-".join)
@given(draw=st.data())
def test_any_patterns(native: Native, dtypes: tuple[str, str], draw: st.DataObject) -> None:
    """Subnormal, largest, of either sign; what is not finite is left to numpy."""
    count = draw.draw(st.integers(1, 20))
    sides = []
    for dtype in dtypes:
        size = count * WIDTHS[dtype]
        sides.append(draw.draw(st.binary(min_size=size, max_size=size)))
    with files(*sides) as (old, new):
        found = native.distance(Range(old, 0, dtypes[0]), Range(new, 0, dtypes[1]), count)
    if all(map(is_finite, sides, dtypes)):
        assert found == by_numpy(sides[0], sides[1], dtypes)
    else:
        assert found is None


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_every_pattern_of_two_bytes(native: Native, dtype: str) -> None:
    patterns = np.arange(1 << 16, dtype="<u2")
    exponent = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    finite = patterns[patterns & exponent != exponent]
    before, after = finite.tobytes(), finite[::-1].tobytes()
    dtypes = dtype, dtype
    assert natively(native, before, after, dtypes) == by_numpy(before, after, dtypes)
    for bad in patterns[patterns & exponent == exponent][::37]:
        with files(bad.tobytes(), b"\0\0") as (old, new):
            assert native.distance(Range(old, 0, dtype), Range(new, 0, dtype), 1) is None


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@given(data=st.binary(min_size=8, max_size=64), same=st.booleans())
def test_extents(native: Native, width: int, data: bytes, same: bool) -> None:
    data = data[: len(data) // 8 * 8]
    if same:
        data = data[:width] * (len(data) // width)
    values = np.frombuffer(data, f"<u{width}").tolist()
    with files(b"???" + data) as (file,):
        found = native.extent(file, 3, len(data), width)
    largest = max(value % (1 << 8 * width - 1) for value in values)
    assert found == (largest, values[0] if len({*values}) == 1 else None)


def test_the_extent_of_what_is_read_in_steps(native: Native) -> None:
    data = bytearray(3 << 20)
    for place in (0, 1 << 20, (3 << 20) - 2):
        data[place] = 7
        with files(bytes(data)) as (file,):
            assert native.extent(file, 0, len(data), 2) == (7, None)
        data[place] = 0


def test_what_cannot_be_read_is_left_to_those_who_say_why(native: Native, tmp_path: Path) -> None:
    with files(bytes(100)) as (file,):
        side = Range(file, 50, "F32")
        assert native.distance(side, side, 13) is None  # the file ends before
        assert native.extent(file, 50, 51, 1) is None
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            assert native.distance(side, Range(folder, 0, "F32"), 1) is None
            assert native.extent(folder, 0, 8, 8) is None
        finally:
            os.close(folder)


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 65536, 200_000, (3 << 20) - 1, None])
def test_which_ranges_differ(native: Native, place: int | None) -> None:
    data = np.random.default_rng(0).bytes(3 << 20)
    other = bytearray(data)
    for at in {place, (3 << 20) - 1} if place is not None else ():
        other[at] ^= 1
    stops = [0, 1, 4096, 70_000, 70_000, 1 << 20, 3 << 20]
    firsts = [0, *stops]
    expected = [
        index
        for index, (first, stop) in enumerate(zip(firsts, stops, strict=False))
        if data[first:stop] != other[first:stop]
    ]
    with files(b"?" + data, b"????" + other) as (old, new):
        sides = Range(old, 1, "U8"), Range(new, 4, "U8")
        assert native.differing(*sides, stops) == expected
        assert native.differing(*sides, []) == []
        assert native.differing(*sides, [0]) == []
        if place is None:
            assert native.differing(*sides, [*stops, (3 << 20) + 1]) is None
