"""Read written files again, and compare them with the plan."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping

from vita_ckpt.core.checkpoint import File, Tensor, TensorRef
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.errors import InputError, OutputError
from vita_ckpt.storage.formats.safetensors import read_safetensors
from vita_ckpt.storage.stores.local import LOCAL, identify, opened, read_at
from vita_ckpt.storage.system.syscalls import forget_cached
from vita_ckpt.storage.tensors.compare import Pair, differing
from vita_ckpt.storage.tensors.digests import tensor_digests
from vita_ckpt.storage.writing.layout import CarriedFile, PatchedShard, WrittenShard, WrittenText


def check_staged(
    root: str,
    shards: Iterable[WrittenShard],
    texts: Iterable[WrittenText],
    carried: Iterable[CarriedFile] = (),
    on_progress: OnProgress = unwatched,
) -> None:
    """Raise OutputError unless the files below ``root`` are, byte for byte, as planned.

    Synced data is dropped from the page cache first, so that it is read from the disk. The inputs
    are read once more.
    """
    pairs: dict[str, Pair] = {}
    for shard in shards:
        path = os.path.join(root, shard.name) if shard.name else root
        _forget(path)
        found = _read(path) if shard.format == "safetensors" else _read_torch(path)
        pairs |= _pairs(path, dict(shard.entries), found)
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
    _compare(pairs, on_progress)


def check_saved(
    path: str, tensors: Mapping[str, Tensor], on_progress: OnProgress = unwatched
) -> None:
    """Raise OutputError unless a ``.bin`` file holds exactly these tensors."""
    _forget(path)
    _compare(_pairs(path, tensors, _read_torch(path)), on_progress)


def check_patched(
    patched: Collection[PatchedShard],
    digests: Mapping[str, str],
    on_progress: OnProgress = unwatched,
) -> None:
    """Raise OutputError unless patched files hold the planned tensors.

    ``digests`` are those of the tensors, in hex, as they were computed before anything was written:
    what a tensor was made of may have been overwritten by it.
    """
    size = sum(tensor.nbytes for shard in patched for _, _, tensor in shard.entries)
    step = Tally(on_progress, "checking", size)
    for shard in patched:
        path = shard.file.path
        _forget(path)
        wanted = {name: tensor for _, name, tensor in shard.entries}
        there = _read(path)
        for name in there.keys() ^ {*shard.names}:
            raise _failed(f"{path}: {name}", "no such tensor" if name in there else "one too many")
        found = {name: ref for name, ref in there.items() if name in wanted}
        _pairs(path, wanted, found)
        for name, digest in tensor_digests(found, step).items():
            if digest != digests[name]:
                raise _failed(f"{path}: {name}", "other bytes")


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


def _read_torch(path: str) -> Mapping[str, TensorRef]:
    from vita_ckpt.storage.formats.torch_reader import read_torch  # noqa: PLC0415 - zipfile, pickletools

    try:
        with LOCAL.open(path) as source:
            return read_torch(source).tensors
    except InputError as error:
        raise _failed(path, error.code) from error


def _compare(pairs: dict[str, Pair], on_progress: OnProgress) -> None:
    size = sum(wanted.nbytes for wanted, _ in pairs.values())
    step = Tally(on_progress, "checking", size)
    wrong = differing({name: pair for name, pair in pairs.items() if pair[0].nbytes}, progress=step)
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
