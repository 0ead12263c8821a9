"""Compare a stored tower with the one in its directory, where a loader takes the latter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.checkpoint import Cast, Checkpoint, LocalFile, TensorRef
from vita_ckpt.core.dtype import can_cast
from vita_ckpt.errors import CastError, InputError
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores

# Of values only so much is read: small tensors differ after training as large ones do.
_MOST_READ: Final = 8 << 20


def difference_from_directory(
    checkpoint: Checkpoint, directory: str, stores: Stores, *, everything: bool
) -> str | None:
    """Return a tensor by which a stored tower differs from that of its directory.

    The directory's are converted to the dtype that is stored first. None if they are the same, as
    far as was read: all names and shapes, and of the values ``everything`` or the smallest tensors.
    """
    ours = _own(checkpoint.refs, parts.TOWER_MODULE)
    try:
        theirs = _own(open_checkpoint(directory, stores).refs, "")
    except InputError:
        return None  # said of the directory
    shared = {name: (ours[name], theirs[name]) for name in ours if name in theirs}
    for name, (own, other) in shared.items():
        if own.shape != other.shape or not can_cast(other.dtype, own.dtype):
            return name
    files = [tensor.source for pair in shared.values() for tensor in pair]
    if not shared or not all(isinstance(file, LocalFile) for file in files):
        return next((name for name in ours if name not in theirs), None)
    return _differing(shared, everything=everything)


def _own(refs: Mapping[str, TensorRef], prefix: str) -> dict[str, TensorRef]:
    """Return the tensors of a tower below ``prefix`` by their own names."""
    below = {n.removeprefix(prefix): ref for n, ref in refs.items() if n.startswith(prefix)}
    names = towers.own_names({name: ref.shape for name, ref in below.items()})
    return {own: below[name] for name, own in names.items()}


def _differing(pairs: Mapping[str, tuple[TensorRef, TensorRef]], *, everything: bool) -> str | None:
    from vita_ckpt.storage.tensors.compare import are_equal  # noqa: PLC0415 - rarely

    left = _MOST_READ
    for name, (own, other) in sorted(pairs.items(), key=lambda item: item[1][0].nbytes):
        left -= own.nbytes + other.nbytes
        if left < 0 and not everything:
            break
        converted = other if own.dtype == other.dtype else Cast(other, own.dtype)
        try:
            if not are_equal({name: (own, converted)}):
                return name
        except CastError:
            return name
    return None
