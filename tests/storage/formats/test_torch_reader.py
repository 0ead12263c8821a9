"""Files of torch.save, read without torch: equal to torch's own loading, hostile ones refused."""

from __future__ import annotations

import collections
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import Runs
from tests.sources import read_torch
from vita_ckpt.errors import InputError, MalformedFileError, UnsafePickleError
from vita_ckpt.storage.formats.torch_writer import write_state_dict
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
FLOAT8 = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def content(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What we read: dtype, shape and contiguous bytes of every tensor."""
    opened = read_torch(str(path))
    with Inputs() as inputs:
        return {
            name: (ref.dtype, ref.shape, b"".join(tensor_bytes(ref, inputs, name)))
            for name, ref in opened.tensors.items()
        }


def by_torch(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    names = DTYPES | FLOAT8
    return {
        name: (
            names[tensor.dtype],
            tuple(tensor.shape),
            bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()),
        )
        for name, tensor in tensors.items()
    }


def samples() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(6, 8)
    tensors = {str(d): (torch.randn(3, 4) * 9).to(d) for d in DTYPES}
    tensors |= {
        "transposed": whole.t(),
        "slice": whole[1:5:2, 3:],
        "shared": whole[2],
        "whole": whole,
        "expanded": torch.randn(1, 3).expand(4, 3),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "one": torch.randn(1, 1, 5).transpose(0, 2),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    return tensors


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_dtype_and_view_equals_torch(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.bin"
    torch.save(samples(), path, _use_new_zipfile_serialization=zipped)
    assert content(path) == by_torch(samples())


def test_float8_has_no_storage_class_and_is_read_all_the_same(tmp_path: Path) -> None:
    tensors = {str(d): torch.randn(4, 4).to(d) for d in FLOAT8}
    path = tmp_path / "x.bin"
    torch.save(tensors, path)
    assert content(path) == by_torch(tensors)


@pytest.mark.parametrize("key", ["state_dict", "module", "model"])
def test_a_state_dict_one_level_down(tmp_path: Path, key: str) -> None:
    path = tmp_path / "x.pt"
    torch.save({"epoch": 3, "lr": 0.1, "tags": ["a", None, True], key: samples()}, path)
    assert content(path) == by_torch(samples())


def test_a_modules_state_dict_with_metadata(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
    path = tmp_path / "x.bin"
    torch.save(module.state_dict(), path)
    assert content(path) == by_torch(dict(module.state_dict()))


def test_a_legacy_file_with_other_storages(tmp_path: Path) -> None:
    """Storages of an optimizer stand between those of the state dict."""
    tensors = {"b": torch.randn(3), "c": torch.randn(2).half()}
    path = tmp_path / "x.pt"
    value = {"optimizer": {"m": torch.randn(5).double()}, "state_dict": tensors}
    torch.save(value, path, _use_new_zipfile_serialization=False)
    assert content(path) == by_torch(tensors)


def test_an_empty_state_dict_is_no_error_here(tmp_path: Path) -> None:
    path = tmp_path / "mm_projector.bin"
    torch.save({}, path)
    assert content(path) == {}


def test_parameter_subclass_attributes_and_ordered_dict_items(tmp_path: Path) -> None:
    tensor = torch.randn(3)
    tensor.note = "attribute"  # type: ignore[attr-defined]
    path = tmp_path / "x.bin"
    torch.save(collections.OrderedDict(a=tensor), path)
    assert content(path) == by_torch({"a": tensor})


HOSTILE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "os.system": ("posix.system", lambda canary: Runs(os.system, f"touch {canary}")),
    "eval": ("__builtin__.eval", lambda canary: Runs(eval, f"open({str(canary)!r}, 'w')")),
    "getattr": ("__builtin__.getattr", lambda _: Runs(getattr, "x", "upper")),
    "load": ("pickle.loads", lambda _: Runs(pickle.loads, b"N.")),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_by_name(tmp_path: Path, name: str, zipped: bool) -> None:
    canary = tmp_path / "executed"
    expected, make = HOSTILE[name]
    path = tmp_path / "x.bin"
    torch.save(
        {"a": torch.zeros(2), "b": make(canary)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UnsafePickleError) as error:
        read_torch(str(path))
    assert expected in str(error.value)
    assert not canary.exists()


def archive(path: Path, data_pkl: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", data_pkl)
        file.writestr("x/version", "3\n")
        for name, data in entries.items():
            file.writestr(f"x/{name.replace('__', '/')}", data)
    return path


@pytest.mark.parametrize(
    ("pickled", "word"),
    [
        (b"cos\nsystem\n(X\x02\x00\x00\x00lstR.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"(i__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02Pid\n.", "PERSID"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_opcodes_that_build_objects_are_refused(tmp_path: Path, pickled: bytes, word: str) -> None:
    path = archive(tmp_path / "x.bin", pickled)
    with pytest.raises(UnsafePickleError) as error:
        read_torch(str(path))
    assert word in str(error.value)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02h\x05.",
        b"\x80\x02}(X\x01\x00\x00\x00au.",
        b"\x80\x02](}}u.",
        b"\x80\x02}(}Nu.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"L" + b"9" * 50_000 + b"L\n.",
        b"S'" + b"a" * 100_000,
        b"\x80\x02K\x01Q.",
        b"(" * 1000 + b".",
        b"S'\\q'\n0",
        b"\x80\x04K\x01K\x02\x93.",
        b"\x80\x02(i__builtin__\nlist\n.",
        b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
        b"\x80\x02}K\x01R.",
        b"\x80\x02ctorch\nSize\nK\x01R.",
    ],
)
def test_malformed_pickles_are_named(tmp_path: Path, pickled: bytes) -> None:
    path = archive(tmp_path / "x.bin", pickled)
    with pytest.raises(MalformedFileError):
        read_torch(str(path))


def rebuilt(storage: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A pickle of one F32 tensor with any numbers."""
    out = io.BytesIO()

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", storage)
            return None

    hooks: Any = collections.OrderedDict()
    arguments = (Storage(), offset, shape, strides, False, hooks)
    call = Runs(torch._utils._rebuild_tensor_v2, *arguments)
    Pickler(out, 2).dump({"a": call})
    return out.getvalue()


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((4, 0, (4,), (1,)), None),
        ((4, 1, (4,), (1,)), "tensor-outside-storage"),
        ((4, 0, (2, 2), (3, 1)), "tensor-outside-storage"),
        ((5, 0, (4,), (1,)), "truncated-storage"),
        ((1 << 40, 0, (1 << 40,), (1,)), "truncated-storage"),
        ((4, -1, (4,), (1,)), "invalid-pickle"),
        ((4, 0, (4,), (-1,)), "invalid-pickle"),
        ((4, 0, (4,), (1, 1)), "invalid-pickle"),
        ((-4, 0, (4,), (1,)), "invalid-pickle"),
        ((4, 0, (1 << 62, 1 << 62), (0, 0)), "shape-overflow"),
        ((4, 9, (0,), (1,)), None),
    ],
)
def test_views_stay_inside_their_storage(
    tmp_path: Path, numbers: tuple[int, int, tuple[int, ...], tuple[int, ...]], code: str | None
) -> None:
    path = archive(tmp_path / "x.bin", rebuilt(*numbers), data__0=bytes(16))
    if code is None:
        assert read_torch(str(path)).tensors["a"].shape == numbers[2]
        return
    with pytest.raises(MalformedFileError) as error:
        read_torch(str(path))
    assert error.value.code == code


