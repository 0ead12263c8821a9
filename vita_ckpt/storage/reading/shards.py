"""Read one weight file as a shard, and check that files have not changed since."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from vita_ckpt.core.checkpoint import (
    File,
    LocalFile,
    RemoteFile,
    Shard,
    TensorRef,
    on_disk,
)
from vita_ckpt.core.digest import digest
from vita_ckpt.core.filenames import SAFETENSORS_SUFFIX
from vita_ckpt.core.training.filenames import DISTCP, METADATA
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.reading.paths import read_json
from vita_ckpt.storage.stores.base import Store
from vita_ckpt.storage.stores.local import LOCAL, check_same, identify

_STEP: Final = 1 << 20


def read_shard(
    store: Store, root: str, name: str, key: str = ""
) -> tuple[Shard, Mapping[str, TensorRef]]:
    """Return one weight file below ``root``, or ``root`` itself for an empty ``name``.

    ``key`` is the path of a state dict in a file of ``torch.save``, empty for the likeliest.
    """
    path = os.path.join(root, name) if name else root
    if path.endswith(".safetensors"):
        with store.open(path) as source:
            opened = read_safetensors(source)
        return Shard(name, opened.file, "safetensors", opened.metadata), opened.tensors
    from vita_ckpt.storage.formats.torch_reader import read_torch  # noqa: PLC0415 - zipfile, pickletools

    with store.open(path) as source:
        saved = read_torch(source, key or None)
    shard = Shard(
        *(name, saved.file, "torch"),
        key=saved.key,
        other_keys=saved.others,
        objects=saved.objects,
    )
    return shard, saved.tensors


def prefetch_shards(store: Store, root: str, names: Iterable[str]) -> None:
    """Prefetch weight files below ``root`` that will be read; skip names that lead outside."""
    paths = [os.path.join(root, name) for name in names if store.stays_below(root, name)]
    store.prefetch(paths, lambda path: read_shard(store, path, ""))


def duplicate(
    tensor: str, shard: Shard, other: TensorRef, *, differs: bool = False
) -> MalformedFileError:
    """Return the error for a tensor of ``shard`` that is also in another file."""
    values = ", with other values" if differs else ""
    return MalformedFileError(
        "duplicate-tensor",
        f"{shard.file.path}: {tensor}",
        expected="each tensor in one file",
        got=f"another one in {other.source.path}{values}",
    )


def is_same(store: Store, one: TensorRef, other: TensorRef) -> bool:
    """Return whether two tensors have the same dtype, shape, strides and bytes."""
    if (one.dtype, one.shape, one.strides) != (other.dtype, other.shape, other.strides):
        return False
    with store.open(one.source.path) as first, store.open(other.source.path) as second:
        for start in range(0, one.span, _STEP):
            size = min(_STEP, one.span - start)
            if first.read(size, one.offset + start) != second.read(size, other.offset + start):
                return False
    return True


def check_unchanged(files: Iterable[File]) -> None:
    """Raise StaleInputError unless every file has the same size, time, and header or config.

    Raises InputError for a file that may not be read. Remote files are pinned to a commit and not
    checked.
    """
    for file in files:
        if isinstance(file, RemoteFile):
            continue
        try:
            seen = _identify(file)
        except InputError as error:
            if isinstance(error.__cause__, PermissionError):  # it may never have been readable
                raise
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
    name = os.path.basename(file.path)
    # Of the files of chunks only those have a digest that are safetensors files.
    if name.endswith(SAFETENSORS_SUFFIX) or DISTCP.fullmatch(name):
        with LOCAL.open(file.path) as source:
            return on_disk(read_safetensors(source).file)
    if name == METADATA:
        with LOCAL.open(file.path) as source:
            return replace(identify(file.path), digest=digest(source.read(source.file.size, 0)))
    from vita_ckpt.storage.formats.torch_reader import identify_torch  # noqa: PLC0415 - zipfile, pickletools

    with LOCAL.open(file.path) as source:
        return on_disk(identify_torch(source))


@dataclass(slots=True)
class Weights:
    """The shards read so far; each tensor name may occur in only one of them.

    ``key`` is the path of the state dict to read in files of ``torch.save``. In a LoRA run
    (``is_lora``) the trainer writes biases twice: they may occur again with the same values.
    """

    key: str = ""
    is_lora: bool = False
    shards: list[Shard] = field(default_factory=list)
    tensors: dict[str, TensorRef] = field(default_factory=dict)

    def read(self, store: Store, root: str, name: str) -> Mapping[str, TensorRef]:
        """Read one more shard and return its tensors."""
        shard, tensors = read_shard(store, root, name, self.key)
        twice = tensors.keys() & self.tensors.keys()
        for tensor in sorted(twice):
            if not (self.is_lora and is_same(store, tensors[tensor], self.tensors[tensor])):
                raise duplicate(tensor, shard, self.tensors[tensor], differs=self.is_lora)
        self.shards.append(shard)
        self.tensors |= {n: t for n, t in tensors.items() if n not in twice} if twice else tensors
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
