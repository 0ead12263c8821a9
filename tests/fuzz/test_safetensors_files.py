"""Safetensors files: damaged ones, and headers that are nearly right, against the library."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz.conftest import Explore
from tests.fuzz.damage import NUMBERS, Step, damage, damaged, fragments
from tests.fuzz.files import rewrite
from tests.fuzz.sandbox import (
    Sandbox,
    believes_no_more_than_the_library,
    is_one_line,
    library_reads,
    survives,
)
from tests.sources import NEWEST_DTYPES, read_safetensors
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import InputError

SHARD = "model-00001-of-00002.safetensors"
PROJECTOR = "mm_projector.safetensors"

# What we refuse though the library reads it: a name twice, and ignored fields of 64 levels.
STRICTER = ("duplicate-key", "a field nested too deeply")


def agrees_with_the_library(path: Path) -> None:
    """Refused by both, or read by both as the same tensors."""
    theirs = library_reads(path)
    try:
        refs = read_safetensors(str(path)).tensors
    except InputError as error:
        assert is_one_line(str(error))
        assert theirs is None or error.code in STRICTER or error.got in STRICTER, error
    else:
        assert {n: (ref.dtype, ref.shape) for n, ref in refs.items()} == theirs
        assert all(ref.offset + ref.nbytes <= path.stat().st_size for ref in refs.values())


@st.composite
def nearly_valid(draw: DrawFn) -> bytes:
    """A file of a few tensors end to end, with a few things about it changed."""
    tensors: list[tuple[str, list[tuple[str, str]]]] = []
    position = 0
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "C64", *BITS]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        elements = 1
        for size in shape:
            elements *= size
        end = position + elements * BITS[dtype] // 8
        values = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        fields = [(key, json.dumps(value)) for key, value in values.items()]
        tensors.append((json.dumps("abcd"[number]), fields))
        position = end
    metadata = draw(st.sampled_from(['{"format": "pt"}', "{}", None, None]) | fragments)
    entries = [(name, _object(fields)) for name, fields in tensors]
    for _ in range(draw(st.integers(0, 3))):
        if not tensors:
            break
        at = draw(st.integers(0, len(tensors) - 1))
        name, fields = tensors[at]
        entries[at] = draw(_tweaked(name, list(fields)))
    if metadata is not None:
        entries.insert(draw(st.integers(0, len(entries))), ('"__metadata__"', metadata))
    blank = draw(st.sampled_from(["", " ", "\n\t", "\r\n"]))
    text = "{" + f",{blank}".join(f"{name}{blank}:{value}" for name, value in entries) + "}"
    header = (text + draw(st.sampled_from(["", " ", "   \n", "\0", "x", "}", "\ufeff"]))).encode(
        "utf-8", "surrogatepass"
    )
    length = draw(
        st.just(len(header))
        | st.sampled_from([len(header) + 1, len(header) - 1, len(header) + 8, *NUMBERS])
    )
    size = max(0, position + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 8])))
    return length.to_bytes(8, "little") + header + bytes(size)


@st.composite
def _tweaked(draw: DrawFn, name: str, fields: list[tuple[str, str]]) -> tuple[str, str]:
    what = draw(st.sampled_from(["field", "field", "drop", "more", "list", "name", "whole"]))
    at = draw(st.integers(0, 2))
    if what == "field":
        fields[at] = (fields[at][0], draw(fragments))
    elif what == "drop":
        del fields[at]
    elif what == "more":
        key = draw(st.sampled_from(['"x"', '"dtype"', '"\\ud800"', '"\\u0000"', '"é"']))
        fields.insert(at, (key.strip('"'), draw(fragments)))
    elif what == "list":
        return name, "[" + ",".join(value for _, value in fields) + "]"
    elif what == "name":
        text = draw(fragments)
        return text if text.startswith('"') else '"a"', _object(fields)
    else:
        return name, draw(fragments)
    return name, _object(fields)


def _object(fields: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'"{key}":{value}' for key, value in fields) + "}"


@NEWEST_DTYPES
def test_headers_that_are_nearly_right(explore: Explore, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def check(data: bytes) -> None:
        rewrite(path, data)
        agrees_with_the_library(path)

    explore(check, sample=60, data=nearly_valid())


def test_lone_files_that_are_nearly_right(explore: Explore, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"

    def check(data: bytes) -> None:
        rewrite(path, data)
        survives(path)

    explore(check, sample=15, data=nearly_valid())


def test_a_damaged_header(explore: Explore, vita: Sandbox) -> None:
    sound = vita.sound[SHARD]
    header = 8 + int.from_bytes(sound[:8], "little")

    def check(how: list[Step]) -> None:
        with vita.holding(SHARD, damaged(sound, how, header)) as root:
            agrees_with_the_library(root / SHARD)
            believes_no_more_than_the_library(root)
            survives(root)

    explore(check, sample=15, how=damage)


def test_a_damaged_file(explore: Explore, vita: Sandbox) -> None:
    def check(how: list[Step]) -> None:
        with vita.holding(SHARD, damaged(vita.sound[SHARD], how)) as root:
            believes_no_more_than_the_library(root)
            survives(root)

    explore(check, sample=8, how=damage)


def test_a_damaged_adapter(explore: Explore, adapter: Sandbox) -> None:
    def check(how: list[Step]) -> None:
        with adapter.holding(PROJECTOR, damaged(adapter.sound[PROJECTOR], how, 900)) as root:
            agrees_with_the_library(root / PROJECTOR)
            survives(root)
            survives(root / PROJECTOR)

    explore(check, sample=15, how=damage)


def test_fields_of_two_tensors_swapped(explore: Explore, vita: Sandbox) -> None:
    sound = vita.sound[SHARD]
    size = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + size])
    names = [name for name in header if name != "__metadata__"]
    keys = ("dtype", "shape", "data_offsets")

    def check(first: str, second: str, key: str) -> None:
        mixed = {name: dict(entry) for name, entry in header.items()}
        mixed[first][key], mixed[second][key] = mixed[second][key], mixed[first][key]
        raw = json.dumps(mixed).encode()
        data = len(raw).to_bytes(8, "little") + raw + sound[8 + size :]
        with vita.holding(SHARD, data) as root:
            agrees_with_the_library(root / SHARD)
            believes_no_more_than_the_library(root)

    name = st.sampled_from(names)
    explore(check, sample=15, first=name, second=name, key=st.sampled_from(keys))
