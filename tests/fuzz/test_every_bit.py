"""Every bit of a small file of torch.save flipped: what torch refuses is refused here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.files import rewrite
from tests.fuzz.torch_files import NOT_ADMITTED, saved, why_not
from tests.sources import read_torch
from vita_ckpt.errors import InputError

# In a sample every so many bits are flipped, a number that meets all bits of a byte.
_STEP = 29


def why_of_globals(why: str) -> bool:
    """Whether torch refuses a file for what it names only."""
    return any(words in why for words in NOT_ADMITTED)


def here(path: Path) -> bool:
    """Whether a file is read here."""
    try:
        read_torch(path)
    except InputError:
        return False
    return True


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
        rewrite(path, data)
        # A global that torch does not admit is a record here, and the tensors beside it are read.
        if here(path) and (why := why_not(bytes(data))) and not why_of_globals(why):
            wrong[bit] = why
    assert not wrong


@pytest.mark.parametrize("kind", ["zip", "zip without checksums", "legacy"])
def test_no_shorter_file_is_read_that_torch_refuses(tmp_path: Path, kind: str) -> None:
    sound, path = saved(kind), tmp_path / "x.bin"
    for size in range(0, len(sound), 7):
        rewrite(path, sound[:size])
        assert not here(path) or not why_not(sound[:size])