def test_a_view_that_would_fill_a_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(1).expand(10**6, 10**6), "b": torch.ones(3)}, path)
    with pytest.raises(MalformedFileError, match=r"expanded-tensor: .*x\.bin: expected"):
        read_torch(path)
    torch.save({"a": torch.ones(1).expand(1000, 1000)}, path)
    assert read_torch(path).tensors["a"].shape == (1000, 1000)


def test_other_zips(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    good = rebuilt(4, 0, (4,), (1,))
    cases: list[tuple[str, Callable[[], object]]] = [
        ("missing-storage", lambda: archive(path, good)),
        ("big-endian-file", lambda: archive(path, good, data__0=bytes(16), byteorder=b"big")),
        ("torchscript-archive", lambda: archive(path, good, **{"constants.pkl": b""})),
        ("not-a-state-dict", lambda: archive(path, b"\x80\x02].")),
        ("not-a-torch-file", lambda: path.write_bytes(b"\x89PNG....")),
        ("not-a-torch-file", lambda: path.write_bytes(pickle.dumps({"a": 1}, 2))),
        ("empty-file", lambda: path.write_bytes(b"")),
        ("invalid-zip", lambda: path.write_bytes(b"PK\x03\x04" + bytes(100))),
        ("git-lfs-pointer", lambda: path.write_text("version https://git-lfs.github.com/spec/v1")),
    ]
    for code, make in cases:
        make()
        with pytest.raises(InputError) as error:
            read_torch(str(path))
        assert error.value.code == code
        path.unlink()


def test_compressed_and_duplicate_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", rebuilt(4, 0, (4,), (1,)))
    with pytest.raises(MalformedFileError, match="compressed-zip-entry"):
        read_torch(str(path))
    archive(path, rebuilt(4, 0, (4,), (1,)), data__0=bytes(16))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data/0", bytes(16))
    with pytest.raises(MalformedFileError, match="duplicate-zip-entry"):
        read_torch(str(path))


def test_an_entry_that_calls_itself_a_directory_is_refused(tmp_path: Path) -> None:
    """torch takes its word for it, and gives what stood in memory for the values of the tensor."""
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", rebuilt(4, 0, (4,), (1,)))
        entry = zipfile.ZipInfo("x/data/0")
        entry.external_attr = 0x10
        file.writestr(entry, bytes(16))
    with pytest.raises(MalformedFileError, match=r"invalid-zip.*directory"):
        read_torch(str(path))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@given(
    cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4)
)
def test_damage_never_escapes_the_hierarchy(
    tmp_path: Path, zipped: bool, cut: float, flips: list[tuple[float, int]]
) -> None:
    buffer = io.BytesIO()
    torch.save(
        {"a": torch.ones(3), "b": torch.ones(2, 2).t()},
        buffer,
        _use_new_zipfile_serialization=zipped,
    )
    data = bytearray(buffer.getvalue())
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    path = tmp_path / "x.bin"
    path.write_bytes(data[: int(len(data) * cut) if not flips else len(data)])
    try:
        content(path)
    except InputError as error:
        assert "\n" not in str(error)


