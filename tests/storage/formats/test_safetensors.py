"""Every rule of the safetensors format, against the library's own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from tests.sources import NEWEST_DTYPES, read_safetensors
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.safetensors import encode_header

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

# The same name twice: the format forbids it, the library takes the last.
TWICE = json.dumps({"a": ENTRY})[:-1] + ", " + json.dumps({"a": ENTRY})[1:]


def write(path: Path, header: str | bytes, data: bytes = b"", length: int | None = None) -> Path:
    raw = header.encode() if isinstance(header, str) else header
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(**changes: Any) -> str:
    return json.dumps({"a": ENTRY | changes})


def library_reads(path: Path) -> set[str] | None:
    try:
        with safe_open(path, "np") as file:
            return set(file.keys())
    except (SafetensorError, OSError):
        return None


# (code, header, data): each breaks one rule.
BROKEN = [
    ("invalid-header-utf8", b'{"\xff":1}', b""),
    ("invalid-header-start", "[]", b""),
    ("invalid-header-start", "", b""),
    ("invalid-header-json", '{"a":', b""),
    ("invalid-header-json", "{} x", b""),
    ("invalid-header-json", '{"a":NaN}', b""),
    ("invalid-header-json", '{"a\n":' + json.dumps(ENTRY) + "}", bytes(4)),
    ("invalid-header-json", '{"a":' + "[" * 100_000, b""),
    ("duplicate-key", TWICE, bytes(4)),
    (
        "duplicate-key",
        '{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    ("invalid-metadata", '{"__metadata__":{"a":1}}', b""),
    ("invalid-metadata", '{"__metadata__":[]}', b""),
    ("invalid-tensor-entry", '{"a":3}', b""),
    ("invalid-tensor-entry", '{"a":{"dtype":"F32","shape":[1]}}', b""),
    ("invalid-tensor-entry", entry(extra=json.loads("[" * 200 + "]" * 200)), bytes(4)),
    ("invalid-tensor-entry", entry()[:-2] + ', "x": 1e999}}', bytes(4)),
    ("invalid-tensor-entry", entry()[:-2] + f', "x": {"9" * 5000}}}}}', bytes(4)),
    ("invalid-header-utf8", entry(x=["\ud800"]), bytes(4)),
    ("invalid-header-utf8", entry(**{"\ud800": 1}), bytes(4)),
    ("unknown-dtype", entry(dtype="f32"), bytes(4)),
    ("unknown-dtype", entry(dtype=["F32"]), bytes(4)),
    ("invalid-shape", entry(shape=[-1]), bytes(4)),
    ("invalid-shape", entry(shape=[1.0]), bytes(4)),
    ("invalid-shape", entry(shape=[True]), bytes(4)),
    ("invalid-shape", entry(shape=1), bytes(4)),
    ("invalid-shape", entry(shape=[1 << 64]), bytes(4)),
    ("invalid-offsets", entry(data_offsets=[4, 0]), bytes(4)),
    ("invalid-offsets", entry(data_offsets=[0, 4, 8]), bytes(4)),
    ("invalid-offsets", entry(data_offsets=[0]), bytes(4)),
    ("invalid-offsets", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', bytes(4)),
    ("shape-overflow", entry(shape=[1 << 63, 4, 0], data_offsets=[0, 0]), b""),
    ("misaligned-tensor", entry(dtype="F4", shape=[3], data_offsets=[0, 1]), bytes(1)),
    ("tensor-size-mismatch", entry(shape=[2]), bytes(4)),
    ("overlapping-tensors", json.dumps({"a": ENTRY, "b": ENTRY}), bytes(4)),
    ("hole-in-data", entry(data_offsets=[4, 8]), bytes(8)),
    ("truncated-file", entry(), bytes(3)),
    ("trailing-bytes", entry(), bytes(5)),
    ("invalid-header-utf8", json.dumps({"\ud800": ENTRY}), bytes(4)),
]


@pytest.mark.parametrize(("code", "header", "data"), BROKEN, ids=lambda v: str(v)[:40])
def test_each_broken_rule_has_its_code(
    tmp_path: Path, code: str, header: str | bytes, data: bytes
) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    with pytest.raises(MalformedFileError) as error:
        read_safetensors(str(path))
    assert error.value.code == code
    assert str(path) in str(error.value)
    if header != TWICE:
        assert library_reads(path) is None


@pytest.mark.parametrize("size", [0, 7])
def test_too_short_for_a_length(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(size))
    with pytest.raises(MalformedFileError, match="header-too-small"):
        read_safetensors(str(path))


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (100_000_001, "header-too-large"),
        ((1 << 64) - 1, "header-too-large"),
        (3, "invalid-header-length"),
    ],
)
def test_length_is_never_trusted(tmp_path: Path, length: int, code: str) -> None:
    path = write(tmp_path / "x.safetensors", "{}", length=length)
    with pytest.raises(MalformedFileError) as error:
        read_safetensors(str(path))
    assert error.value.code == code
    assert library_reads(path) is None


LEGAL = [
    ("{}", b""),
    ('{"__metadata__":null}', b""),
    ('{"__metadata__":{"format":"pt"}}', b""),
    (entry(shape=[]), bytes(4)),
    (entry(shape=[0], data_offsets=[0, 0]), b""),
    (entry(), bytes(4)),
    (entry() + " \n\t ", bytes(4)),
    (entry(note="fields that the format does not know"), bytes(4)),
    ('{"a":["F32",[1],[0,4]]}', bytes(4)),
    (f'{{"a\\u0000\\n\U0001f600":{json.dumps(ENTRY)}}}', bytes(4)),
    (f'{{"":{json.dumps(ENTRY)}}}', bytes(4)),
    *(
        pytest.param(header, data, marks=NEWEST_DTYPES)
        for header, data in (
            (entry(dtype="F4", shape=[8]), bytes(4)),
            (entry(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3]), bytes(3)),
        )
    ),
]


@pytest.mark.parametrize(("header", "data"), LEGAL, ids=lambda v: str(v)[:40])
def test_legal_headers_are_read_as_the_library_does(
    tmp_path: Path, header: str, data: bytes
) -> None:
    path = write(tmp_path / "x.safetensors", header, data)
    assert set(read_safetensors(str(path)).tensors) == library_reads(path)


def test_a_name_twice_is_refused_though_the_library_reads_it(tmp_path: Path) -> None:
    """The format: "Duplicate keys are disallowed. Not all parsers may respect this"."""
    path = write(tmp_path / "x.safetensors", TWICE, bytes(4))
    assert library_reads(path) == {"a"}
    with pytest.raises(MalformedFileError, match="duplicate-key"):
        read_safetensors(str(path))


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match="git-lfs-pointer"):
        read_safetensors(str(path))


@NEWEST_DTYPES
def test_every_dtype_of_the_format_is_known(tmp_path: Path) -> None:
    for dtype, bits in BITS.items():
        header = entry(dtype=dtype, shape=[4], data_offsets=[0, bits * 4 // 8])
        path = write(tmp_path / "x.safetensors", header, bytes(bits * 4 // 8))
        assert library_reads(path) == {"a"}, dtype
        assert read_safetensors(str(path)).tensors["a"].dtype == dtype


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 1 << 65)
    | st.floats(allow_nan=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "f32"]) | json_values,
        "shape": st.lists(st.integers(0, 3), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2) | json_values,
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__", "ü", "\n"]), entries | json_values, max_size=4
)


@given(header=headers, size=st.integers(0, 64))
def test_never_accepts_what_the_library_refuses(
    tmp_path: Path, header: dict[str, Any], size: int
) -> None:
    path = write(tmp_path / "x.safetensors", json.dumps(header), bytes(size))
    theirs = library_reads(path)
    try:
        ours = read_safetensors(str(path))
    except MalformedFileError:
        assert theirs is None
    else:
        assert set(ours.tensors) == theirs


shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(
    tensors=st.dictionaries(
        st.text(max_size=5).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "BF16", "U8"]), shapes),
        max_size=5,
    ),
    metadata=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)
def test_what_is_encoded_is_read_back(
    tmp_path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    described = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header, size = encode_header(described, metadata)
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(size))
    assert len(header) % 8 == 0
    opened = read_safetensors(str(path))
    assert {n: (t.dtype, t.shape) for n, t in opened.tensors.items()} == tensors
    assert opened.metadata == metadata
    assert library_reads(path) == set(tensors)


PLAIN = encode_header(
    [("model.a", "F32", (1, 2)), ("b-1", "BF16", (4,)), ("c", "F32", (1, 2))], {"format": "pt"}
)[0][8:]
PIECES = [
    b"-0",
    b"0",
    b"[",
    b"]",
    b"{}",
    b"1.0",
    b"1e0",
    b"true",
    b"false",
    b"null",
    b"\\u0061",
    b'"b-1"',
    b'"__metadata__"',
]


@given(
    at=st.integers(0, len(PLAIN)),
    cut=st.integers(0, 12),
    put=st.one_of(st.binary(max_size=3), st.sampled_from([*PIECES, *PLAIN.split(b",")])),
)
def test_a_plain_header_is_read_by_the_same_rules(
    tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: bytes
) -> None:
    """What the fast way takes, the whole rules take too, and read the same."""
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    write(path, PLAIN[:at] + put + PLAIN[at + cut :], bytes(24))

    def outcome() -> object:
        try:
            found = read_safetensors(path)
        except MalformedFileError as error:
            return str(error)
        return found.tensors, found.metadata

    with pytest.MonkeyPatch.context() as patch:
        first = outcome()
        patch.setattr("vita_ckpt.storage.formats.safetensors._read_plain", lambda *_: None)
        assert outcome() == first
