"""``validate`` and ``diff`` in two processes: the report of one, once, to the last digit."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.builder import write_safetensors
from tests.conftest import GOLDEN
from tests.launched import assert_alike

pytestmark = pytest.mark.torch

SHAPES = {f"model.layers.{n}.w": ("BF16", (900, 11_000)) for n in range(4)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, of several portions each, with a NaN; and a file that is none."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        shutil.copytree(GOLDEN / "A1" / "base", root / name)
        index = root / name / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(SHAPES, "more.safetensors")
        index.write_text(json.dumps(content))
        pool = bytearray(random.Random(seed).randbytes(1 << 20))
        pool[1::2] = bytes(byte & 0xBF for byte in pool[1::2])

        def fill(_name: str, nbytes: int, pool: bytes = bytes(pool)) -> Iterator[bytes]:
            yield (pool * (nbytes // len(pool) + 1))[: nbytes - 2] + b"\xc0\x7f"

        write_safetensors(root / name / "more.safetensors", SHAPES, fill)
    (root / "three").mkdir()
    (root / "three" / "config.json").write_text("{")
    return root


def test_values_and_digests(runs: Path) -> None:
    paths = [runs / "one", runs / "three", runs / "none", runs / "two"]
    out = assert_alike(2, "validate", *paths, "--values", "--deep", "--json")
    assert out.count("value-nan") >= 2


def test_distances(runs: Path) -> None:
    out = assert_alike(2, "diff", runs / "one", runs / "two", "--values", "--json", "--exit-code")
    changed = [tensor for tensor in json.loads(out)["tensors"] if tensor["name"] in SHAPES]
    assert len(changed) == len(SHAPES)
    assert all(tensor["values"]["relative_l2"] for tensor in changed)


def test_an_error_is_said_once(runs: Path) -> None:
    assert_alike(2, "diff", runs / "one", runs / "none")
