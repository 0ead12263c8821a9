"""Files of torch.save: hostile programs, damaged zips; nothing of them is ever executed."""

from __future__ import annotations

import collections
import io
import pickle
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from tests.fuzz import canary
from tests.fuzz.canary import nothing_runs
from tests.fuzz.conftest import Explore
from tests.fuzz.damage import NUMBERS, Step, damage, damaged
from tests.fuzz.files import rewrite, stored
from tests.fuzz.pickles import TRAPS, Edit, edited, edits, programs, state_dicts
from tests.fuzz.sandbox import Sandbox, is_one_line, survives
from tests.fuzz.torch_files import NOT_ADMITTED
from tests.sources import read_torch
from vita_ckpt.errors import InputError
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
_LEGACY_START = _MAGIC + pickle.dumps({"little_endian": True, "type_sizes": {}}, 2)


def read(path: Path) -> None:
    """Read a file: what is found lies in it, what is not is one line."""
    with nothing_runs():
        try:
            opened = read_torch(str(path))
        except InputError as error:
            assert is_one_line(str(error))
            return
    size = path.stat().st_size
    for ref in opened.tensors.values():
        assert not ref.nbytes or 0 <= ref.offset <= ref.offset + ref.span <= size
    agrees_with_torch(path)


def agrees_with_torch(path: Path) -> None:
    """What is read here is loaded by torch, if it admits the globals, and is the same there."""
    ours = {n: ref for n, ref in read_torch(str(path)).tensors.items() if ref.nbytes < 1 << 16}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # whatever torch says of such a file
        if any(reason in str(error) for reason in NOT_ADMITTED):
            return
        raise
    theirs = [level for level in dicts_in(loaded) if ours.keys() <= level.keys()]
    assert theirs
    with Inputs() as inputs:
        for name, ref in ours.items():
            values = [level[name] for level in theirs if isinstance(level[name], torch.Tensor)]
            data = b"".join(tensor_bytes(ref, inputs, name))
            assert any(
                tuple(value.shape) == ref.shape and plain(value) == data for value in values
            ), name


def dicts_in(value: Any) -> list[dict[Any, Any]]:
    """All dicts in what torch loaded, however deep in others and in sequences."""
    found, waiting, seen = [], [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or not isinstance(one, dict | list | tuple):
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            found.append(one)
        waiting += one.values() if isinstance(one, dict) else one
    return found


def plain(value: torch.Tensor) -> bytes:
    """The bytes of a tensor in C order, whatever its strides are."""
    whole = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    return bytes(whole.reshape(-1).view(torch.uint8).numpy())


def zipped(path: Path, program: bytes) -> Path:
    rest = {"x/version": b"3\n", "x/data/0": bytes(range(16)), "x/data/1": bytes(4)}
    rewrite(path, stored({"x/data.pkl": program, **rest}))
    return path


def legacy(path: Path, program: bytes) -> Path:
    keys = pickle.dumps(["0"], 2)
    rewrite(path, _LEGACY_START + program + keys + (4).to_bytes(8, "little") + bytes(16))
    return path


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_a_trap(trap: bytes) -> None:
    """Python's own unpickler walks into each: the tests below can fail."""
    with canary.registered(), suppress(AttributeError, TypeError):
        pickle.loads(b"\x80\x04" + trap + b".")
    assert canary.SPRUNG
    canary.SPRUNG.clear()
    with pytest.raises(AssertionError), nothing_runs():
        canary.spring()


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04}X\x01\x00\x00\x00a"])
def test_no_trap_springs(tmp_path: Path, trap: bytes, start: bytes) -> None:
    path = tmp_path / "x.bin"
    for write in (zipped, legacy, rewrite):
        write(path, start + trap + b"s.")
        with nothing_runs():
            try:
                assert not read_torch(str(path)).tensors
            except InputError as error:
                assert is_one_line(str(error))


@pytest.mark.parametrize("write", [zipped, legacy], ids=["zip", "legacy"])
def test_programs(explore: Explore, tmp_path: Path, write: Any) -> None:
    path = tmp_path / "x.bin"

    def check(program: bytes) -> None:
        read(write(path, b"\x80\x02" + program + b"."))

    explore(check, sample=25, program=programs)


