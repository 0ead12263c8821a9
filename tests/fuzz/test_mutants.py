"""Files with a few bytes changed, most of them in what describes the tensors: many, and fast.

Of a file that the library refuses nothing is read here. What picks the changes is a generator with
a seed of its own, so that a hundred thousand of them take minutes.
"""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tests.fuzz.damage import NUMBERS
from tests.fuzz.torch_files import NOT_ADMITTED, saved, why_not
from tests.sources import read_safetensors, read_torch
from vita_ckpt.errors import InputError

LONG = int(os.environ.get("FUZZ_MUTANTS", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
how_many = pytest.mark.parametrize("count", [150, pytest.param(LONG, marks=pytest.mark.torture)])


def mutant(sound: bytes, places: list[int], draw: random.Random) -> bytes:
    """``sound`` with one to three things changed, nine in ten of them at one of ``places``."""
    data = bytearray(sound)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.choice(places) if draw.random() < 0.9 else draw.randrange(len(sound))
        at = min(at, len(data) - 1)
        what = draw.randrange(8)
        if what < 3:
            data[at] ^= 1 << draw.randrange(8)
        elif what == 3:
            data[at] = draw.randrange(256)
        elif what == 4:
            width = draw.choice((2, 4, 8))
            number = draw.choice(NUMBERS) % (1 << 8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
        elif what == 5:
            other, size = draw.choice(places), draw.choice((1, 2, 4, 8, 30, 46))
            data[at : at + size] = data[other : other + size]
        elif what == 6:
            del data[at : at + draw.choice((1, 2, 4, 16))]
        else:
            data[at:at] = data[at : at + draw.choice((1, 2, 4, 30, 46))]
        if not data:
            return b""
    return bytes(data)


def refused_elsewhere(
    path: Path,
    sound: bytes,
    places: list[int],
    count: int,
    read: Callable[[Path], object],
    why: Callable[[bytes], str],
) -> dict[bytes, str]:
    """The mutants that are read here, and why the library refuses them."""
    draw = random.Random(SEED)
    wrong: dict[bytes, str] = {}
    for _ in range(count):
        data = mutant(sound, places, draw)
        path.write_bytes(data)
        try:
            read(path)
        except InputError:
            continue
        if reason := why(data):
            wrong[data] = reason
    return wrong


@how_many
@pytest.mark.parametrize("kind", ["zip", "zip without checksums", "legacy"])
def test_files_of_torch(tmp_path: Path, kind: str, count: int) -> None:
    sound = saved(kind)
    # The padding is made of Zs.
    places = [i for i in range(len(sound)) if sound[i : i + 3] != b"ZZZ"]

    def why(data: bytes) -> str:
        reason = why_not(data)
        return "" if any(words in reason for words in NOT_ADMITTED) else reason

    assert not refused_elsewhere(tmp_path / "x.bin", sound, places, count, read_torch, why)


@how_many
def test_safetensors(tmp_path: Path, count: int) -> None:
    tensors = OrderedDict(a=torch.ones(2, 3), b=torch.ones(3).half(), c=torch.tensor(3))
    sound = save(tensors, {"format": "pt"})
    header = 8 + int.from_bytes(sound[:8], "little")
    other = tmp_path / "other.safetensors"

    def why(data: bytes) -> str:
        other.write_bytes(data)
        try:
            with safe_open(other, "pt"):
                return ""
        except (SafetensorError, OSError) as error:
            return str(error)

    wrong = refused_elsewhere(
        tmp_path / "x.safetensors", sound, [*range(header)], count, read_safetensors, why
    )
    assert not wrong
