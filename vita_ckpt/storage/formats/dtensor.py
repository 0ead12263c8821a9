"""Files of one rank each, whose tensors are DTensors: a local part, and where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.checkpoint import File, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.pickled import Record, state_dicts
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.formats.torch_reader import read_objects
from vita_ckpt.storage.stores.base import Source


@dataclass(frozen=True, slots=True)
class LocalPart:
    """The part of a tensor that a rank has.

    ``shards`` are the dimensions that the dimensions of the mesh split, None for a replica, and
    ``coordinates`` the rank's place along each dimension of the mesh.
    """

    local: TensorRef
    shape: Shape
    shards: tuple[int | None, ...]
    coordinates: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RankFile:
    """The tensors of a rank: those that are whole, and the parts of those that are not."""

    file: File
    whole: Mapping[str, TensorRef]
    parts: Mapping[str, LocalPart]


def read_rank(source: Source) -> RankFile:
    """Read the file of a rank down to its pickle.

    Raises InputError (or a subclass) for a file without a state dict, and for placements that are
    neither shards nor replicas.
    """
    path = source.file.path
    opened = read_objects(source)
    found = state_dicts(opened.value, _is_tensor)
    entries = found[0].tensors if found else {}
    whole: dict[str, TensorRef] = {}
    parts: dict[str, LocalPart] = {}
    for name, value in entries.items():
        if isinstance(value, TensorRef):
            whole[name] = value
        else:
            parts[name] = _part(value, f"{path}: {name}")
    if not entries:
        raise _other(path, "a dict of tensors", opened.value)
    return RankFile(opened.file, whole, parts)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorRef) or (isinstance(value, Record) and value.kind == "DTensor")


def _part(value: Record, subject: str) -> LocalPart:
    state = value.state[-1] if isinstance(value.state, tuple) and value.state else value.state
    local = state.get("_local_tensor") if isinstance(state, dict) else None
    spec = state.get("_spec") if isinstance(state, dict) else None
    if not isinstance(local, TensorRef) or not isinstance(spec, Record):
        raise _other(subject, "a local tensor and its place", value)
    inner = spec.get("tensor_meta")
    shape = _size(inner.get("shape") if isinstance(inner, Record) else None, inner, subject)
    placements, mesh = spec.get("placements"), spec.get("mesh")
    if not isinstance(placements, list | tuple) or not isinstance(mesh, Record):
        raise _other(subject, "placements and a mesh of devices", spec)
    coordinates = mesh.get("_coordinate_on_dim")
    if not isinstance(coordinates, list | tuple) or len(coordinates) != len(placements):
        raise _other(subject, "a coordinate for each placement", coordinates)
    if not all(type(number) is int and number >= 0 for number in coordinates):
        raise _other(subject, "coordinates in the mesh", coordinates)
    return LocalPart(
        local,
        shape,
        tuple(_shard(placement, len(shape), subject) for placement in placements),
        tuple(coordinates),
    )


def _size(value: Any, meta: Any, subject: str) -> Shape:
    if value is None and isinstance(meta, Record) and meta.args:  # a named tuple
        value = meta.args[0]
    if isinstance(value, Record) and value.args:
        value = value.args[0]
    if not isinstance(value, list | tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise _other(subject, "the size of the whole tensor", value)
    return tuple(value)


def _shard(placement: Any, dimensions: int, subject: str) -> int | None:
    """Return the dimension that a placement splits; None for a replica."""
    kind = placement.kind if isinstance(placement, Record) else type(placement).__name__
    if kind == "Replicate":
        return None
    dim = placement.get("dim") if isinstance(placement, Record) else None
    if dim is None and isinstance(placement, Record) and placement.args:
        dim = placement.args[0]
    if kind != "Shard" or type(dim) is not int or not -dimensions <= dim < dimensions:
        raise InputError(
            "parallel-training-state",
            subject,
            expected="shards and replicas",
            got=f"a placement {kind}",
            hint="save full_tensor() on every rank, or with torch.distributed.checkpoint",
        )
    return dim % dimensions


def _other(path: str, expected: str, got: Any) -> MalformedFileError:
    return MalformedFileError(
        "not-a-training-state",
        path,
        expected=expected,
        got="nothing" if got is None else f"a {type(got).__name__}",
        hint="the file is of another kind, or damaged",
    )
