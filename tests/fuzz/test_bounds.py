"""What hostile files may cost: small ones next to nothing, large ones what they are worth."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.builder import Spec, checkpoint_shapes, write_checkpoint
from tests.fuzz.pickles import named, number, short, tensor, text
from tests.fuzz.readers import read

Make = Callable[[Path], Path]


def safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> Make:
    raw = header.encode() if isinstance(header, str) else header
    size = len(raw) if length is None else length

    def make(root: Path) -> Path:
        path = root / "model.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + raw + data)
        return path

    return make


def zipped(program: bytes, **entries: bytes) -> Make:
    def make(root: Path) -> Path:
        path = root / "mm_projector.bin"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            file.writestr("x/data.pkl", b"\x80\x04" + program + b".")
            for name, data in ({"0": bytes(16)} | entries).items():
                file.writestr(f"x/data/{name}", data)
        return path

    return make


def raw(name: str, data: bytes) -> Make:
    def make(root: Path) -> Path:
        path = root / name
        path.write_bytes(data)
        return path

    return make


def config(text: str, name: str = "config.json") -> Make:
    """A small checkpoint with a hostile file."""

    def make(root: Path) -> Path:
        path = write_checkpoint(root / "c", shards=2)
        good = json.loads((path / name).read_text()) if (path / name).exists() else {}
        rest = json.dumps(good)[1:-1]
        (path / name).write_text("{" + rest + (", " if rest else "") + text + "}")
        return path

    return make


def deflated(root: Path) -> Path:
    """A zip of a few kilobytes that would become megabytes."""
    path = root / "mm_projector.bin"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("x/data.pkl", "w") as entry,
    ):
        for _ in range(8):
            entry.write(bytes(1 << 20))
    return path


def poked(record: bytes, *lies: tuple[int, int, int], program: bytes = b"}") -> Make:
    """A zip whose last such record says what is not."""

    def make(root: Path) -> Path:
        path = zipped(program)(root)
        content = bytearray(path.read_bytes())
        start = content.rindex(record)
        for at, width, value in lies:
            content[start + at : start + at + width] = value.to_bytes(width, "little")
        path.write_bytes(content)
        return path

    return make


def overlapping(root: Path) -> Path:
    """Hundreds of entries, all of them the same bytes."""
    path = root / "mm_projector.bin"
    body = b"\x80\x04}" + text("model.mm_projector.weight") + b"Ns."
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, len(body), len(body), 1, 0)
    central = b"".join(
        struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, len(body), len(body),
            len(name), 0, 0, 0, 0, 0, 0,
        ) + name
        for name in (b"x/data.pkl", *(b"x/data/%d" % n for n in range(500)))
    )  # fmt: skip
    start = len(local) + 1 + len(body)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 501, 501, len(central), start, 0)
    path.write_bytes(local + b"x" + body + central + end)
    return path


def zip64(root: Path) -> Path:
    """An end record that asks for what its zip64 twin says: a directory of 2^62 bytes."""
    path = zipped(b"}")(root)
    content = path.read_bytes()
    at = content.rindex(b"PK\x05\x06")
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 9, 9, 1 << 62, 1 << 62)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, at, 1)
    lie = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, *[0xFFFFFFFF] * 2, 0)
    path.write_bytes(content[:at] + record + locator + lie)
    return path


def legacy(storages: int, size: int) -> Make:
    """A legacy file that lists one storage again and again."""
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    start += pickle.dumps({"little_endian": True}, 2)
    program = b"\x80\x02}" + text("a") + tensor("0", 4, 0, (4,), (1,)) + b"s."
    keys = b"\x80\x02](" + text("0") + b"q\x00" + b"h\x00" * storages + b"e."
    return raw("mm_projector.bin", start + program + keys + struct.pack("<Q", size) + bytes(16))


def long_name(root: Path) -> Path:
    """A checkpoint with a tensor whose name has thousands of components."""
    name = ".".join("a" * 5000)
    return write_checkpoint(root / "c", only={**checkpoint_shapes(Spec()), name: (1,)})


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
INTERNVIT = "model.vision_tower.vision_tower."
DOUBLED = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60


def described(*tensors: tuple[str, list[int]]) -> Make:
    """A safetensors file of tensors of no bytes at all, but of large sizes."""
    entries = (f'"{n}":{{"dtype":"U8","shape":{s},"data_offsets":[0,0]}}' for n, s in tensors)
    return safetensors("{" + ",".join(entries) + "}")


CASES: dict[str, Make] = {
    "a header of 2^63": safetensors("{}", length=(1 << 63) - 8),
    "a header of all there is": safetensors("{}", length=(1 << 64) - 1),
    "a header of 100 MB": safetensors("{}", length=100_000_000),
    "lists of lists": safetensors('{"a":' + "[" * 8000),
    "objects of objects": safetensors('{"a":' * 8000),
    "an ignored field of lists": safetensors(
        f'{{"a":{ENTRY[:-1]},"x":{"[" * 60}{"]" * 60}}}}}', bytes(4)
    ),
    "a size of 5000 digits": safetensors(
        ENTRY.join(['{"a":', "}"]).replace("[1]", f"[{'9' * 5000}]")
    ),
    "a float of 8000 digits": safetensors(
        ENTRY.join(['{"a":', "}"]).replace("[1]", f"[0.{'9' * 8000}]")
    ),
    "NaN and Infinity": safetensors('{"a":[NaN,Infinity,-Infinity]}'),
    "keys twice": safetensors("{" + ",".join([f'"a":{ENTRY}'] * 100) + "}", bytes(4)),
    "lone surrogates": safetensors(f'{{"\\ud800":{ENTRY}}}', bytes(4)),
    "a long name": safetensors(f'{{"{"a." * 4000}":{ENTRY}}}', bytes(4)),
    "a long name beside others": long_name,
    "a name of layers": safetensors(f'{{"model.layers.{"9" * 4000}.x":{ENTRY}}}', bytes(4)),
    "sizes of nothing": safetensors(
        '{"a":{"dtype":"U8","shape":[' + "0," * 3000 + '0],"data_offsets":[0,0]}}'
    ),
    "a tower of a million layers": described(
        (f"{INTERNVIT}embeddings.patch_embedding.weight", [8, 3, 0, 2]),
        (f"{INTERNVIT}embeddings.position_embedding", [1, 17, 0]),
        (f"{INTERNVIT}encoder.layers.0.attn.qkv.weight", [24, 0]),
        (f"{INTERNVIT}encoder.layers.999999.ls1", [0]),
    ),
    "a projector of thousands of layers": described(
        *((f"model.mm_projector.{2 * n}.weight", [0, 1 << 40]) for n in range(150)),
    ),
    "a text of gigabytes": zipped(b"X\xff\xff\xff\xff"),
    "bytes of exabytes": zipped(b"\x8e" + b"\xff" * 7 + b"\x7f"),
    "a frame of exabytes": zipped(b"\x95" + b"\xff" * 7 + b"\x7f"),
    "a number of gigabytes": zipped(b"\x8b\xff\xff\xff\x7f"),
    "a number of 5000 digits": zipped(b"L" + b"9" * 5000 + b"L\n"),
    "a memo of two billion": zipped(b"Nr\xff\xff\xff\x7f"),
    "doubled tuples": zipped(DOUBLED),
    "doubled tuples as a global": zipped(DOUBLED + b"h\x00\x93"),
    "doubled tuples as a key": zipped(b"}" + DOUBLED + b"Ns"),
    "doubled tuples as an id": zipped(DOUBLED + b"Q"),
    "doubled tuples as hooks": zipped(
        DOUBLED + b"}" + text("a") + tensor("0", 4, 0, (4,), (1,))[:-2] + b"h\x00h\x00tRs"
    ),
    "doubled tuples as a size": zipped(DOUBLED + named("torch", "Size") + b"h\x00\x85R"),
    "doubled lists": zipped(b"]q\x00" + b"](h\x00h\x00eq\x00" * 60),
    "a dict that holds itself": zipped(b"}q\x00" + text("state_dict") + b"h\x00s"),
    "a list that holds itself": zipped(b"]q\x00h\x00ah\x00\x93"),
    "a long tuple repeated": zipped(
        b"(" + b"K\x01" * 2000 + b"tq\x00" + b"](" + b"h\x00" * 2000 + b"e"
    ),
    "pairs repeated": zipped(
        b"]("
        + (text("a") + b"N\x86") * 300
        + b"eq\x00"
        + (named("collections", "OrderedDict") + b"h\x00\x85R") * 100
    ),
    "names of megabytes": zipped(short("x" * 200) * 2 + b"\x93"),
    "a tensor of 2^62 bytes": zipped(
        b"}"
        + text("model.mm_projector.weight")
        + tensor("0", 4, 0, (1 << 30, 1 << 30), (0, 0))
        + b"s"
    ),
    "a tensor of 64 axes": zipped(
        b"}"
        + text("model.mm_projector.weight")
        + tensor("0", 4, 0, (1,) * 64, (1 << 62,) * 64)
        + b"s"
    ),
    "colliding keys": zipped(
        b"}(" + b"".join(number(n * ((1 << 61) - 1) % (1 << 63)) + b"N" for n in range(300)) + b"u"
    ),
    "deflated": deflated,
    "overlapping entries": overlapping,
    "zip64 of exabytes": zip64,
    "a directory of gigabytes": poked(b"PK\x05\x06", (12, 4, 0xFFFFFFF0)),
    "a directory before the file": poked(b"PK\x05\x06", (16, 4, 0xFFFFFFF0)),
    "65535 entries": poked(b"PK\x05\x06", (8, 2, 65535), (10, 2, 65535)),
    "an entry of gigabytes": poked(b"PK\x01\x02", (20, 4, 0xFFFFFFF0), (24, 4, 0xFFFFFFF0)),
    "an entry beyond the end": poked(b"PK\x01\x02", (42, 4, 0xFFFFFFF0)),
    "a legacy file's storages": legacy(4000, 4),
    "a legacy storage of exabytes": legacy(1, (1 << 64) - 1),
    "an index of many files": raw(
        "model.safetensors.index.json",
        json.dumps({"weight_map": {f"t{n}": f"{n}.safetensors" for n in range(300)}}).encode(),
    ),
    "an index of deep paths": config(
        f'"weight_map": {{"x": "{"a/" * 2000}b.safetensors"}}', "model.safetensors.index.json"
    ),
    "a config of 1024 layers": config('"num_hidden_layers": 1024'),
    "a config of billions of layers": config(f'"num_hidden_layers": {1 << 40}'),
    "experts": config(
        '"model_type": "vita-mixtral", "num_hidden_layers": 1024, "num_local_experts": 1024'
    ),
    "a projector of 9999 layers": config('"mm_projector_type": "mlp9999x_gelu"'),
    "widths of 4300 digits": config(
        f'"mm_projector_type": "vanilla", "mm_hidden_size": {"9" * 4300}'
    ),
    "a width of 4300 digits": config(f'"mm_projector_type": "ldp", "hidden_size": {"9" * 4300}'),
    "scales": config(f'"use_s2": true, "s2_scales": "{",".join(["8"] * 2000)}"'),
    "spaces": config(f'"use_s2": true, "s2_scales": "{" " * 9000}x"'),
    "a long path": config(f'"mm_vision_tower": "{"internvit/" * 900}"'),
    "the root": config('"mm_vision_tower": "/"'),
    "devices": config('"mm_vision_tower": "/dev/zero", "mm_audio_encoder": "/dev/zero"'),
    "a tower's widths": config(
        f'"model_type": "siglip_vision_model", "hidden_size": 1048575, "num_hidden_layers": 1024, '
        f'"image_size": 1048575, "patch_size": 1, "intermediate_size": {"9" * 4300}',
        "vision_tower_config.json",
    ),
    "provenance": config(
        f'"needs_alignment": true, "operations": {"[" * 90}{"]" * 90}', "vita_ckpt.json"
    ),
    "a processor": config(
        f'"size": {{"height": {"9" * 4300}, "width": {"9" * 4300}}}', "preprocessor_config.json"
    ),
    "a vocabulary": config(f'"model": {{"vocab": [{"[[]]," * 900}[[]]]}}', "tokenizer.json"),
}


# Ten thousand tensors that a config promises: seconds while every allocation is traced.
SLOW = ("a config of 1024 layers", "a projector of 9999 layers")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.torture] * (n in SLOW)) for n in CASES]
)
def test_small_files_cost_little(tmp_path: Path, name: str) -> None:
    path = CASES[name](tmp_path)
    start = time.process_time()
    read(path)  # what is imported on the way takes no memory below
    assert time.process_time() - start < 5
    tracemalloc.start()
    try:
        read(path)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()


def large_header(root: Path) -> Path:
    """Two hundred thousand tensors without bytes, in a header of 12 MB."""
    entry = ':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return safetensors("{" + ",".join(f'"t{n}"{entry}' for n in range(200_000)) + "}")(root)


def large_index(root: Path) -> Path:
    """Forty thousand files that are not there."""
    names = {f"t{n}": f"{n}.safetensors" for n in range(40_000)}
    raw("model.safetensors.index.json", json.dumps({"weight_map": names}).encode())(root)
    return root


def many_dicts(root: Path) -> Path:
    """Fifteen megabytes of pickle that make fifteen million empty dicts."""
    return zipped(b"}" * (15 << 20))(root)


def many_entries(root: Path) -> Path:
    """A zip of a hundred thousand empty entries."""
    path = root / "mm_projector.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("x/data.pkl", b"\x80\x02}.")
        for n in range(100_000):
            file.writestr(f"x/data/{n}", b"")
    return path


# Bytes of address space and seconds of a processor in which a process of its own has read them all.
LARGE: dict[Make, tuple[int, int]] = {
    large_header: (1 << 30, 90),
    large_index: (1 << 30, 60),
    many_dicts: (1 << 30, 60),
    many_entries: (1 << 30, 60),
}
_CHILD = """
import sys
from pathlib import Path
from tests.fuzz.readers import read
read(Path(sys.argv[1]))
"""


@pytest.mark.torture
@pytest.mark.parametrize("make", LARGE, ids=lambda make: make.__name__)
def test_large_files_cost_what_they_are_worth(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    memory, seconds = LARGE[make]
    path = make(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