@pytest.mark.parametrize("write", [zipped, legacy], ids=["zip", "legacy"])
def test_state_dicts(explore: Explore, tmp_path: Path, write: Any) -> None:
    path = tmp_path / "x.bin"

    def check(program: bytes) -> None:
        read(write(path, program))

    explore(check, sample=25, program=state_dicts())


def saved(zipped: bool) -> bytes:
    """What torch.save makes of every kind of thing that it may find in a state dict."""
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    value = collections.OrderedDict(
        a=whole,
        b=whole.t()[1:],
        c=torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        d=torch.zeros(0, 3),
        e=torch.tensor(3),
        model={"f": torch.ones(1).expand(5)},
        epoch=3,
        note=("x", None, 0.5, [True]),
    )
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def test_opcodes_of_a_real_pickle(explore: Explore, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(saved(True))) as file:
        entries = {info.filename: file.read(info) for info in file.infolist()}
    (program,) = (name for name in entries if name.endswith("data.pkl"))
    path = tmp_path / "x.bin"

    def check(how: list[Edit]) -> None:
        rewrite(path, stored({**entries, program: edited(entries[program], how)}))
        read(path)

    explore(check, sample=30, how=edits)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_damaged_files(explore: Explore, tmp_path: Path, is_zip: bool) -> None:
    sound, path = saved(is_zip), tmp_path / "x.bin"

    def check(how: list[Step]) -> None:
        rewrite(path, damaged(sound, how))
        read(path)

    explore(check, sample=30, how=damage)


# Where the fields of a zip's records stand: the record, the offset in it, and the width.
FIELDS = [
    *((b"PK\x03\x04", at, 2) for at in (4, 6, 8, 26, 28)),
    *((b"PK\x03\x04", at, 4) for at in (14, 18, 22)),
    *((b"PK\x01\x02", at, 2) for at in (4, 6, 8, 10, 28, 30, 32, 34)),
    *((b"PK\x01\x02", at, 4) for at in (16, 20, 24, 38, 42)),
    *((b"PK\x05\x06", at, 2) for at in (4, 6, 8, 10, 20)),
    *((b"PK\x05\x06", at, 4) for at in (12, 16)),
    *((b"PK\x06\x06", at, 8) for at in (4, 24, 32, 40, 48)),
    *((b"PK\x06\x07", at, 8) for at in (4, 8)),
]


def test_records_of_a_zip_that_lie(explore: Explore, tmp_path: Path) -> None:
    sound, path = saved(True), tmp_path / "x.bin"
    assert all(record in sound for record, _, _ in FIELDS)

    def check(lies: list[tuple[tuple[bytes, int, int], int, int]], how: list[Step]) -> None:
        content = bytearray(sound)
        for (record, at, width), which, value in lies:
            starts = [i for i in range(len(content)) if content.startswith(record, i)]
            if starts:
                place = starts[which % len(starts)] + at
                new = (value % (1 << 8 * width)).to_bytes(width, "little")
                content[place : place + width] = new
        rewrite(path, damaged(bytes(content), how))
        read(path)

    lie = st.tuples(
        st.sampled_from(FIELDS),
        st.integers(0, 20),
        st.sampled_from(NUMBERS) | st.integers(0, 8192),
    )
    explore(
        check,
        sample=40,
        lies=st.lists(lie, min_size=1, max_size=3),
        how=st.just([]) | damage,
    )


@pytest.mark.parametrize("number", [1, 2])
def test_damaged_shards_of_a_checkpoint(explore: Explore, bins: Sandbox, number: int) -> None:
    name = f"pytorch_model-{number:05}-of-00002.bin"

    def check(how: list[Step]) -> None:
        with nothing_runs(), bins.holding(name, damaged(bins.sound[name], how)) as root:
            survives(root)

    explore(check, sample=5, how=damage)


def test_lone_state_dicts(explore: Explore, tmp_path: Path) -> None:
    path = tmp_path / "mm_projector.bin"

    def check(program: bytes) -> None:
        program = program.replace(
            b"X\x01\x00\x00\x00a", b"X\x16\x00\x00\x00model.mm_projector.bias"
        )
        zipped(path, program)
        with nothing_runs():
            survives(path)

    explore(check, sample=15, program=state_dicts())
