"""Compare pairs of tensors byte by byte or value by value."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from mmap import mmap
from typing import TYPE_CHECKING, Final, TypeGuard

from vita_ckpt.core.checkpoint import (
    File,
    LocalFile,
    Tensor,
    TensorRef,
    on_disk,
    parameters,
    source_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.dtype import BITS
from vita_ckpt.core.team import ALONE, PORTION, Team, portions
from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.stores.local import PAGE, check_same, opened, read_into
from vita_ckpt.storage.system.collection import paused_collection
from vita_ckpt.storage.system.workers import MOST, evaluate, evaluate_apart
from vita_ckpt.storage.tensors.native import BLOCK, Native, Range, compiled
from vita_ckpt.storage.tensors.stream import Inputs, Progress, no_progress, tensor_bytes

if TYPE_CHECKING:
    from vita_ckpt.storage.tensors.distance import Meter

Pair = tuple[Tensor, Tensor]

# Bytes that are compared at once. What differs mostly does so at its beginning.
_FIRST_STEP: Final = 1 << 16
_STEP: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of a pair: of bytes, or of elements, from ``start`` to ``stop``.

    ``nbytes`` is what is read of the larger side.
    """

    name: str
    before: Tensor
    after: Tensor
    start: int
    stop: int
    nbytes: int


