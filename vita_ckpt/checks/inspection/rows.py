"""List the tensors of a checkpoint, and sum them up by module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from vita_ckpt.core.checkpoint import Checkpoint, parameters, refs_of


class TensorRow(TypedDict):
    """A tensor as JSON: name, dtype, shape, the shard that holds it, its size in bytes."""

    name: str
    dtype: str
    shape: list[int]
    shard: str
    bytes: int


class ModuleRow(TypedDict):
    """A module as JSON: its name, and the tensors, parameters and bytes below it."""

    name: str
    tensors: int
    parameters: int
    bytes: int


def tensor_rows(checkpoint: Checkpoint, names: Iterable[str]) -> list[TensorRow]:
    """Return name, dtype, shape, bytes and (the first) shard of each named tensor, as JSON."""
    shards = {shard.file: shard.name for shard in checkpoint.shards}
    tensors = checkpoint.tensors
    return [
        {
            "name": name,
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "shard": shards[refs_of(tensors[name])[0].source],
            "bytes": tensors[name].nbytes,
        }
        for name in names
    ]


def module_rows(checkpoint: Checkpoint, depth: int) -> list[ModuleRow]:
    """Count tensors, parameters and bytes of the module tree down to ``depth`` components."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for name, tensor in checkpoint.tensors.items():
        components = name.split(".")
        for level in range(1, min(depth, len(components)) + 1):
            row = rows.setdefault(tuple(components[:level]), [0, 0, 0])
            row[0] += 1
            row[1] += parameters(tensor)
            row[2] += tensor.nbytes
    return [
        {"name": ".".join(path), "tensors": row[0], "parameters": row[1], "bytes": row[2]}
        for path, row in sorted(rows.items(), key=lambda item: [_natural(c) for c in item[0]])
    ]


def _natural(component: str) -> tuple[int, int, str]:
    short = component.isdecimal() and len(component) < 10
    return (0, int(component), "") if short else (1, 0, component)
