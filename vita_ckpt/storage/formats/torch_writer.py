"""Write a state dict as the zip of ``torch.save``, without torch."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import IO, Final

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dtype import nbytes
from vita_ckpt.errors import UsageError

Entry = tuple[str, str, Shape]

_STORAGES: Final = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}

# torch.save aligns the bytes of every storage in the file.
_ALIGNMENT: Final = 64
_FOLDER: Final = "mm_projector"  # torch takes whatever folder the zip has
_LOCAL_HEADER: Final = 30
_ZIP64_EXTRA: Final = 20
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def check_writable(entries: Iterable[Entry], path: str) -> None:
    """Raise UsageError if a dtype has no storage class that every torch can load."""
    for name, dtype, _ in entries:
        if dtype not in _STORAGES:
            raise UsageError(
                "dtype-not-in-torch-file",
                f"{path}: {name}",
                got=dtype,
                hint="write a .safetensors file instead",
            )


def write_state_dict(
    handle: IO[bytes], entries: Sequence[Entry], write: Callable[[int, IO[bytes]], None]
) -> None:
    """Write a zip with the tensors of ``entries`` (name, dtype, shape) to ``handle``.

    ``write(i, out)`` writes the contiguous bytes of entry i. The result loads with
    ``torch.load(weights_only=True)``.
    """
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as zip_file:

        def put(name: str, data: bytes) -> None:
            with zip_file.open(_record(handle, f"{_FOLDER}/{name}", len(data)), "w") as out:
                out.write(data)

        put("data.pkl", _pickle(entries))
        put("byteorder", b"little")
        for index, (_, dtype, shape) in enumerate(entries):
            record = _record(handle, f"{_FOLDER}/data/{index}", nbytes(dtype, shape))
            with zip_file.open(record, "w") as out:
                write(index, out)
        put("version", b"3\n")


def _record(handle: IO[bytes], name: str, size: int) -> zipfile.ZipInfo:
    """An entry whose data start at a multiple of 64, padded in its extra field as torch does."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.file_size = size
    start = handle.tell() + _LOCAL_HEADER + len(name) + 4
    start += _ZIP64_EXTRA if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    padding = -start % _ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return info


def _pickle(entries: Sequence[Entry]) -> bytes:
    """A protocol 2 pickle of ``{name: torch._utils._rebuild_tensor_v2(...)}``."""
    out = [b"\x80\x02}("]
    for key, (name, dtype, shape) in enumerate(entries):
        storage = (
            b"("
            + _text("storage")
            + f"ctorch\n{_STORAGES[dtype]}\n".encode()
            + _text(str(key))
            + _text("cpu")
            + _integer(prod(shape))
            + b"tQ"
        )
        out += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(",
            storage,
            _integer(0),
            _tuple(shape),
            _tuple(_strides(shape)),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    return b"".join([*out, b"u."])


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + value.to_bytes(1, "little")
    if value < 1 << 31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x08" + value.to_bytes(8, "little")


def _tuple(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _strides(shape: Shape) -> Shape:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
