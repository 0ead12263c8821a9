"""Read an index of shards and compare it with the shards themselves."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vita_ckpt.core.filenames import SAFETENSORS, SAFETENSORS_INDEX, TORCH
from vita_ckpt.core.remedies import validate
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.stores.base import Store


def weight_map_of(index: Mapping[str, Any], path: str) -> dict[str, str]:
    """Return the file of each tensor. Raises MalformedFileError for an invalid index."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFileError("invalid-index", path, expected="a weight_map of tensors to files")
    if {*map(type, weight_map.values())} != {str}:
        tensor, shard = next(pair for pair in weight_map.items() if not isinstance(pair[1], str))
        raise MalformedFileError(
            "invalid-index", f"{path}: {tensor}", expected="a file name", got=repr(shard)
        )
    return weight_map


def tensors_by_shard(weight_map: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the files that an index names, sorted, with the tensors that it lists for each."""
    shards: defaultdict[str, list[str]] = defaultdict(list)
    for tensor, shard in weight_map.items():
        shards[shard].append(tensor)
    return dict(sorted(shards.items()))


def ambiguous_weights(
    root: str, index_name: str, names: Iterable[str], shards: Iterable[str]
) -> InputError | None:
    """Return the error for a single weight file that an index beside it does not name, or None."""
    single = single_of(index_name)
    if single not in names or single in shards:
        return None
    return InputError(
        "ambiguous-weights",
        root,
        expected=f"either {single} or {index_name}",
        got="both",
        hint=f"VITA's loader and transformers read {single}, huggingface_hub's loader the files of "
        "the index: decide which is meant, and move the other to a directory of its own",
    )


def single_of(index_name: str) -> str:
    """Return the single weight file that loaders look for beside an index."""
    return SAFETENSORS if index_name == SAFETENSORS_INDEX else TORCH


def index_mismatches(
    index_path: str,
    weight_map: Mapping[str, str],
    shard: str,
    promised: Iterable[str],
    found: Iterable[str],
) -> Iterator[MalformedFileError]:
    """Yield an error for each tensor that is only in the index or only in the shard.

    ``promised`` are the tensors that the index lists for the shard, ``found`` those in it.
    """
    folder, index_name = os.path.split(index_path)
    present = dict.fromkeys(found)
    if present.keys() == {*promised}:  # as is mostly so
        return
    for tensor in present:
        if weight_map.get(tensor) != shard:
            yield MalformedFileError(
                "index-mismatch",
                f"{os.path.join(folder, shard)}: {tensor}",
                expected=f"{index_name} to name this file for it",
                got=repr(weight_map.get(tensor, "nothing")),
            )
    for tensor in promised:
        if tensor not in present:
            yield MalformedFileError(
                "index-mismatch",
                f"{index_path}: {tensor}",
                expected=f"the tensor in {shard}",
                got="no such tensor there",
            )


def missing_shard(path: str, index_name: str, got: str = "nothing there") -> InputError:
    """Return the error for a file that an index names and that is not there."""
    return InputError(
        "missing-shard",
        path,
        expected=f"the file that {index_name} names",
        got=got,
        hint=f"copy or download it; {validate(os.path.dirname(path))} says whether other files "
        "hold its tensors",
    )


def check_inside(store: Store, root: str, name: str, index_path: str) -> None:
    """Raise MalformedFileError for a name in an index that leads out of the directory.

    The file itself may be a link, as in the hub cache.
    """
    if store.stays_below(root, name):
        return
    raise MalformedFileError(
        "path-outside-checkpoint",
        f"{index_path}: {name!r}",
        expected="a file in the directory",
        hint="the index is broken or hostile; nothing was read through it",
    )
