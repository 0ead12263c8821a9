"""Compare the float32 masters of a training state with its copies in the dtype of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

from vita_ckpt.core.checkpoint import (
    Checkpoint,
    Tensor,
    TensorRef,
    source_of,
)
from vita_ckpt.core.dtype import CAST_TARGETS
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.reading.training.found import Found
from vita_ckpt.storage.stores.base import Source, Store
from vita_ckpt.storage.tensors.stream import Progress, no_progress

# Tensors whose masters are compared with their copies: on this disk, and on the hub.
_SAMPLED: Final = 256


_SAMPLED_FAR: Final = 8


def check_copies(state: Checkpoint, on_progress: OnProgress = unwatched) -> None:
    """Raise MalformedFileError unless all masters of a state on this disk round to their copies."""
    copies = state.training.copies if state.training is not None else {}
    pairs = _pairs(state.tensors, copies)
    size = sum(master.nbytes for master, _ in pairs.values())
    _compare(state.tensors, pairs, progress=Tally(on_progress, "checking", size))


def check_sample(store: Store, found: Found) -> None:
    """Raise MalformedFileError unless a sample of the masters rounds to the copies."""
    pairs = _pairs(found.tensors, found.state.copies)
    most = min(len(pairs), _SAMPLED if store.is_local else _SAMPLED_FAR)
    # Spread over all, the last one among them: it is where a wrong layout has shifted the most.
    names = list(pairs)
    sample = {names[-1 - index * len(names) // most] for index in range(most)}
    with ExitStack() as stack:
        sources: dict[str, Source] = {}

        def read(ref: TensorRef) -> bytes:
            path = ref.source.path
            if path not in sources:
                sources[path] = stack.enter_context(store.open(path))
            return sources[path].read(ref.nbytes, ref.offset)

        _compare(found.tensors, {n: pairs[n] for n in pairs if n in sample}, read)


def _compare(
    tensors: Mapping[str, Tensor],
    pairs: Mapping[str, tuple[Tensor, TensorRef]],
    read: Callable[[TensorRef], bytes] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Compare masters with copies: all elements, or the first and last ones that ``read`` reads."""
    if not pairs:
        return
    from vita_ckpt.storage.tensors.copies import differing_copies, differing_in_sample  # noqa: PLC0415 - numpy

    differing = (
        differing_copies(pairs, progress) if read is None else differing_in_sample(pairs, read)
    )
    for name, place in differing.items():
        raise MalformedFileError(
            "masters-differ",
            f"{source_of(tensors[name])}: {name}",
            expected="float32 weights that round to the copies in the model states",
            got=f"another value at element {place}, and {len(differing) - 1} tensors more",
            hint="the files are of two saves, or were converted wrongly; --weights copies takes "
            "what the model ran with",
        )


def _pairs(
    tensors: Mapping[str, Tensor], copies: Mapping[str, TensorRef]
) -> dict[str, tuple[Tensor, TensorRef]]:
    """Return the masters that have a copy, with it."""
    return {
        name: (tensors[name], copy)
        for name, copy in copies.items()
        if name in tensors
        and tensors[name] != copy
        and tensors[name].dtype == "F32"
        and copy.dtype in CAST_TARGETS
        and tensors[name].shape == copy.shape
    }