def differing(
    pairs: Mapping[str, Pair], *, team: Team = ALONE, progress: Progress = no_progress
) -> frozenset[str]:
    """Return the names of the pairs that differ in some byte; each pair has one dtype and shape.

    A pair with the same location in one file is equal without being read. ``team`` shares what is
    read; ``progress`` is called with the bytes of one side. Raises StaleInputError for a file that
    changed since it was opened.
    """
    with team.agreement(), paused_collection():
        spans = list(_byte_spans(pairs))
        cut = portions(spans, _nbytes)
    # What need not be read is done.
    unread = sum(before.nbytes for before, _ in pairs.values()) - sum(map(_nbytes, spans))
    progress(unread // team.size)
    found = evaluate(
        _differing,
        cut,
        [sum(map(_nbytes, portion)) for portion in cut],
        team=team,
        progress=progress,
    )
    return frozenset().union(*found)


def are_equal(pairs: Mapping[str, Pair]) -> bool:
    """Return whether all pairs are the same bytes; it is known at the first that is not.

    Raises what :func:`differing` raises, and CastError where a conversion loses a value.
    """
    smallest_first = sorted(pairs.items(), key=lambda item: item[1][0].nbytes)
    return not any(differing({name: pair}) for name, pair in smallest_first if pair[0].nbytes)


def distances(
    pairs: Mapping[str, Pair],
    *,
    team: Team = ALONE,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, Distance]:
    """Return the distance of the values of each pair, of one shape and not in a packed dtype.

    ``team`` shares what is read, and ``workers`` measure it: threads where compiled loops do the
    work, else processes. ``progress`` is called with the bytes of the larger side. The sums are the
    same to the last digit whoever makes them.
    """
    native = compiled()
    repeats: dict[str, int] = {}
    spans: list[_Span] = []
    with team.agreement():
        for name, pair in _on_disk_order(pairs):
            before, after, repeats[name] = _squeezed(pair)
            _check_size(name, before, after)
            width = max(BITS[before.dtype], BITS[after.dtype]) // 8
            for start, stop in _spans(before, after, parameters(before), PORTION // width):
                spans.append(_Span(name, before, after, start, stop, (stop - start) * width))
    cut = portions(spans, _nbytes)
    sizes = [sum(map(_nbytes, portion)) for portion in cut]
    totals = dict.fromkeys(pairs, Distance())
    if native is not None and all(
        _is_plain(side) and native.measures(side.dtype) for pair in pairs.values() for side in pair
    ):
        measured = evaluate(
            _measured, cut, sizes, team=team, threads=workers, most=MOST, progress=progress
        )
    else:
        measured = evaluate_apart(
            _measured, cut, sizes, team=team, workers=workers, progress=progress
        )
    for portion, found in zip(cut, measured, strict=True):
        for span, distance in zip(portion, found, strict=True):
            totals[span.name] += distance
    return {name: total.times(repeats[name]) for name, total in totals.items()}


def _nbytes(span: _Span) -> int:
    return span.nbytes


def _byte_spans(pairs: Mapping[str, Pair]) -> Iterator[_Span]:
    """Yield what must be read to know whether pairs differ, in the order of the files."""
    same_file = _SameFile()
    for name, pair in _on_disk_order(pairs):
        before, after = pair
        if not (_is_plain(before) and _is_plain(after)):
            before, after, _ = _squeezed(pair)
        if same_file.same_place(before, after) or before == after:
            continue
        _check_size(name, before, after)
        for start, stop in _spans(before, after, before.nbytes, PORTION):
            yield _Span(name, before, after, start, stop, stop - start)


def _differing(spans: Sequence[_Span]) -> set[str]:
    """Return the names of the pairs that differ in one of some ranges of bytes."""
    found: set[str] = set()
    with Inputs() as inputs:
        for run in _runs(spans):
            first = run[0]
            if _is_plain(first.before) and _is_plain(first.after):
                _compare_run(run, inputs, found)
            elif first.name not in found:
                sides = (
                    _cut(tensor_bytes(tensor, inputs, first.name), _STEP)
                    for tensor in (first.before, first.after)
                )
                if any(old != new for old, new in zip(*sides, strict=True)):
                    found.add(first.name)
    return found


def _runs(spans: Sequence[_Span]) -> Iterator[list[_Span]]:
    """Group ranges of bytes that follow each other in both files: they are read as one."""
    run: list[_Span] = []
    end: tuple[File, int, File, int] | None = None
    for span in spans:
        before, after = span.before, span.after
        if _is_plain(before) and _is_plain(after):
            start = (
                before.source,
                before.offset + span.start,
                after.source,
                after.offset + span.start,
            )
        else:
            start = None
        if run and (start is None or start != end):
            yield run
            run = []
        run.append(span)
        size = span.stop - span.start
        end = start and (start[0], start[1] + size, start[2], start[3] + size)
    if run:
        yield run


def _compare_run(run: Sequence[_Span], inputs: Inputs, found: set[str]) -> None:
    """Add the names that differ in ranges that follow each other.

    Of a range nothing is read behind the block in which it is known to differ.
    """
    sides: list[Range] = []
    for tensor in (run[0].before, run[0].after):
        assert isinstance(tensor, TensorRef)  # noqa: S101 - plain
        place = tensor.offset + run[0].start
        sides.append(Range(inputs.descriptor(tensor.source), place, tensor.dtype))
    paths = [source_of(tensor) for tensor in (run[0].before, run[0].after)]
    stops: list[int] = []
    for span in run:
        stops.append((stops[-1] if stops else 0) + span.stop - span.start)
    native = compiled()
    differ = None if native is None else native.differing(sides[0], sides[1], stops)
    if differ is not None:
        found.update(run[index].name for index in differ)
        return
    # There are no loops, or they could not read the files: read_into says why.
    position, step = 0, _FIRST_STEP
    buffers = [bytearray(), bytearray()]
    while position < stops[-1]:
        size = min(step, stops[-1] - position)
        if size != len(buffers[0]):
            buffers = [bytearray(size) for _ in sides]
        for side, path, buffer in zip(sides, paths, buffers, strict=True):
            read_into(side.descriptor, memoryview(buffer), side.offset + position, path)
        end, step = position + size, min(2 * step, _STEP)
        if buffers[0] != buffers[1]:
            index, last = bisect_right(stops, position), len(run) - 1
            start = position
            while start < end:
                stop = min(stops[index], end)
                old, new = (side[start - position : stop - position] for side in buffers)
                if old != new:
                    found.add(run[index].name)
                start, index = stop, min(index + 1, last)
            index = bisect_right(stops, end)
            if index <= last and run[index].name in found:
                end, step = stops[index], _FIRST_STEP
        position = end


def _measured(spans: Sequence[_Span]) -> list[Distance]:
    """Return the distance of each of some ranges of elements."""
    native = compiled()
    meter: Meter | None = None
    found: list[Distance] = []
    with Inputs() as inputs:
        for span in spans:
            distance = _natively(span, native, inputs)
            if distance is None:
                if meter is None:
                    from vita_ckpt.storage.tensors.distance import Meter  # noqa: PLC0415 - numpy

                    meter = Meter()
                distance = _distance(span, meter, inputs)
            found.append(distance)
    return found


def _natively(span: _Span, native: Native | None, inputs: Inputs) -> Distance | None:
    """Return the distance of a range of elements, None if compiled loops do not have it."""
    sides = span.before, span.after
    if native is None or not all(_is_plain(side) and native.measures(side.dtype) for side in sides):
        return None
    before, after = (
        Range(
            inputs.descriptor(side.source),
            side.offset + span.start * BITS[side.dtype] // 8,
            side.dtype,
        )
        for side in sides
        if _is_plain(side)
    )
    return native.distance(before, after, span.stop - span.start)


def _distance(span: _Span, meter: Meter, inputs: Inputs) -> Distance:
    """Return the distance of a range of elements, ``BLOCK`` of them at a time."""
    dtypes = span.before.dtype, span.after.dtype
    widths = [BITS[dtype] // 8 for dtype in dtypes]
    total = Distance()
    before, after = (
        _blocks(tensor, inputs, span.name, span.start * width, span.stop * width, BLOCK * width)
        for tensor, width in zip((span.before, span.after), widths, strict=True)
    )
    if span.before == span.after:
        for block in before:
            total += meter.distance(block, block, dtypes)
    else:
        for old, new in zip(before, after, strict=True):
            total += meter.distance(old, new, dtypes)
    return total


def _blocks(
    tensor: Tensor, inputs: Inputs, name: str, start: int, stop: int, step: int
) -> Iterator[memoryview]:
    """Yield bytes ``start`` to ``stop`` in blocks of ``step``.

    Each block is valid until the next one is requested.
    """
    if not _is_plain(tensor):
        for data in _cut(tensor_bytes(tensor, inputs, name), step):
            yield memoryview(data)
        return
    descriptor, path = inputs.descriptor(tensor.source), tensor.source.path
    memory = memoryview(mmap(-1, PAGE + min(step, stop - start)))
    while start < stop:
        offset = tensor.offset + start
        block = memory[offset % PAGE :][: min(step, stop - start)]
        read_into(descriptor, block, offset, path)
        yield block
        start += len(block)


def _cut(pieces: Iterable[bytes], step: int) -> Iterator[bytearray]:
    """Yield the same bytes in pieces of ``step``."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % step
        for start in range(0, whole, step):
            yield rest[start : start + step]
        del rest[:whole]
    if rest:
        yield rest


def _spans(before: Tensor, after: Tensor, size: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield ranges to process independently; a tensor that must be streamed is a single range."""
    if not (_is_plain(before) and _is_plain(after)):
        step = size
    for start in range(0, size, max(step, 1)):
        yield start, min(start + step, size)


def _is_plain(tensor: Tensor) -> TypeGuard[TensorRef]:
    return isinstance(tensor, TensorRef) and tensor.strides is None


def _squeezed(pair: Pair) -> tuple[Tensor, Tensor, int]:
    """Return a pair without the dimensions along which both sides repeat, and the repeat count."""
    before, after = pair
    if not (isinstance(before, TensorRef) and isinstance(after, TensorRef)):
        return before, after, 1
    if before.strides is None or after.strides is None:
        return before, after, 1
    shape, repeats = list(before.shape), 1
    for axis, strides in enumerate(zip(before.strides, after.strides, strict=True)):
        if strides == (0, 0) and shape[axis]:
            repeats *= shape[axis]
            shape[axis] = 1
    return replace(before, shape=tuple(shape)), replace(after, shape=tuple(shape)), repeats


def _check_size(name: str, before: Tensor, after: Tensor) -> None:
    """Raise MalformedFileError if both sides are views larger than their files.

    Strided views may be larger than their files by any factor, which would make a comparison
    unbounded.
    """
    views = [t for t in (before, after) if isinstance(t, TensorRef) and t.strides is not None]
    if len(views) == 2 and before.nbytes > max(view.source.size for view in views):
        raise MalformedFileError(
            "view-too-large",
            f"{views[0].source.path}: {name}",
            expected="a view of no more bytes than its file has",
            got=f"{before.nbytes} bytes in rows that overlap",
            hint="save a contiguous copy of it",
        )


def _on_disk_order(pairs: Mapping[str, Pair]) -> list[tuple[str, Pair]]:
    """Return the pairs in the order of the first sides in their files."""

    def place(entry: tuple[str, Pair]) -> tuple[str, int, str]:
        name, (before, _) = entry
        ref = before if isinstance(before, TensorRef) else None
        return (ref.source.path, ref.offset, name) if ref else ("", 0, name)

    return sorted(pairs.items(), key=place)


class _SameFile:
    """A check whether two tensors are the same bytes, also through hard and symbolic links."""

    def __init__(self) -> None:
        self._nodes: dict[LocalFile, tuple[int, int]] = {}
        # By the object itself, which the tensors of a file share.
        self._known: dict[int, tuple[File, tuple[int, int]]] = {}

    def same_place(self, before: Tensor, after: Tensor) -> bool:
        """Return whether both are the same range of one file."""
        return (
            isinstance(before, TensorRef)
            and isinstance(after, TensorRef)
            and (before.offset, before.strides) == (after.offset, after.strides)
            and before.source.size == after.source.size
            and self._node(before.source) == self._node(after.source)
        )

    def _node(self, file: File) -> tuple[int, int]:
        known = self._known.get(id(file))
        if known is None:
            known = self._known[id(file)] = file, self._node_of(on_disk(file))
        return known[1]

    def _node_of(self, file: LocalFile) -> tuple[int, int]:
        if file not in self._nodes:
            with opened(file.path) as (descriptor, seen):
                check_same(file, seen)
                status = os.fstat(descriptor)
            self._nodes[file] = status.st_dev, status.st_ino
        return self._nodes[file]
