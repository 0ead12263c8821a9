"""Files of ``torch.save`` without torch: byte ranges into zips and into legacy files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Final

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.digest import digest
from vita_ckpt.core.dtype import BITS, nbytes
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.json_file import raise_lfs_pointer
from vita_ckpt.storage.formats.unpickler import (
    LARGEST_PICKLE,
    PickledStorage,
    PickledTensor,
    read_pickle,
    state_dict_of,
)
from vita_ckpt.storage.stores.base import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ZIP_MAGIC: Final = b"PK\x03\x04"
_DIRECTORY: Final = 0x10  # in the attributes of an entry, as MS-DOS has them
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")
# A central directory of this size lists a hundred thousand storages.
_LARGEST_DIRECTORY: Final = 16 << 20

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
    entries = _zip_entries(source)
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise MalformedFileError(
            "not-a-torch-file", path, expected="one data.pkl in the zip", got=f"{len(pickles)}"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise InputError(
            "torchscript-archive",
            path,
            expected="a state dict",
            got="a TorchScript archive",
            hint="save module.state_dict() instead",
        )
    raw = _zip_read(source, entries[pickles[0]], LARGEST_PICKLE)
    if f"{prefix}byteorder" in entries:
        order = _zip_read(source, entries[f"{prefix}byteorder"], 64)
        if order != b"little":
            raise InputError(
                "big-endian-file",
                path,
                expected="little-endian storages",
                got=repr(order),
                hint="save it again on a little-endian machine",
            )

    def locate(storage: PickledStorage) -> tuple[int, int]:
        entry = entries.get(f"{prefix}data/{storage.key}")
        if entry is None:
            raise MalformedFileError("missing-storage", f"{path}: data/{storage.key}")
        return _zip_range(source, entry)

    file = replace(source.file, digest=digest(raw))
    tensors = state_dict_of(read_pickle(_Bounded(io.BytesIO(raw)), path))
    named = {f"{prefix}data/{tensor.storage.key}" for tensor in (tensors or {}).values()}
    starts = (entries[name].header_offset for name in named & entries.keys())
    source.expect((start, _LOCAL_HEADER.size) for start in starts)
    return TorchFile(file, _refs(tensors, locate, file))


def _zip_entries(source: Source) -> dict[str, zipfile.ZipInfo]:
    path = source.file.path
    with _SmallReads(source) as handle:
        try:
            with zipfile.ZipFile(handle) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, struct.error) as e:
            raise MalformedFileError(
                "invalid-zip",
                path,
                expected="a zip file",
                got=str(e),
                hint="the file is cut off or damaged: copy or download it again",
            ) from e
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename in entries:
            raise MalformedFileError("duplicate-zip-entry", f"{path}: {info.filename}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise MalformedFileError(
                "compressed-zip-entry",
                f"{path}: {info.filename}",
                expected="entries stored as they are",
                got="a compressed or encrypted one",
            )
        if info.external_attr & _DIRECTORY and info.file_size:
            raise MalformedFileError(
                "invalid-zip",
                f"{path}: {info.filename}",
                expected="a file",
                got="an entry that calls itself a directory: torch would not read it",
            )
        entries[info.filename] = info
    return entries


def _zip_range(source: Source, info: zipfile.ZipInfo) -> tuple[int, int]:
    """First byte and length of an entry's data: its local header decides where they start."""
    path = source.file.path
    header = source.read(_LOCAL_HEADER.size, info.header_offset)
    magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if magic != _ZIP_MAGIC:
        raise MalformedFileError("invalid-zip", f"{path}: {info.filename}", got="no local header")
    return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length, info.file_size


def _zip_read(source: Source, info: zipfile.ZipInfo, limit: int) -> bytes:
    path = source.file.path
    start, size = _zip_range(source, info)
    if size > limit:
        raise MalformedFileError(
            "pickle-too-large",
            f"{path}: {info.filename}",
            expected=f"at most {limit} bytes",
            got=f"{size} bytes",
        )
    return source.read(size, start)


