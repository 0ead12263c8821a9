"""Where DeepSpeed's ZeRO puts the elements of each parameter: stages 1 and 2, and stage 3.

The layouts follow from ``param_shapes``, which lists the parameters in storage order, and from how
many elements the ranks really hold. ``param_slice_mappings`` is not used: in runs with
``round_robin_gradients`` it describes another order.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import prod

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import MalformedFileError


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements of one vector of a rank: ``count`` of them from ``start`` on."""

    rank: int
    vector: int
    start: int
    count: int


def slices_of_group(
    path: str,
    group: int,
    shapes: Mapping[str, Shape],
    gaps: Sequence[int],
    held: Sequence[int],
) -> dict[str, list[Slice]]:
    """Return where the parameters of a group of stage 1 or 2 lie.

    The parameters follow one another, with ``gaps[i]`` elements after the i-th, and the ranks hold
    consecutive parts of ``held`` elements. The whole was padded to a multiple of twice the ranks;
    most versions leave the padding out again. Raises MalformedFileError with ``path`` if the
    parameters do not fill what the ranks hold.
    """
    if len(gaps) not in (0, len(shapes)) or min(gaps, default=0) < 0:
        raise _misfit(path, f"a gap for each of {len(shapes)} parameters", f"{len(gaps)} gaps")
    ends = [0, *accumulate(held)]
    found: dict[str, list[Slice]] = {}
    position = 0
    for index, (name, shape) in enumerate(shapes.items()):
        count = prod(shape)
        found[name] = list(_cut(ends, position, position + count, group))
        position += count + (gaps[index] if gaps else 0)
    unit = 2 * len(held)
    if position > ends[-1] or -(-position // unit) != -(-ends[-1] // unit):
        raise _misfit(
            path,
            f"{position} elements in group {group}, as param_shapes says",
            f"{ends[-1]} in the files of {len(held)} ranks",
        )
    return found


def slices_of_stage_3(
    path: str, shapes: Mapping[str, Shape], held: Sequence[Sequence[int]]
) -> dict[str, list[Slice]]:
    """Return where the parameters of stage 3 lie.

    ``shapes`` are those of all groups in order, ``held[r]`` the elements of each vector of rank r.
    Every parameter is cut by itself into one piece per rank, padded at its end. Raises
    MalformedFileError with ``path`` if the pieces do not fill the vectors of every rank.
    """
    ranks = len(held)
    if any(list(vectors) != list(held[0]) for vectors in held):
        raise _misfit(path, "vectors of the same lengths in every rank", "different lengths")
    ends = [0, *accumulate(held[0])]
    found: dict[str, list[Slice]] = {}
    position = 0
    for name, shape in shapes.items():
        count = prod(shape)
        piece = -(-count // ranks)
        slices: list[Slice] = []
        for rank in range(ranks):
            own = max(0, min(piece, count - rank * piece))
            for part in _cut(ends, position, position + own, 0):
                slices.append(Slice(rank, part.rank, part.start, part.count))
        found[name] = slices
        position += piece
    if position != ends[-1]:
        raise _misfit(
            path,
            f"{position} elements in each rank, as param_shapes says",
            f"{ends[-1]}",
            hint="parameters that are secondary partitions (hpZ, MiCS) or swapped to NVMe are not "
            "in the files: save the state without these options",
        )
    return found


def pieces_of_frozen(count: int, ranks: int) -> list[int]:
    """Return how many elements of a frozen parameter of stage 3 each rank has, without padding."""
    piece = -(-count // ranks)
    return [max(0, min(piece, count - rank * piece)) for rank in range(ranks)]


def _cut(ends: Sequence[int], start: int, stop: int, group: int) -> Iterator[Slice]:
    """Yield the parts of a range that lie between the ends of consecutive vectors."""
    index = bisect_right(ends, start) - 1
    while start < stop and index + 1 < len(ends):
        end = min(stop, ends[index + 1])
        if start < end:
            yield Slice(index, group, start - ends[index], end - start)
            start = end
        index += 1


def merged_shapes(groups: Iterable[Mapping[str, Shape]], path: str) -> dict[str, Shape]:
    """Return the shapes of all groups in order. Raises MalformedFileError for a repeated name."""
    found: dict[str, Shape] = {}
    for group in groups:
        for name, shape in group.items():
            if name in found:
                raise _misfit(path, "each parameter in one group", f"{name} in two")
            found[name] = shape
    return found


def _misfit(path: str, expected: str, got: str, hint: str = "") -> MalformedFileError:
    return MalformedFileError(
        "training-state-layout",
        path,
        expected=expected,
        got=got,
        hint=hint or "a file is of another step or run, or damaged",
    )
