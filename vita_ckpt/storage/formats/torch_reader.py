"""Files of ``torch.save`` without torch: byte ranges into zips and into legacy files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.digest import digest
from vita_ckpt.core.dtype import BITS, nbytes
from vita_ckpt.core.pickled import (
    Record,
    StateDict,
    is_of_training,
    state_dicts,
    without_data,
)
from vita_ckpt.core.reading_notes import listed
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.json_file import hint_of_answer, raise_lfs_pointer
from vita_ckpt.storage.formats.source_stream import SourceStream
from vita_ckpt.storage.formats.torch_zip import Archive
from vita_ckpt.storage.formats.unpickler import (
    LARGEST_PICKLE,
    Found,
    PickledStorage,
    PickledTensor,
    read_pickle,
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
    """A state dict in a file of ``torch.save``, and what else the file holds.

    ``key`` is the path of the state dict in the file, ``.`` for the object itself; ``others`` are
    the paths of the others that hold weights. ``objects`` are the globals that
    ``torch.load(weights_only=True)`` does not take.
    """

    file: File
    tensors: Mapping[str, TensorRef]
    key: str = "."
    others: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TorchObjects:
    """The whole object in a file of ``torch.save``, with tensors as TensorRef.

    ``value`` consists of plain values, dicts, lists, tuples, and of
    :class:`~vita_ckpt.core.pickled.Global` and :class:`~vita_ckpt.core.pickled.Record` for all
    else. A storage is a tensor with one dimension. ``objects`` is as in :class:`TorchFile`.
    """

    file: File
    value: Any
    objects: tuple[str, ...] = ()


def read_torch(source: Source, key: str | None = None) -> TorchFile:
    """Return names, dtypes, shapes and byte ranges of a state dict saved by torch, zip or legacy.

    ``key`` is the path of the state dict in the file, by default that of the likeliest one: of
    weights before one of an average or an optimiser, the largest first.

    Raises UnsafePickleError for a pickle that runs code, MalformedFileError for a file that is
    damaged or of another kind, and InputError for a key that is not there or a tensor that cannot
    be had. Nothing of the file is executed.
    """
    opened = _open(source)
    path = source.file.path
    found = state_dicts(opened.value, _stands_for_tensor)
    chosen = _choose(found, opened, path, key)
    for name, tensor in chosen.tensors.items():
        if isinstance(tensor, Record):
            raise _unreadable(tensor, f"{path}: {name}")
    refs = {name: opened.ref(tensor, name) for name, tensor in chosen.tensors.items()}
    opened.check_views()
    repeated = sum(max(0, _size(tensor) - _claimed(tensor)) for tensor in chosen.tensors.values())
    if repeated > _MOST_REPEATED:
        raise MalformedFileError(
            "expanded-tensor",
            path,
            expected=f"views that repeat at most {_MOST_REPEATED} bytes",
            got=f"{repeated} bytes",
            hint="save the tensors themselves, not expanded views of them",
        )
    others = [one.path for one in found if one is not chosen and not is_of_training(one.path)]
    return TorchFile(opened.file, refs, chosen.path, tuple(others), opened.objects)


def read_objects(source: Source) -> TorchObjects:
    """Return everything that a file of ``torch.save`` holds, as inert values.

    Raises what :func:`read_torch` raises, but for state dicts that are not there. Nothing of the
    file is executed.
    """
    opened = _open(source)
    opened.check_views()
    return TorchObjects(opened.file, _Located(opened).located(opened.value), opened.objects)


def identify_torch(source: Source) -> File:
    """Return the identity of a file of ``torch.save``, with the digest of its pickle."""
    return _open(source).file


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file read down to its pickle: the object in it, and where each storage starts."""

    file: File
    value: Any
    found: Found
    places: Mapping[str, int]

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(f"{module}.{name}" for module, name in self.found.objects)

    def ref(self, tensor: PickledTensor, name: str = "") -> TensorRef:
        """Return where a tensor's bytes are; raises MalformedFileError if they are not there."""
        return _ref(name, tensor, self.places, self.file)

    def check_views(self) -> None:
        """Raise MalformedFileError unless all tensors are inside their storages."""
        for tensor in self.found.tensors:  # torch builds them all
            _check_view(tensor, self.file.path)


def _choose(found: list[StateDict], opened: _Opened, path: str, key: str | None) -> StateDict:
    """Return the state dict to read. Raises InputError if it is not there."""
    if key is not None:
        chosen = next((one for one in found if one.path == key), None)
        if chosen is None:
            paths = [one.path for one in found]
            raise InputError(
                "key-not-found",
                f"{path}: {key}",
                expected=listed(paths) if paths else "tensors by name",
                got="no such dict of tensors",
                hint=did_you_mean(key, paths, "--key takes one of these; . is the object itself"),
            )
        return chosen
    if found:
        return found[0]
    if opened.found.storages or not isinstance(opened.value, dict):
        raise MalformedFileError(
            "not-a-state-dict",
            path,
            expected="a dict of tensors by name",
            got=_what_else(opened),
            hint="save model.state_dict()",
        )
    return StateDict(".", {})


def _why_unreadable(value: Any) -> tuple[str, str] | None:
    is_record = isinstance(value, Record)
    return without_data(value, PickledTensor | PickledStorage) if is_record else None


