"""Two sets of weights in one directory: whether the one differs from the other, and is newer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from vita_ckpt.core.anatomy.parts import LORA, part_of
from vita_ckpt.core.checkpoint import File, LocalFile, Shard, TensorRef
from vita_ckpt.core.rivals import Rival

# Of values only so much is read: small tensors differ after training as large ones do.
_MOST_READ: Final = 8 << 20


def rival(
    ours: Mapping[str, TensorRef],
    shards: Iterable[Shard],
    file: File,
    theirs: Mapping[str, TensorRef],
) -> Rival:
    """Compare the tensors of a file with those of the same names in a checkpoint."""
    shared = {name: tensor for name, tensor in theirs.items() if name in ours}
    own = {name: ours[name] for name in shared}
    is_local = isinstance(file, LocalFile)
    differs = _difference(own, shared) if is_local else None
    times = [s.file.mtime_ns for s in shards if isinstance(s.file, LocalFile)]
    newer = file.mtime_ns > max(times) if isinstance(file, LocalFile) and times else None
    both = {any(part_of(name) == LORA for name in names) for names in (ours, theirs)}
    comparable = ours and len(both) == 1
    return Rival(len(shared) if comparable else None, differs, newer)


def other_weights(ours: Mapping[str, TensorRef], pickled: Mapping[str, TensorRef]) -> str | None:
    """Return a tensor by which complete pickled weights differ from a checkpoint's own.

    None if they are incomplete, or the same as far as was read: all names, shapes and dtypes, and
    the values of the smallest tensors.
    """
    if not ours or not ours.keys() <= pickled.keys():
        return None
    more = next((name for name in pickled if name not in ours), None)
    return more or _difference(ours, pickled)


def _difference(ours: Mapping[str, TensorRef], theirs: Mapping[str, TensorRef]) -> str | None:
    """Return a tensor of ``ours`` that is another in ``theirs``, which has all of them."""
    for name, own in ours.items():
        tensor = theirs[name]
        if (own.dtype, own.shape) != (tensor.dtype, tensor.shape):
            return name
    from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes  # noqa: PLC0415 - rarely

    left = _MOST_READ
    with Inputs() as inputs:
        for name in sorted(ours, key=lambda name: (ours[name].nbytes, name)):
            left -= ours[name].nbytes
            if left < 0:
                break
            first, second = (b"".join(tensor_bytes(t[name], inputs, name)) for t in (ours, theirs))
            if first != second:
                return name
    return None
