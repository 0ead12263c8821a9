"""torch.distributed.checkpoint: ``.metadata``, and chunks in ``.distcp`` and safetensors files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.digest import digest
from vita_ckpt.core.pickled import Record
from vita_ckpt.core.training.filenames import METADATA
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.safetensors import SafetensorsFile, read_safetensors
from vita_ckpt.storage.formats.torch_reader import read_objects
from vita_ckpt.storage.formats.unpickler import LARGEST_PICKLE, read_pickle
from vita_ckpt.storage.stores.base import Range, Source

_HF_OFFSETS: Final = "DCP_SHARDING_INFO"
_ZIP_MAGIC: Final = b"PK\x03\x04"
# What surrounds the values of a chunk, so that it is announced together.
_EDGE: Final = 2048

_MOST_DIMENSIONS: Final = 64
_LARGEST: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk of a tensor: its first element's place, and the bytes of its file that hold it."""

    offsets: Shape
    sizes: Shape
    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as ``.metadata`` describes it; ``path`` are the keys that lead to it."""

    name: str
    path: tuple[str, ...]
    shape: Shape
    chunks: tuple[StoredChunk, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The content of ``.metadata``: the tensors by their flat names, and the names of the rest."""

    file: File
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...]
    version: str


def read_metadata(source: Source) -> Metadata:
    """Read ``.metadata``: one pickle, whose objects stay descriptions.

    Raises InputError (or a subclass) for one that is damaged, of another kind, or that describes
    files which were transformed when they were written.
    """
    path, size = source.file.path, source.file.size
    if size > LARGEST_PICKLE:
        raise MalformedFileError(
            "pickle-too-large", path, expected=f"at most {LARGEST_PICKLE} bytes", got=f"{size}"
        )
    raw = source.read(size, 0)
    value = read_pickle(io.BytesIO(raw), path)
    described = _attribute(value, "state_dict_metadata")
    stored = _attribute(value, "storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise _other(path, "a Metadata of torch.distributed.checkpoint", value)
    paths = _attribute(value, "planner_data")
    places = _places(stored, path)
    tensors: dict[str, StoredTensor] = {}
    others: list[str] = []
    for name, entry in described.items():
        if not isinstance(name, str) or not isinstance(entry, Record):
            raise _other(path, "tensors by name", entry)
        keys = paths.get(name) if isinstance(paths, dict) else None
        if entry.kind != "TensorStorageMetadata":
            others.append(name)
            continue
        shape = _shape(entry.get("size"), path)
        tensors[name] = StoredTensor(
            name,
            tuple(str(key) for key in keys) if isinstance(keys, tuple | list) else (name,),
            shape,
            tuple(_chunks(name, entry, places, path)),
        )
    saved = _attribute(value, "version")
    version = saved if isinstance(saved, str) else ""
    return Metadata(replace(source.file, digest=digest(raw)), tensors, tuple(others), version)


def announce(source: Source, chunks: Iterable[StoredChunk]) -> None:
    """Announce what will be read of a file to find the values of chunks in it."""
    ranges: list[Range] = []
    for chunk in chunks:
        edge = min(_EDGE, chunk.length)
        ranges += [(chunk.offset, edge), (chunk.offset + chunk.length - edge, edge)]
    source.expect(ranges)


def is_safetensors(source: Source) -> bool:
    """Return whether a file of chunks is a safetensors file, and not a row of zips."""
    return source.file.size > len(_ZIP_MAGIC) and source.read(4, 0) != _ZIP_MAGIC


def chunk_in_zips(source: Source, tensor: StoredTensor, chunk: StoredChunk) -> TensorRef:
    """Return where the values of a chunk are: in a complete zip of torch.save inside the file.

    Raises InputError (or a subclass) if the file is too short or holds something else there.
    """
    path = source.file.path
    if chunk.offset + chunk.length > source.file.size:
        raise MalformedFileError(
            "truncated-file",
            f"{path}: {tensor.name}",
            expected=f"{chunk.length} bytes at {chunk.offset}",
            got=f"a file of {source.file.size} bytes",
            hint="the save was interrupted, or the copy: take an earlier one",
        )
    value = read_objects(_Window(source, chunk.offset, chunk.length)).value
    if not isinstance(value, TensorRef):
        raise _other(f"{path}: {tensor.name}", "a tensor", value)
    found = replace(value, source=source.file, offset=chunk.offset + value.offset)
    return _checked(found, tensor, chunk)


def chunk_in_safetensors(
    opened: SafetensorsFile, tensor: StoredTensor, chunk: StoredChunk
) -> TensorRef:
    """Return where the values of a chunk are in a safetensors file, which has it by its name.

    Raises InputError if it has not.
    """
    if tensor.name not in opened.tensors:
        raise _other(f"{opened.file.path}: {tensor.name}", "that tensor", None)
    return _checked(opened.tensors[tensor.name], tensor, chunk)


def read_hf_shard(source: Source) -> tuple[SafetensorsFile, dict[str, Shape]]:
    """Return a shard of HuggingFaceStorageWriter, and where its tensors start in the whole ones.

    Raises InputError (or a subclass) for a file whose metadata does not say it.
    """
    opened = read_safetensors(source)
    path = source.file.path
    try:
        said = json.loads(opened.metadata.get(_HF_OFFSETS, "{}"))
    except (ValueError, RecursionError) as error:
        raise _other(path, f"JSON under {_HF_OFFSETS}", str(error)) from error
    offsets: dict[str, Shape] = {}
    for name, ref in opened.tensors.items():
        entry = said.get(name) if isinstance(said, dict) else None
        place = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if place is None:
            place = [0] * len(ref.shape)
        offsets[name] = _shape(place, f"{path}: {name}")
        if len(offsets[name]) != len(ref.shape):
            raise _other(f"{path}: {name}", f"{len(ref.shape)} offsets", str(place))
    return opened, offsets


class _Window:
    """A part of a source as a source of its own."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self._source = source
        self._offset = offset
        self.file = replace(source.file, size=size)

    def read(self, size: int, offset: int) -> bytes:
        if size < 0 or offset < 0 or offset + size > self.file.size:
            raise MalformedFileError(
                "truncated-file",
                self.file.path,
                expected=f"{size} bytes at {offset} of a chunk",
                got=f"a chunk of {self.file.size} bytes",
            )
        return self._source.read(size, self._offset + offset)

    def expect(self, ranges: Iterable[Range]) -> None:
        self._source.expect((self._offset + offset, size) for offset, size in ranges)


def _attribute(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Record) else None


def _places(stored: Mapping[Any, Any], path: str) -> dict[str, dict[Shape | None, StoredChunk]]:
    """Return the places in files of each name, by the offsets of their chunks."""
    found: dict[str, dict[Shape | None, StoredChunk]] = {}
    for index, info in stored.items():
        name, at = _attribute(index, "fqn"), _attribute(index, "offset")
        file, offset, length = (
            _attribute(info, key) for key in ("relative_path", "offset", "length")
        )
        numbers = all(type(n) is int and 0 <= n < _LARGEST for n in (offset, length))
        if not isinstance(name, str) or not isinstance(file, str) or not numbers:
            raise _other(path, "the file, offset and length of each chunk", info)
        if _attribute(info, "transform_descriptors"):
            raise InputError(
                "transformed-training-state",
                f"{path}: {name}",
                expected="chunks that are stored as they are",
                got="transformed ones (as zstd): "
                + str(_attribute(info, "transform_descriptors"))[:80],
                hint="load it with torch.distributed.checkpoint, and save it without extensions",
            )
        place = _shape(at, path) if at is not None else None
        chunk = StoredChunk(place or (), (), file, offset, length)
        found.setdefault(name, {}).setdefault(place, chunk)
    return found


def _chunks(
    name: str, entry: Record, places: Mapping[str, Mapping[Shape | None, StoredChunk]], path: str
) -> Iterator[StoredChunk]:
    chunks = entry.get("chunks")
    for chunk in chunks if isinstance(chunks, list | tuple) else ():
        offsets, sizes = (_shape(_attribute(chunk, key), path) for key in ("offsets", "sizes"))
        place = places.get(name, {}).get(offsets)
        if place is None:
            raise _other(f"{path}: {name}", f"the file of the chunk at {list(offsets)}", None)
        yield replace(place, offsets=offsets, sizes=sizes)


def _shape(value: Any, path: str) -> Shape:
    if isinstance(value, Record) and value.args:
        value = value.args[0]
    if (
        not isinstance(value, list | tuple)
        or len(value) > _MOST_DIMENSIONS
        or not all(type(size) is int and 0 <= size < _LARGEST for size in value)
    ):
        raise _other(path, "sizes and offsets", value)
    return tuple(value)


def _checked(ref: TensorRef, tensor: StoredTensor, chunk: StoredChunk) -> TensorRef:
    if ref.shape != chunk.sizes:
        raise MalformedFileError(
            "training-state-layout",
            f"{ref.source.path}: {tensor.name}",
            expected=f"a chunk {list(chunk.sizes)}, as {METADATA} says",
            got=str(list(ref.shape)),
            hint="the file is of another save",
        )
    return ref


def _other(path: str, expected: str, got: Any) -> MalformedFileError:
    what = got if isinstance(got, str) else f"a {type(got).__name__}"
    return MalformedFileError(
        "not-a-training-state",
        path,
        expected=expected,
        got="nothing" if got is None else what,
        hint="the file is of another kind, or damaged",
    )
