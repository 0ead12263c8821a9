"""Files with a few bytes changed, most of them in what describes the tensors: many, and fast.

Of a file that the library refuses nothing is read here. What picks the changes is a generator with
a seed of its own, so that a hundred thousand of them take minutes.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tests.fuzz import canary
from tests.fuzz.damage import NUMBERS
from tests.fuzz.files import rewrite, stored
from tests.fuzz.sandbox import is_one_line
from tests.fuzz.torch_files import NOT_ADMITTED, saved, why_not
from tests.sources import read_objects, read_safetensors, read_torch
from vita_ckpt.errors import InputError

LONG = int(os.environ.get("FUZZ_MUTANTS", "100000"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
# What one file of a few kilobytes may cost on a busy machine.
_SECONDS = 10
_KILOBYTES = 512 << 10
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
        rewrite(path, data)
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


def with_objects() -> bytes:
    """A pickle of what trainers save: tensors, state dicts in others, objects of many kinds."""
    tensors = {"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(3).half())}
    value = {
        "model": OrderedDict(tensors),
        "ema": [tensors, {"s": torch.ones(2, 2).to_sparse()}],
        "args": argparse.Namespace(lr=0.1, names={"x"}, path=PurePosixPath("a/b")),
        "rng": [np.arange(9), np.float32(2)],
        "counts": (Counter("aab"), defaultdict(list, x=[1]), deque([1, 2]), 1j, b"ab"),
        "device": (torch.device("cuda", 1), torch.Size([2]), torch.strided, torch.bfloat16),
    }
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as file:
        return next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))


@how_many
def test_pickles_with_objects(tmp_path: Path, count: int) -> None:
    """Whatever a pickle says: nothing of it runs, and what it holds or why not is told in time."""
    sound, draw, path = with_objects(), random.Random(SEED), tmp_path / "x.bin"
    places = [*range(len(sound))]
    # A trap in every place where a global is named.
    named = [i for i in range(len(sound)) if sound[i : i + 1] == b"c" and sound[i - 1 : i] != b"s"]
    traps = [f"c{canary.__name__}\nspring\n".encode(), b"cos\nsystem\n", b"cbuiltins\neval\n"]
    rest = {"x/version": b"3\n", **{f"x/data/{storage}": bytes(64) for storage in range(8)}}
    slowest, memory, outcomes = 0.0, peak(), Counter[str]()
    with canary.nothing_runs():
        for number in range(count):
            data = bytearray(mutant(sound, places, draw))
            if draw.random() < 0.3:
                at = draw.choice(named)
                data[at : data.find(b"\n", data.find(b"\n", at) + 1) + 1] = draw.choice(traps)
            rewrite(path, stored({"x/data.pkl": bytes(data), **rest}))
            start = time.monotonic()
            try:
                (read_torch, read_objects)[number % 2](path)
                outcomes["read"] += 1
            except InputError as error:
                assert is_one_line(str(error))
                outcomes[error.code] += 1
            slowest = max(slowest, time.monotonic() - start)
            assert not canary.SPRUNG, bytes(data)
    assert {"read", "unsafe-pickle", "invalid-pickle"} <= outcomes.keys()
    assert slowest < _SECONDS
    assert peak() - memory < _KILOBYTES


def peak() -> int:
    """The most memory of this process so far, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@how_many
def test_safetensors(tmp_path: Path, count: int) -> None:
    tensors = OrderedDict(a=torch.ones(2, 3), b=torch.ones(3).half(), c=torch.tensor(3))
    sound = save(tensors, {"format": "pt"})
    header = 8 + int.from_bytes(sound[:8], "little")
    other = tmp_path / "other.safetensors"

    def why(data: bytes) -> str:
        rewrite(other, data)
        try:
            with safe_open(other, "pt"):
                return ""
        except (SafetensorError, OSError) as error:
            return str(error)

    wrong = refused_elsewhere(
        tmp_path / "x.safetensors", sound, [*range(header)], count, read_safetensors, why
    )
    assert not wrong
