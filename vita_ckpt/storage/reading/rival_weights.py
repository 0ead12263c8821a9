"""Two sets of weights in one directory: whether the one differs from the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vita_ckpt.core.checkpoint import TensorRef

# Of values only so much is read: small tensors differ after training as large ones do.
_MOST_READ: Final = 8 << 20


def other_weights(ours: Mapping[str, TensorRef], pickled: Mapping[str, TensorRef]) -> str | None:
    """Return a tensor by which complete pickled weights differ from a checkpoint's own.

    None if they are incomplete, or the same as far as was read: all names, shapes and dtypes, and
    the values of the smallest tensors.
    """
    if not ours or not ours.keys() <= pickled.keys():
        return None
    for name, tensor in pickled.items():
        own = ours.get(name)
        if own is None or (own.dtype, own.shape) != (tensor.dtype, tensor.shape):
            return name
    return _other_values(ours, pickled)


def _other_values(ours: Mapping[str, TensorRef], pickled: Mapping[str, TensorRef]) -> str | None:
    from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes  # noqa: PLC0415 - rarely

    left = _MOST_READ
    with Inputs() as inputs:
        for name in sorted(ours, key=lambda name: (ours[name].nbytes, name)):
            left -= ours[name].nbytes
            if left < 0:
                break
            first, second = (b"".join(tensor_bytes(t[name], inputs, name)) for t in (ours, pickled))
            if first != second:
                return name
    return None
