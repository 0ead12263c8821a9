"""Compare pairs of tensors byte by byte or value by value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Final, TypeGuard, TypeVar

from vita_ckpt.core.checkpoint import File, LocalFile, Tensor, TensorRef, on_disk, parameters
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import MalformedFileError
from vita_ckpt.storage.stores.local import check_same, opened, read_into
from vita_ckpt.storage.system.threads import run_all
from vita_ckpt.storage.tensors.stream import Inputs, Progress, no_progress, tensor_bytes

Pair = tuple[Tensor, Tensor]
_Result = TypeVar("_Result")

_THREADS: Final = 2
_STEP: Final = 1 << 20
# Bytes of one unit of work; larger tensors are split between threads.
_SPAN: Final = 64 << 20


def differing(pairs: Mapping[str, Pair], progress: Progress = no_progress) -> frozenset[str]:
    """Return the names of the pairs that differ in some byte; each pair has one dtype and shape.

    A pair with the same location in one file is equal without being read. ``progress`` is called
    with the bytes of one side as they are compared, or need not be. Raises StaleInputError for a
    file that changed since it was opened.
    """
    same_file = _SameFile()
    found: set[str] = set()
    jobs: list[Callable[[], None]] = []
    for name, pair in _on_disk_order(pairs):
        before, after, _ = _squeezed(pair)
        if before == after or same_file.same_place(before, after):
            progress(pair[0].nbytes)
            continue
        _check_size(name, before, after)
        progress(pair[0].nbytes - before.nbytes)
        for start, stop in _spans(before, after, before.nbytes, _SPAN):
            compare = partial(_compare_range, name, (before, after), start, stop, found, progress)
            jobs.append(compare)
    run_all(jobs, _THREADS)
    return frozenset(found)


def are_equal(pairs: Mapping[str, Pair]) -> bool:
    """Return whether all pairs are the same bytes; it is known at the first that is not.

    Raises what :func:`differing` raises, and CastError where a conversion loses a value.
    """
    smallest_first = sorted(pairs.items(), key=lambda item: item[1][0].nbytes)
    return not any(differing({name: pair}) for name, pair in smallest_first if pair[0].nbytes)


def distances(pairs: Mapping[str, Pair], progress: Progress = no_progress) -> dict[str, Distance]:
    """Return the distance of the values of each pair, of one shape and not in a packed dtype.

    ``progress`` is called with the bytes of the first side as they are measured.
    """
    jobs: list[Callable[[], Distance]] = []
    names: list[str] = []
    for name, pair in _on_disk_order(pairs):
        before, after, repeats = _squeezed(pair)
        _check_size(name, before, after)
        for start, stop in _spans(before, after, parameters(before), _SPAN // 4):
            job = partial(_measure, name, (before, after), start, stop, repeats, progress)
            jobs.append(job)
            names.append(name)
    totals = dict.fromkeys(pairs, Distance())
    for name, distance in zip(names, run_all(jobs, _THREADS), strict=True):
        totals[name] += distance
    return totals


def _compare_range(
    name: str, pair: Pair, start: int, stop: int, found: set[str], progress: Progress
) -> None:
    """Add ``name`` to ``found`` if bytes ``start`` to ``stop`` of the pair differ."""
    with Inputs() as inputs:
        before, after = (_blocks(tensor, inputs, name, start, stop, _STEP) for tensor in pair)
        done = 0
        for old, new in zip(before, after, strict=True):
            if name in found:
                break
            if old != new:
                found.add(name)
                break
            done += len(old)
            progress(len(old))
    progress(stop - start - done)  # what need not be read


def _measure(
    name: str, pair: Pair, start: int, stop: int, repeats: int, progress: Progress
) -> Distance:
    """Return the distance of the elements from ``start`` to ``stop``."""
    from vita_ckpt.storage.tensors.distance import BLOCK, Meter  # noqa: PLC0415 - numpy

    meter, total = Meter(), Distance()
    dtypes = pair[0].dtype, pair[1].dtype
    widths = [BITS[dtype] // 8 for dtype in dtypes]
    with Inputs() as inputs:
        before, after = (
            _blocks(tensor, inputs, name, start * width, stop * width, BLOCK * width)
            for tensor, width in zip(pair, widths, strict=True)
        )
        if pair[0] == pair[1]:
            for block in before:
                total += meter.distance(block, block, dtypes)
                progress(len(block) * repeats)
        else:
            for old, new in zip(before, after, strict=True):
                total += meter.distance(old, new, dtypes)
                progress(len(old) * repeats)
    return total.times(repeats)


def _blocks(
    tensor: Tensor, inputs: Inputs, name: str, start: int, stop: int, step: int
) -> Iterator[bytes | bytearray]:
    """Yield bytes ``start`` to ``stop`` in blocks of ``step``.

    Each block is valid until the next one is requested.
    """
    if not _is_plain(tensor):
        yield from _cut(tensor_bytes(tensor, inputs, name), step)
        return
    descriptor, path = inputs.descriptor(tensor.source), tensor.source.path
    buffer = bytearray(min(step, stop - start))
    while start < stop:
        if stop - start < len(buffer):
            buffer = bytearray(stop - start)
        read_into(descriptor, memoryview(buffer), tensor.offset + start, path)
        yield buffer
        start += len(buffer)


def _cut(pieces: Iterable[bytes], step: int) -> Iterator[bytes | bytearray]:
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
        file = on_disk(file)
        if file not in self._nodes:
            with opened(file.path) as (descriptor, seen):
                check_same(file, seen)
                status = os.fstat(descriptor)
            self._nodes[file] = status.st_dev, status.st_ino
        return self._nodes[file]
