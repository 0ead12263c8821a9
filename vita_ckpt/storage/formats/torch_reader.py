"""Files of ``torch.save`` without torch: byte ranges into zips and into legacy files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Final

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.digest import digest
from vita_ckpt.core.dtype import BITS, nbytes
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.json_file import raise_lfs_pointer
from vita_ckpt.storage.formats.source_stream import SourceStream
from vita_ckpt.storage.formats.torch_zip import Archive
from vita_ckpt.storage.formats.unpickler import (
    LARGEST_PICKLE,
    Found,
    PickledStorage,
    PickledTensor,
    read_pickle,
    state_dict_of,
)
from vita_ckpt.storage.stores.base import Source

_ZIP_MAGIC: Final = b"PK\x03\x04"
# A view may repeat bytes of its storage, as an expanded tensor does; written, it is whole.
_MOST_REPEATED: Final = 4 << 30
_PICKLE: Final = "data.pkl"
_SERIALIZATION_ID: Final = ".data/serialization_id"
# What torch reads beside the pickle and the storages, in the order of the file.
_SMALL_RECORDS: Final = (
    *(".format_version", ".storage_alignment", "byteorder"),
    *("version", ".data/version", _SERIALIZATION_ID),
)
_VERSION: Final = re.compile(rb"([1-9]|10)\n?")

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001

# Where a storage's bytes lie: first byte in the file and their number.
_Locate = Callable[[PickledStorage], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TorchFile:
    """A file of ``torch.save`` read down to its pickle."""

    file: File
    tensors: Mapping[str, TensorRef]


def read_torch(source: Source) -> TorchFile:
    """Return names, dtypes, shapes and byte ranges of a state dict saved by torch, zip or legacy.

    Raises UnsafePickleError for a pickle that holds more than a state dict and MalformedFileError
    for a file that is damaged or of another kind. Nothing of the file is executed.
    """
    path = source.file.path
    start = source.read(min(source.file.size, 40), 0)
    if start.startswith(b"version https://git-lfs"):
        raise_lfs_pointer(path)
    if not start:
        raise MalformedFileError("empty-file", path, expected="a file of torch.save", got="0 bytes")
    if start.startswith(_ZIP_MAGIC):
        return _read_zip(source)
    if start.startswith(b"\x80"):
        return _read_legacy(source)
    raise MalformedFileError(
        "not-a-torch-file",
        path,
        expected="a zip or a legacy pickle of torch.save",
        got=f"a file that starts with {start[:8]!r}",
    )


def _read_zip(source: Source) -> TorchFile:
    path = source.file.path
    archive = Archive(source)
    if _PICKLE not in archive:
        raise MalformedFileError(
            "not-a-torch-file", path, expected="data.pkl in the zip", got="no such record"
        )
    if "constants.pkl" in archive:
        raise InputError(
            "torchscript-archive",
            path,
            expected="a state dict",
            got="a TorchScript archive",
            hint="save module.state_dict() instead",
        )
    read = archive.read({_PICKLE: LARGEST_PICKLE, **dict.fromkeys(_SMALL_RECORDS, 64)})
    file = replace(source.file, digest=digest(read[_PICKLE]))
    found = Found()
    stream = _Bounded(io.BytesIO(read[_PICKLE]))
    tensors = state_dict_of(read_pickle(stream, path, found))
    _check_small_records(read, path)
    archive.expect(f"data/{key}" for key in found.storages)

    def locate(storage: PickledStorage) -> tuple[int, int]:
        name = f"data/{storage.key}"
        if name not in archive:
            raise MalformedFileError("missing-storage", f"{path}: {name}")
        return archive.locate(name)

    return TorchFile(file, _refs(tensors, found, locate, file))


def _check_small_records(read: Mapping[str, bytes], path: str) -> None:
    """Refuse what torch refuses of the records beside the pickle and the storages."""
    order = read.get("byteorder", b"little")
    if order == b"big":
        raise InputError(
            "big-endian-file",
            path,
            expected="little-endian storages",
            got=repr(order),
            hint="save it again on a little-endian machine",
        )
    # One of the two says the version, and torch takes the first.
    versions = [read[name] for name in (".data/version", "version") if name in read]
    wrong = {} if order == b"little" else {"byteorder": order}
    if not versions or not all(_VERSION.fullmatch(version) for version in versions):
        wrong["version"] = versions[0] if versions else b""
    if not re.fullmatch(rb"[0-9]+", read.get(".storage_alignment", b"64")):
        wrong[".storage_alignment"] = read[".storage_alignment"]
    if not read.get(_SERIALIZATION_ID, b"").isascii():
        wrong[_SERIALIZATION_ID] = read[_SERIALIZATION_ID]
    for name, value in wrong.items():
        raise MalformedFileError(
            "not-a-torch-file",
            f"{path}: {name}",
            expected="what torch.save writes there",
            got=repr(value) if value else "nothing",
            hint="the file is damaged, or not written by torch.save",
        )


def _read_legacy(source: Source) -> TorchFile:
    """torch's format before 1.6: five pickles, then each storage as its size and its bytes."""
    path, file_size = source.file.path, source.file.size
    with io.BufferedReader(SourceStream(source)) as handle:
        stream = _Bounded(handle)
        if read_pickle(stream, path) != _LEGACY_MAGIC:
            raise MalformedFileError(
                "not-a-torch-file", path, expected="a file of torch.save", got="another pickle"
            )
        protocol, system = read_pickle(stream, path), read_pickle(stream, path)
        if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
            raise MalformedFileError("not-a-torch-file", path, got="another protocol")
        if system.get("little_endian") is not True:
            raise InputError("big-endian-file", path, expected="little-endian storages")
        found = Found()
        tensors = state_dict_of(read_pickle(stream, path, found, legacy=True))
        keys = read_pickle(stream, path)
        described = handle.tell()
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise MalformedFileError("invalid-pickle", path, got="no list of storages")
    ranges: dict[str, tuple[int, int]] = {}
    position = described
    for key in map(str, keys):
        if key not in found.storages:
            raise MalformedFileError(
                "unknown-storage", f"{path}: {key}", expected="a storage that the pickle names"
            )
        if position + 8 > file_size:
            raise MalformedFileError("truncated-file", path, got=f"{file_size} bytes")
        count = int.from_bytes(source.read(8, position), "little")
        if count != found.storages[key].size:
            raise MalformedFileError(
                "truncated-storage",
                f"{path}: {key}",
                expected=f"a storage of {found.storages[key].size} elements, as the pickle says",
                got=f"{count} elements",
            )
        ranges[key] = (position + 8, count * found.storages[key].width)
        position += 8 + count * found.storages[key].width
    file = replace(source.file, digest=digest(source.read(described, 0)))

    def locate(storage: PickledStorage) -> tuple[int, int]:
        if storage.key not in ranges:
            raise MalformedFileError("missing-storage", f"{path}: {storage.key}")
        return ranges[storage.key]

    return TorchFile(file, _refs(tensors, found, locate, file))


