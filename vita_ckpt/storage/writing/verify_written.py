"""Read written files again, and compare them with the plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from vita_ckpt.core.checkpoint import File, Tensor, TensorRef
from vita_ckpt.errors import InputError, OutputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.stores.local import LOCAL, identify, opened, read_at
from vita_ckpt.storage.system.syscalls import forget_cached
from vita_ckpt.storage.tensors.compare import Pair, differing
from vita_ckpt.storage.writing.layout import CarriedFile, PatchedShard, WrittenShard, WrittenText


def check_staged(
    root: str,
    shards: Iterable[WrittenShard],
    texts: Iterable[WrittenText],
    carried: Iterable[CarriedFile] = (),
) -> None:
    """Raise OutputError unless the files below ``root`` are, byte for byte, as planned.

    Synced data is dropped from the page cache first, so that it is read from the disk. The inputs
    are read once more.
    """
    pairs: dict[str, Pair] = {}
    for shard in shards:
        path = os.path.join(root, shard.name) if shard.name else root
        _forget(path)
        if shard.is_pickled:
            check_saved(path, dict(shard.entries))
        else:
            pairs |= _pairs(path, dict(shard.entries), _read(path))
    for file in carried:
        path = os.path.join(root, file.name)
        _forget(path)
        pairs[path] = _whole(file.source), _whole(identify(path))
    for text in texts:
        path = os.path.join(root, text.name)
        _forget(path)
        with opened(path) as (descriptor, seen):
            if seen.size != len(text.data) or read_at(descriptor, seen.size, 0, path) != text.data:
                raise _failed(path, "other bytes")
    _compare(pairs)


def check_saved(path: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise OutputError unless a ``.bin`` file holds exactly these tensors."""
    from vita_ckpt.storage.formats.torch_reader import read_torch  # noqa: PLC0415 - zipfile, pickletools

    _forget(path)
    try:
        with LOCAL.open(path) as source:
            found = read_torch(source).tensors
    except InputError as error:
        raise _failed(path, error.code) from error
    _compare(_pairs(path, tensors, found))


def check_patched(patched: Iterable[PatchedShard]) -> None:
    """Raise OutputError unless patched files hold the planned tensors."""
    pairs: dict[str, Pair] = {}
    for shard in patched:
        path = shard.file.path
        _forget(path)
        wanted = {name: tensor for _, name, tensor in shard.entries}
        found = {name: ref for name, ref in _read(path).items() if name in wanted}
        pairs |= _pairs(path, wanted, found)
    _compare(pairs)


def _pairs(
    path: str, wanted: Mapping[str, Tensor], found: Mapping[str, TensorRef]
) -> dict[str, Pair]:
    for name in sorted(wanted.keys() ^ found.keys()):
        raise _failed(f"{path}: {name}", "no such tensor" if name in wanted else "one too many")
    for name, tensor in wanted.items():
        ref = found[name]
        if (ref.dtype, ref.shape) != (tensor.dtype, tensor.shape):
            raise _failed(f"{path}: {name}", f"{ref.dtype} {list(ref.shape)}")
    return {f"{path}: {name}": (tensor, found[name]) for name, tensor in wanted.items()}


def _read(path: str) -> dict[str, TensorRef]:
    try:
        with LOCAL.open(path) as source:
            return dict(read_safetensors(source).tensors)
    except InputError as error:
        raise _failed(path, error.code) from error


def _compare(pairs: dict[str, Pair]) -> None:
    wrong = differing({name: pair for name, pair in pairs.items() if pair[0].nbytes})
    if wrong:
        raise _failed(min(wrong), "other bytes")


def _whole(file: File) -> TensorRef:
    return TensorRef(file, 0, "U8", (file.size,))


def _forget(path: str) -> None:
    with opened(path) as (descriptor, _):
        forget_cached(descriptor)


def _failed(subject: str, got: str) -> OutputError:
    return OutputError(
        "check-failed",
        subject,
        expected="what was written",
        got=got,
        hint="the disk, the memory or another program changed it",
    )