def test_what_we_write_torch_loads(tmp_path: Path) -> None:
    tensors = {n: t for n, t in samples().items() if t.dtype is not torch.complex64}
    expected = by_torch(tensors)
    entries = [(name, dtype, shape) for name, (dtype, shape, _) in expected.items()]
    path = tmp_path / "x.bin"

    def write(index: int, out: IO[bytes]) -> None:
        out.write(expected[entries[index][0]][2])

    with open(path, "wb") as handle:
        write_state_dict(handle, entries, write)
    loaded = torch.load(path, weights_only=True)
    assert by_torch(loaded) == expected
    assert content(path) == expected
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert by_torch(mapped) == expected
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    for ref in read_torch(str(path)).tensors.values():
        assert ref.offset % 64 == 0


def once(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


BIG = number((1 << 62) - 1)
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
)
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00"


@pytest.mark.parametrize(
    "pickled",
    [
        once(b"}X\x01\x00\x00\x00a" + TENSOR + (b"(" + BIG * 150_000 + b"t") * 2 + b"\x89NtRs"),
        once(
            b"("
            + b"K\x01" * 1_000_000
            + b"tr\x01\x00\x00\x00"
            + (TENSOR + b"h\x01h\x01\x89NtR") * 3000
        ),
        once(
            b"]("
            + b"(K\x01K\x02t" * 100_000
            + b"er\x01\x00\x00\x00"
            + b"ccollections\nOrderedDict\nh\x01\x85R" * 3000
        ),
        once(
            b"}("
            + b"".join(number(k * ((1 << 61) - 1) % (1 << 63)) + b"N" for k in range(60_000))
            + b"u"
        ),
    ],
    ids=["dimensions", "shared sizes", "shared items", "colliding keys"],
)
def test_small_pickles_that_build_much_are_refused_at_once(tmp_path: Path, pickled: bytes) -> None:
    path = archive(tmp_path / "x.bin", pickled, data__0=bytes(16))
    with pytest.raises(MalformedFileError, match="invalid-pickle"):
        read_torch(str(path))


def test_a_global_of_tuples_of_tuples_is_refused_at_once(tmp_path: Path) -> None:
    """Each of sixty lines names the last one twice: as text it would have 2^60 brackets."""
    pickled = once(b")r\x01\x00\x00\x00" + b"h\x01h\x01\x86r\x01\x00\x00\x00" * 60 + b"h\x01\x93")
    path = archive(tmp_path / "x.bin", pickled)
    with pytest.raises(MalformedFileError, match="invalid-pickle"):
        read_torch(str(path))


def test_a_directory_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    """The zip64 end record of a sparse file says that its directory takes gigabytes."""
    path = tmp_path / "x.bin"
    size, start = 8 << 30, 100
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + bytes(12)
    record += (1).to_bytes(8, "little") * 2 + (size - start).to_bytes(8, "little")
    record += start.to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + size.to_bytes(8, "little") + (1).to_bytes(4, "little")
    end = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        file.write(record + locator + end)
    with pytest.raises(MalformedFileError, match="invalid-zip"):
        read_torch(str(path))


def test_a_legacy_protocol_of_any_size_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path.write_bytes(magic + pickle.dumps(10**6000, 2) + pickle.dumps({}, 2))
    with pytest.raises(MalformedFileError, match="invalid-pickle"):
        read_torch(str(path))


def test_a_state_dict_beside_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    inner = {"a": torch.ones(2), "b": torch.zeros(3)}
    torch.save({"rng": torch.zeros(4), "state_dict": inner}, path)
    assert content(path) == by_torch(inner)
