"""Read one weight file as a shard, and check that files have not changed since."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vita_ckpt.core.checkpoint import (
    File,
    LocalFile,
    RemoteFile,
    Shard,
    TensorRef,
    on_disk,
)
from vita_ckpt.core.filenames import NON_LORA
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.stores.base import Store
from vita_ckpt.storage.stores.local import LOCAL, check_same, identify


def read_shard(store: Store, root: str, name: str) -> tuple[Shard, Mapping[str, TensorRef]]:
    """Return one weight file below ``root``, or ``root`` itself for an empty ``name``."""
    path = os.path.join(root, name) if name else root
    if path.endswith(".safetensors"):
        with store.open(path) as source:
            opened = read_safetensors(source)
        return Shard(name, opened.file, "safetensors", opened.metadata), opened.tensors
    from vita_ckpt.storage.formats.torch_reader import read_torch  # noqa: PLC0415 - zipfile, pickletools

    with store.open(path) as source:
        saved = read_torch(source)
    return Shard(name, saved.file, "torch"), saved.tensors


def prefetch_shards(store: Store, root: str, names: Iterable[str]) -> None:
    """Prefetch weight files below ``root`` that will be read; skip names that lead outside."""
    paths = [os.path.join(root, name) for name in names if store.stays_below(root, name)]
    store.prefetch(paths, lambda path: read_shard(store, path, ""))


def duplicate(tensor: str, shard: Shard, other: TensorRef) -> MalformedFileError:
    """Return the error for a tensor of ``shard`` that is also in another file."""
    return MalformedFileError(
        "duplicate-tensor",
        f"{shard.file.path}: {tensor}",
        expected="each tensor in one file",
        got=f"it also stands in {other.source.path}",
    )


def check_unchanged(files: Iterable[File]) -> None:
    """Raise StaleInputError unless every file has the same size, time, and header or config.

    Remote files are pinned to a commit and not checked.
    """
    for file in files:
        if isinstance(file, RemoteFile):
            continue
        try:
            seen = _identify(file)
        except InputError as error:
            raise StaleInputError(
                "input-changed", file.path, expected="the file as it was", got=error.got
            ) from error
        check_same(file, seen)


def _identify(file: LocalFile) -> LocalFile:
    """Return the present identity of a file, with a digest if it had one before."""
    if not file.digest:
        return identify(file.path)
    if file.path.endswith(".json"):
        return on_disk(read_json(LOCAL, file.path)[1])
    return on_disk(read_shard(LOCAL, file.path, "")[0].file)


@dataclass(slots=True)
class Weights:
    """The shards read so far; each tensor name may occur in only one of them.

    The trainer saves trained biases with the deltas and in ``non_lora_trainables.bin`` once more: a
    loader reads the deltas last, so what is there counts.
    """

    shards: list[Shard] = field(default_factory=list)
    tensors: dict[str, TensorRef] = field(default_factory=dict)

    def read(self, store: Store, root: str, name: str) -> Mapping[str, TensorRef]:
        """Read one more shard and return its tensors."""
        shard, tensors = read_shard(store, root, name)
        for tensor in tensors:
            if tensor in self.tensors and name != NON_LORA:
                raise duplicate(tensor, shard, self.tensors[tensor])
        self.shards.append(shard)
        self.tensors |= {n: ref for n, ref in tensors.items() if n not in self.tensors}
        return tensors

    def check(self, path: str) -> None:
        """Raise InputError if there is not a single tensor."""
        if not self.tensors:
            raise InputError(
                "no-tensors",
                path,
                expected="weights",
                got="a file without a single tensor",
                hint="what saved it had gathered nothing: save it again",
            )