def _read_legacy(source: Source) -> TorchFile:
    """torch's format before 1.6: five pickles, then each storage as its size and its bytes."""
    path, file_size = source.file.path, source.file.size
    with io.BufferedReader(_Stream(source)) as handle:
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
        storages: dict[str, PickledStorage] = {}
        tensors = state_dict_of(read_pickle(stream, path, storages))
        keys = read_pickle(stream, path)
        described = handle.tell()
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise MalformedFileError("invalid-pickle", path, got="no list of storages")
    ranges: dict[str, tuple[int, int]] = {}
    position = described
    for key in map(str, keys):
        if key not in storages:
            raise MalformedFileError(
                "unknown-storage", f"{path}: {key}", expected="a storage that the pickle names"
            )
        if position + 8 > file_size:
            raise MalformedFileError("truncated-file", path, got=f"{file_size} bytes")
        size = int.from_bytes(source.read(8, position), "little") * storages[key].width
        ranges[key] = (position + 8, size)
        position += 8 + size
    file = replace(source.file, digest=digest(source.read(described, 0)))

    def locate(storage: PickledStorage) -> tuple[int, int]:
        if storage.key not in ranges:
            raise MalformedFileError("missing-storage", f"{path}: {storage.key}")
        return ranges[storage.key]

    return TorchFile(file, _refs(tensors, locate, file))


class _Stream(io.RawIOBase):
    """A source as a stream, read from its start."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(f"a position before the file, {origin + offset}")
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        memory = memoryview(buffer)
        count = max(0, min(len(memory), self._size - self._position))
        memory[:count] = self._source.read(count, self._position)
        self._position += count
        return count

    @property
    def _size(self) -> int:
        return self._source.file.size


class _SmallReads(_Stream):
    """A file for zipfile, which reads as much as the file itself tells it to."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        if size > _LARGEST_DIRECTORY:
            raise ValueError(f"a read of {size} bytes, more than a directory of tensors needs")
        return super().read(size) or b""


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


def _refs(
    tensors: Mapping[str, PickledTensor] | None,
    locate: _Locate,
    file: File,
) -> dict[str, TensorRef]:
    if tensors is None:
        raise MalformedFileError(
            "not-a-state-dict", file.path, expected="a dict of tensors", got="another object"
        )
    return {name: _ref(name, tensor, locate, file) for name, tensor in tensors.items()}


def _ref(name: str, tensor: PickledTensor, locate: _Locate, file: File) -> TensorRef:
    subject = f"{file.path}: {name}"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedFileError("invalid-name", subject, got="a lone surrogate") from error
    width = BITS[tensor.dtype] // 8
    start, size = locate(tensor.storage)
    claimed = tensor.storage.size * tensor.storage.width
    if claimed > size or start + size > file.size:
        raise MalformedFileError(
            "truncated-storage",
            subject,
            expected=f"{claimed} bytes at {start}",
            got=f"{max(0, min(size, file.size - start))} bytes",
            hint="the file is cut off or damaged: copy or download it again",
        )
    try:
        elements = nbytes(tensor.dtype, tensor.shape) // width
    except OverflowError as error:
        raise MalformedFileError("shape-overflow", subject, got=str(error)) from error
    if elements:
        reach = sum(
            (n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        if (tensor.offset + reach + 1) * width > claimed:
            raise MalformedFileError(
                "tensor-outside-storage",
                subject,
                expected=f"a view of {claimed} bytes",
                got=f"one that reaches byte {(tensor.offset + reach + 1) * width}",
            )
    offset = start + tensor.offset * width
    strides = None if _contiguous(tensor.shape, tensor.strides) else tensor.strides
    return TensorRef(file, offset, tensor.dtype, tensor.shape, strides)


def _contiguous(shape: Shape, strides: Shape) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return prod(shape) == 0
        step *= size
    return True
