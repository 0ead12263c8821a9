"""Join ranges of stored vectors, and chunks of a grid, into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from vita_ckpt.core.checkpoint import Pieces, Shape, Stored, TensorRef
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import MalformedFileError

# A chunk: where its first element is in the tensor, and its values.
Chunk = tuple[Shape, TensorRef]


def part_of_vector(vector: TensorRef, start: int, count: int) -> TensorRef:
    """Return ``count`` elements of a contiguous tensor from element ``start`` on, as a vector.

    Raises MalformedFileError if there are fewer.
    """
    if vector.strides is not None or not 0 <= start <= start + count <= prod(vector.shape):
        raise MalformedFileError(
            "training-state-layout",
            vector.source.path,
            expected=f"elements {start} to {start + count} of a vector",
            got=f"{vector.dtype} {list(vector.shape)}"
            + (" that is not contiguous" if vector.strides is not None else ""),
        )
    offset = vector.offset + start * BITS[vector.dtype] // 8
    return replace(vector, offset=offset, shape=(count,))


def joined(shape: Shape, parts: Sequence[TensorRef]) -> Stored:
    """Return the tensor of ``shape`` whose elements are those of ``parts``, one after another."""
    held = [part for part in parts if 0 not in part.shape] or list(parts[:1])
    if len(held) == 1 and held[0].strides is None:
        return replace(held[0], shape=shape)
    return Pieces(tuple(held), shape)


def tiled(name: str, shape: Shape, chunks: Sequence[Chunk]) -> Stored:
    """Return the tensor of ``shape`` that ``chunks`` make up: a grid that covers it exactly once.

    A chunk that is there twice, as a replica, counts once. Raises MalformedFileError if the chunks
    overlap, leave a gap, or are of different dtypes.
    """
    held: dict[tuple[Shape, Shape], TensorRef] = {}
    for offsets, ref in chunks:
        if 0 not in ref.shape or 0 in shape:
            held.setdefault((offsets, ref.shape), ref)
    fits = all(len(offsets) == len(size) == len(shape) for offsets, size in held)
    refs = [(offsets, ref) for (offsets, _), ref in held.items()]
    if not refs or not fits or len({ref.dtype for _, ref in refs}) > 1:
        raise _not_covered(name, shape, refs)
    found = _grid(shape, refs)
    if found is None:
        raise _not_covered(name, shape, refs)
    return found


def offsets_in_mesh(
    shape: Shape,
    shards: Sequence[int | None],
    coordinates: Sequence[int],
    sizes: Sequence[int],
) -> Shape:
    """Return where the part of a rank starts in a tensor that a mesh of ranks divides.

    ``shards`` are the axes that the dimensions of the mesh split, None for a replica, ``sizes``
    those dimensions. Each cuts what those before it have left into pieces of one size, of which the
    last may be shorter or empty.
    """
    offsets = [0] * len(shape)
    left = list(shape)
    for axis, coordinate, size in zip(shards, coordinates, sizes, strict=True):
        if axis is None:
            continue
        piece = -(-left[axis] // size)
        start = min(coordinate * piece, left[axis])
        offsets[axis] += start
        left[axis] = min(piece, left[axis] - start)
    return tuple(offsets)


def _grid(shape: Shape, chunks: Sequence[Chunk]) -> Stored | None:
    """Return the tensor that the chunks cover; None if they do not."""
    if len(chunks) == 1:
        offsets, ref = chunks[0]
        return ref if not any(offsets) and ref.shape == shape else None
    for axis in range(len(shape)):
        slabs: dict[tuple[int, int], list[Chunk]] = {}
        for offsets, ref in chunks:
            place = offsets[axis], ref.shape[axis]
            inner = (*offsets[:axis], 0, *offsets[axis + 1 :])
            slabs.setdefault(place, []).append((inner, ref))
        if len(slabs) == 1 or not _follow(slabs, shape[axis]):
            continue
        parts = [
            _grid((*shape[:axis], size, *shape[axis + 1 :]), slabs[start, size])
            for start, size in sorted(slabs)
        ]
        whole = tuple(part for part in parts if part is not None)
        return Pieces(whole, shape, prod(shape[:axis])) if len(whole) == len(parts) else None
    return None


def _follow(slabs: dict[tuple[int, int], list[Chunk]], length: int) -> bool:
    """Return whether slabs follow one another from 0 to ``length``."""
    end = 0
    for start, size in sorted(slabs):
        if start != end:
            return False
        end += size
    return end == length


def _not_covered(name: str, shape: Shape, chunks: Sequence[Chunk]) -> MalformedFileError:
    places = ", ".join(f"{ref.dtype} {list(ref.shape)} at {list(o)}" for o, ref in chunks[:6])
    source = f"{chunks[0][1].source.path}: {name}" if chunks else name
    return MalformedFileError(
        "training-state-layout",
        source,
        expected=f"chunks that cover {list(shape)} once",
        got=places or "none",
        hint="a file of a rank is missing, or is of another run",
    )
