"""Every bit of a small file of torch.save flipped: what torch refuses is refused here."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.sources import read_torch
from vita_ckpt.errors import InputError

# In a sample every so many bits are flipped, a number that meets all bits of a byte.
_STEP = 29


def saved(kind: str) -> bytes:
    """A file with a view, a parameter, two dtypes and a scalar; ``kind`` is how it is written."""
    whole = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    value = OrderedDict(
        a=whole, b=whole.t()[1:], c=torch.nn.Parameter(torch.ones(2).half()), d=torch.tensor(3)
    )
    buffer = io.BytesIO()
    sums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(kind != "zip without checksums")
    try:
        torch.save(value, buffer, _use_new_zipfile_serialization=kind != "legacy")
    finally:
        torch.serialization.set_crc32_options(sums)
    return buffer.getvalue()


def here(path: Path) -> bool:
    """Whether a file is read here."""
    try:
        read_torch(path)
    except InputError:
        return False
    return True


def why_not(data: bytes) -> str:
    """Why torch refuses a file; empty if it does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 - whatever torch raises
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("step", [_STEP, pytest.param(1, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", ["zip", "zip without checksums", "legacy"])
def test_no_flipped_bit_is_read_that_torch_refuses(tmp_path: Path, kind: str, step: int) -> None:
    sound, path = saved(kind), tmp_path / "x.bin"
    path.write_bytes(sound)
    assert here(path)
    assert not why_not(sound)
    wrong = {}
    for bit in range(0, 8 * len(sound), step):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        if here(path) and (why := why_not(bytes(data))):
            wrong[bit] = why
    assert not wrong


@pytest.mark.parametrize("kind", ["zip", "zip without checksums", "legacy"])
def test_no_shorter_file_is_read_that_torch_refuses(tmp_path: Path, kind: str) -> None:
    sound, path = saved(kind), tmp_path / "x.bin"
    for size in range(0, len(sound), 7):
        path.write_bytes(sound[:size])
        assert not here(path) or not why_not(sound[:size])