class _Bounded:
    """Reads for a pickle: no more than the limit altogether, and never more than is asked for."""

    def __init__(self, handle: io.BufferedIOBase) -> None:
        self._handle = handle
        self._left = LARGEST_PICKLE

    def read(self, size: int, /) -> bytes:
        if size > self._left:
            raise ValueError(f"a read of {size} bytes, more than a pickle of tensors needs")
        self._left -= size
        return self._handle.read(size)

    def readline(self) -> bytes:
        line = self._handle.readline(min(self._left, 1 << 16))
        self._left -= len(line)
        return line


def _place(storage: PickledStorage, locate: _Locate, file: File) -> int:
    """Where a storage starts; raises MalformedFileError unless all of it is in the file."""
    start, size = locate(storage)
    claimed = storage.size * storage.width
    if claimed > size or start + size > file.size:
        raise MalformedFileError(
            "truncated-storage",
            f"{file.path}: storage {storage.key}",
            expected=f"{claimed} bytes at {start}",
            got=f"{max(0, min(size, file.size - start))} bytes",
            hint="the file is cut off or damaged: copy or download it again",
        )
    return start


def _refs(
    tensors: Mapping[str, PickledTensor] | None, found: Found, locate: _Locate, file: File
) -> dict[str, TensorRef]:
    if tensors is None:
        raise MalformedFileError(
            "not-a-state-dict", file.path, expected="a dict of tensors", got="another object"
        )
    places = {key: _place(storage, locate, file) for key, storage in found.storages.items()}
    refs = {name: _ref(name, tensor, places, file) for name, tensor in tensors.items()}
    for tensor in found.tensors:  # torch builds them all
        _check_view(tensor, file.path)
    repeated = sum(max(0, _size(tensor) - _claimed(tensor)) for tensor in tensors.values())
    if repeated > _MOST_REPEATED:
        raise MalformedFileError(
            "expanded-tensor",
            file.path,
            expected=f"views that repeat at most {_MOST_REPEATED} bytes",
            got=f"{repeated} bytes",
            hint="save the tensors themselves, not expanded views of them",
        )
    return refs


def _size(tensor: PickledTensor) -> int:
    return prod(tensor.shape) * BITS[tensor.dtype] // 8


def _claimed(tensor: PickledTensor) -> int:
    return tensor.storage.size * tensor.storage.width


def _ref(name: str, tensor: PickledTensor, places: Mapping[str, int], file: File) -> TensorRef:
    subject = f"{file.path}: {name}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedFileError("invalid-name", subject, got="a lone surrogate") from error
    _check_view(tensor, subject)
    offset = places[tensor.storage.key] + tensor.offset * BITS[tensor.dtype] // 8
    strides = None if _contiguous(tensor.shape, tensor.strides) else tensor.strides
    return TensorRef(file, offset, tensor.dtype, tensor.shape, strides)


def _check_view(tensor: PickledTensor, subject: str) -> None:
    """Raise MalformedFileError for a tensor that is not inside its storage."""
    width = BITS[tensor.dtype] // 8
    claimed = _claimed(tensor)
    try:
        elements = nbytes(tensor.dtype, tensor.shape) // width
    except OverflowError as error:
        raise MalformedFileError("shape-overflow", subject, got=str(error)) from error
    if not elements:
        return
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    end = (tensor.offset + reach + 1) * width
    if end > claimed:
        raise MalformedFileError(
            "tensor-outside-storage",
            subject,
            expected=f"a view of {claimed} bytes",
            got=f"one that reaches byte {end}",
        )


def _contiguous(shape: Shape, strides: Shape) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return prod(shape) == 0
        step *= size
    return True