def _stands_for_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, or would be one that cannot be read."""
    return isinstance(value, PickledTensor) or _why_unreadable(value) is not None


def _unreadable(record: Record, subject: str) -> InputError:
    got, hint = _why_unreadable(record) or ("", "")
    return InputError(
        "unreadable-tensor",
        subject,
        expected="a tensor whose values are in the file as they are",
        got=got,
        hint=hint,
    )


def _what_else(opened: _Opened) -> str:
    value, found = opened.value, opened.found
    count = len(found.tensors) or len(found.storages)
    what = f"an object of {value.name}" if isinstance(value, Record) else type(value).__name__
    if isinstance(value, PickledTensor):
        return "a lone tensor"
    tensors = f"{count} tensor{'s' if count > 1 else ''}"
    return f"{what} with {tensors}, none by its name" if count else what


class _Located:
    """Puts TensorRefs in the place of pickled tensors."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._tuples: dict[int, Any] = {}
        self._seen: set[int] = set()
        self._waiting: list[Any] = []

    def located(self, value: Any) -> Any:
        """Return ``value`` with its tensors located; lists, dicts and records are changed."""
        top = self._value(value)
        while self._waiting:
            self._fill(self._waiting.pop())
        return top

    def _value(self, value: Any) -> Any:
        if isinstance(value, PickledTensor):
            return self._opened.ref(value)
        if isinstance(value, PickledStorage):
            shape = (value.size * (1 if value.dtype else value.width),)
            place = self._opened.places[value.key]
            return TensorRef(self._opened.file, place, value.dtype or "U8", shape)
        if isinstance(value, tuple):
            return self._tuple(value)
        if isinstance(value, list | dict | Record) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._waiting.append(value)
        return value

    def _fill(self, value: Any) -> None:
        if isinstance(value, list):
            value[:] = map(self._value, value)
        elif isinstance(value, dict):
            located = [(self._value(key), self._value(item)) for key, item in value.items()]
            value.clear()
            value.update(located)
        else:
            value.args = self._value(value.args)
            value.state = self._value(value.state)
            value.items = self._value(value.items)

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        """Return a tuple with what it holds located, inner ones first, however deep they are."""
        unfinished = [value]
        while unfinished:
            top = unfinished[-1]
            inner = [i for i in top if isinstance(i, tuple) and id(i) not in self._tuples]
            if inner:
                unfinished += inner
                continue
            unfinished.pop()
            if id(top) not in self._tuples:
                new = tuple(
                    self._tuples[id(i)][1] if isinstance(i, tuple) else self._value(i) for i in top
                )
                is_same = all(one is other for one, other in zip(top, new, strict=True))
                # The old one is kept, so that no other gets its id.
                self._tuples[id(top)] = top, top if is_same else new
        return self._tuples[id(value)][1]


# gzip, xz, zstd, bzip2, 7z and rar.
_ARCHIVES: Final = (b"\x1f\x8b", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"BZh", b"7z\xbc\xaf", b"Rar!")
_UNPACK: Final = "an archive of files: unpack it, and name the directory"


def _open(source: Source) -> _Opened:
    path = source.file.path
    start = source.read(min(source.file.size, 40), 0)
    if start.startswith(b"version https://git-lfs"):
        raise_lfs_pointer(path)
    if not start:
        raise MalformedFileError("empty-file", path, expected="a file of torch.save", got="0 bytes")
    if start.startswith(_ZIP_MAGIC):
        return _open_zip(source)
    if start.startswith(b"\x80"):
        return _open_legacy(source)
    raise MalformedFileError(
        "not-a-torch-file",
        path,
        expected="a zip or a legacy pickle of torch.save",
        got=f"a file that starts with {start[:8]!r}",
        hint=_UNPACK if start.startswith(_ARCHIVES) else hint_of_answer(start),
    )


def _open_zip(source: Source) -> _Opened:
    path = source.file.path
    archive = Archive(source)
    if _PICKLE not in archive:
        raise MalformedFileError(
            "not-a-torch-file",
            path,
            expected="data.pkl in the zip",
            got="no such record",
            hint=_UNPACK,
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
    value = read_pickle(_Bounded(io.BytesIO(read[_PICKLE])), path, found)
    _check_small_records(read, path)
    archive.expect(f"data/{key}" for key in found.storages)

    def locate(storage: PickledStorage) -> tuple[int, int]:
        name = f"data/{storage.key}"
        if name not in archive:
            raise MalformedFileError("missing-storage", f"{path}: {name}")
        return archive.locate(name)

    return _Opened(file, value, found, _places(found, locate, file))


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


def _open_legacy(source: Source) -> _Opened:
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
        value = read_pickle(stream, path, found, legacy=True)
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

    return _Opened(file, value, found, _places(found, locate, file))


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


def _places(found: Found, locate: _Locate, file: File) -> dict[str, int]:
    return {key: _place(storage, locate, file) for key, storage in found.storages.items()}


def _size(tensor: PickledTensor) -> int:
    return prod(tensor.shape) * BITS[tensor.dtype] // 8


def _claimed(tensor: PickledTensor) -> int:
    return tensor.storage.size * tensor.storage.width


def _ref(name: str, tensor: PickledTensor, places: Mapping[str, int], file: File) -> TensorRef:
    subject = f"{file.path}: {name}" if name else file.path
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
