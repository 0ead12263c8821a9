"""The values check on files: what it finds, what it reads, what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fixtures.builder import Spec, write_checkpoint, write_safetensors
from tests.conftest import BASES, GOLDEN
from vita_ckpt import open_checkpoint
from vita_ckpt.api.validate import check_values

ONE = b"\0\0\x80\x3f"
PROJECTOR = "model.mm_projector.0.weight"
LARGE = 3 * (1 << 20) + 5  # elements of F32: 12 MB, some blocks


def spoiled(root: Path, name: str, change: Callable[[bytearray], None]) -> Path:
    """A sharded checkpoint, the bytes of one tensor changed; returns the file they are in."""
    write_checkpoint(root, Spec(audio=True), shards=3)
    index = json.loads((root / "model.safetensors.index.json").read_text())
    file = root / str(index["weight_map"][name])
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:start])[name]["data_offsets"]
    tensor = data[start + begin : start + end]
    change(tensor)
    data[start + begin : start + end] = tensor
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("case", BASES)
def test_goldens_are_sound(case: str) -> None:
    assert check_values(open_checkpoint(GOLDEN / case / "base")) == []


def test_a_small_checkpoint_is_sound(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c", Spec(audio=True), shards=3)
    assert check_values(open_checkpoint(tmp_path / "c")) == []


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (float("nan"), "value-nan"),
        (float("-inf"), "value-inf"),
        (70000.0, "value-float16-overflow"),
    ],
)
def test_one_element_is_found(tmp_path: Path, value: float, rule: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def change(data: bytearray) -> None:
        data[4 * 18 : 4 * 19] = bytes(torch.tensor([value]).view(torch.uint8).numpy())

    file = spoiled(tmp_path / "c", name, change)
    (finding,) = check_values(open_checkpoint(tmp_path / "c"))
    assert (finding.rule, finding.subject, finding.file) == (rule, name, str(file))
    assert "in 1 of 384 elements, the first at [1, 2]" in finding.message


@pytest.mark.parametrize(
    ("data", "rule"), [(b"\0\0\0\0", "value-all-zero"), (ONE, "value-constant")]
)
def test_a_dead_weight_is_found(tmp_path: Path, data: bytes, rule: str) -> None:
    def change(tensor: bytearray) -> None:
        tensor[:] = data * (len(tensor) // 4)

    spoiled(tmp_path / "c", PROJECTOR, change)
    checkpoint = open_checkpoint(tmp_path / "c")
    assert [finding.rule for finding in check_values(checkpoint)] == [rule]
    assert [finding.rule for finding in check_values(checkpoint, {PROJECTOR})] == [rule]
    assert check_values(checkpoint, {"model.mm_projector.2.weight", "not.there"}) == []


def test_only_what_is_selected_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c")
    checkpoint = open_checkpoint(tmp_path / "c")
    steps: list[int] = []
    names = {name for name in checkpoint.tensors if "mm_projector" in name}
    check_values(checkpoint, names, progress=steps.append)
    assert sum(steps) == sum(checkpoint.tensors[name].nbytes for name in names)


@pytest.mark.parametrize("at", [0, (1 << 19) - 1, 1 << 19, 1 << 20, LARGE - 1])
@pytest.mark.parametrize("padding", [0, 3])
def test_anywhere_in_a_large_tensor_whatever_its_offset(
    tmp_path: Path, at: int, padding: int
) -> None:
    def fill(_name: str, nbytes: int) -> Iterator[bytes]:
        yield ONE * at + b"\0\0\xc0\x7f" + ONE * (nbytes // 4 - at - 1)

    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"large": ("F32", (1, LARGE))}, fill)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = data[8:start] + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[start:])
    (finding,) = check_values(open_checkpoint(path))
    assert finding.rule == "value-nan"
    assert f"in 1 of {LARGE} elements, the first at [0, {at}]" in finding.message


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_constant_but_for_one_element_is_none(tmp_path: Path, where: str) -> None:
    def fill(_name: str, nbytes: int) -> Iterator[bytes]:
        one, rest = b"\0\0\0\x3f", ONE * (nbytes // 4 - 1)
        yield one + rest if where == "first" else rest + one

    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"large": ("F32", (1, LARGE))}, fill)
    assert check_values(open_checkpoint(path)) == []


def test_names_that_share_their_bytes_are_read_once_and_said_each(tmp_path: Path) -> None:
    weight = torch.randn(64, 32)
    weight[3, 5] = float("nan")
    path = tmp_path / "a.bin"
    torch.save({"embed": weight, "tied": weight, "turned": weight.T, "rest": weight[4:]}, path)
    steps: list[int] = []
    found = check_values(open_checkpoint(path), progress=steps.append)
    assert [(finding.subject, finding.message.rpartition(" at ")[2]) for finding in found] == [
        ("embed", "[3, 5]"),
        ("tied", "[3, 5]"),
        ("turned", "[5, 3]"),
    ]
    assert sum(steps) == weight.nbytes


def test_what_a_view_leaves_out_does_not_count(tmp_path: Path) -> None:
    weight = torch.full((6, 8), float("inf"))
    weight[:, :5] = torch.randn(6, 5)
    path = tmp_path / "a.bin"
    torch.save({"weight": weight[:, :5]}, path)
    assert check_values(open_checkpoint(path)) == []


def test_many_small_tensors(tmp_path: Path) -> None:
    shapes = {f"model.layers.{n}.w": ("BF16", (2, 3)) for n in range(20_000)}
    bad = "model.layers.17777.w"

    def fill(name: str, nbytes: int) -> Iterator[bytes]:
        yield b"\x80\x7f" * 6 if name == bad else b"\0\0\1\0\2\0\3\0\4\0\5\0"

    write_safetensors(tmp_path / "a.safetensors", shapes, fill)
    (finding,) = check_values(open_checkpoint(tmp_path / "a.safetensors"))
    assert (finding.rule, finding.subject) == ("value-inf", bad)


MEMORY = """
import re, sys
import numpy
from vita_ckpt import open_checkpoint
from vita_ckpt.api.validate import check_values

def memory(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

checkpoint = open_checkpoint(sys.argv[1])
before = memory("VmRSS")
print(len(check_values(checkpoint)), memory("VmHWM") - before)
"""


def test_memory_is_bounded_however_large_and_bad_the_tensors_are(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shapes = {"bad": ("BF16", (64, 1 << 20)), "dead": ("F32", (128, 1 << 20))}

    def fill(name: str, nbytes: int) -> Iterator[bytes]:
        for _ in range(nbytes >> 20):
            yield (b"\xff" if name == "bad" else b"\0") * (1 << 20)

    write_safetensors(path, shapes, fill)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True
    )
    findings, kilobytes = map(int, run.stdout.split())
    assert findings == 2
    assert kilobytes < 80_000


def test_memory_of_a_view_with_gaps_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"weight": torch.ones(24 << 20, dtype=torch.float8_e5m2)[::2]}, path)
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True
    )
    findings, kilobytes = map(int, run.stdout.split())
    assert findings == 0
    assert kilobytes < 80_000
