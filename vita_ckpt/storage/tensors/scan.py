"""Summarise every byte of tensors, each read once, in portions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from mmap import mmap
from threading import local
from typing import Final, Generic, Protocol, TypeVar

from vita_ckpt.core.checkpoint import LocalFile, TensorRef, on_disk
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import BITS
from vita_ckpt.core.team import ALONE, PORTION, Team, portions
from vita_ckpt.storage.stores.local import PAGE, check_same, identify, opened, read_into
from vita_ckpt.storage.system.workers import evaluate
from vita_ckpt.storage.tensors.stream import Progress, no_progress


class Summary(Protocol):
    """What is known of some elements; ``+`` combines it for disjoint ones."""

    def __add__(self: S, other: S, /) -> S: ...


S = TypeVar("S", bound=Summary)

# A function of a tensor, the bytes of some of its elements in file order, and the index of the
# first of them, counted from the tensor's element 0. The bytes are valid only during the call.
Summarise = Callable[[TensorRef, memoryview, int], S]
# What reads by itself: a function of a tensor, a descriptor of its file, an offset and a number of
# bytes, which are whole elements. None where the bytes must be looked at.
Glance = Callable[[TensorRef, int, int, int], "S | None"]

# Bytes of a block, small enough to stay in the processor's cache while it is visited. Blocks of
# strided tensors are smaller, because a visitor needs memory for the indices of their elements.
_BLOCK: Final = 1 << 20
_STRIDED: Final = 1 << 18
# The largest gap that is cheaper to read than to skip with another call.
_GAP: Final = 4096

_Piece = tuple[TensorRef, int, int]  # offset in the file, and bytes


def scan(
    tensors: Iterable[TensorRef],
    summarise: Summarise[S],
    *,
    glance: Glance[S] | None = None,
    team: Team = ALONE,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> dict[TensorRef, S]:
    """Return the summary of all bytes between the first and the last byte of each tensor.

    Tensors without bytes are left out. The bytes are cut into portions, which ``team`` shares and
    ``threads`` read: see :func:`~vita_ckpt.storage.system.workers.evaluate`. Summaries are
    combined in the order of the bytes, whoever makes them. Tensors that are large and contiguous
    are first offered to ``glance``. Raises StaleInputError if a file is not the one that was opened
    or changes meanwhile, InputError if it cannot be read, and whatever ``summarise`` raises.
    """
    by_place = sorted(tensors, key=lambda tensor: (tensor.source.path, tensor.offset))
    cut = portions(_blocks(_pieces(by_place, glance is not None)), lambda block: block.size)
    sizes = [sum(block.size for block in portion) for portion in cut]
    work = _Summary(summarise, glance)
    totals: dict[TensorRef, S] = {}
    for found in evaluate(work, cut, sizes, team=team, threads=threads, progress=progress):
        for tensor, summary in found:
            totals[tensor] = totals[tensor] + summary if tensor in totals else summary
    with team.agreement():
        for file in {tensor.source.path: on_disk(tensor.source) for tensor in by_place}.values():
            check_same(file, identify(file.path))
    return totals


@dataclass(frozen=True, slots=True)
class _Block:
    """A range of bytes, and the pieces of tensors in it: one, or all that one call reads."""

    file: LocalFile
    offset: int
    size: int
    pieces: list[_Piece]


def _pieces(tensors: Iterable[TensorRef], at_a_glance: bool) -> Iterator[_Piece]:
    for tensor in tensors:
        end = tensor.offset + tensor.span
        contiguous = PORTION if at_a_glance else _BLOCK
        step = contiguous if tensor.strides is None else _STRIDED
        for offset in range(tensor.offset, end, step):
            yield tensor, offset, min(step, end - offset)


def _blocks(pieces: Iterable[_Piece]) -> Iterator[_Block]:
    taken: list[_Piece] = []
    path, start, end = "", 0, 0
    for piece in pieces:
        tensor, offset, size = piece
        joins = start <= offset <= end + _GAP and max(end, offset + size) <= start + _BLOCK
        if taken and not (joins and tensor.source.path == path):
            yield _Block(on_disk(taken[0][0].source), start, end - start, taken)
            taken = []
        if not taken:
            path, start, end = tensor.source.path, offset, offset
        taken.append(piece)
        end = max(end, offset + size)
    if taken:
        yield _Block(on_disk(taken[0][0].source), start, end - start, taken)


_own: Final = local()


def _buffer() -> memoryview:
    """Return the buffer of this thread: its pages are taken once, not once a portion."""
    if not hasattr(_own, "buffer"):
        _own.buffer = memoryview(mmap(-1, PAGE + _BLOCK))
    buffer: memoryview = _own.buffer
    return buffer


@dataclass(frozen=True, slots=True)
class _Summary(Generic[S]):
    """The work of a scan: the summaries of the pieces in some blocks."""

    summarise: Summarise[S]
    glance: Glance[S] | None

    def __call__(self, blocks: Sequence[_Block]) -> list[tuple[TensorRef, S]]:
        """Return each tensor with its summary, in the order of the bytes."""
        found: list[tuple[TensorRef, S]] = []
        for file, group in groupby(blocks, lambda block: block.file):
            # Opened only while it is read: a checkpoint may have more files than a process may
            # open.
            with opened(file.path) as (descriptor, seen):
                check_same(file, seen)
                for block in group:
                    for tensor, summary in self._summaries(block, descriptor):
                        if found and found[-1][0] is tensor:
                            found[-1] = tensor, found[-1][1] + summary
                        else:
                            found.append((tensor, summary))
        return found

    def _summaries(self, block: _Block, descriptor: int) -> Iterator[tuple[TensorRef, S]]:
        if block.size <= _BLOCK:
            yield from self._read(block, descriptor)
            return
        ((tensor, offset, size),) = block.pieces
        assert self.glance is not None  # noqa: S101 - else no block is larger
        summary = self.glance(tensor, descriptor, offset, size)
        if summary is not None:
            yield tensor, summary
            return
        for start in range(offset, offset + size, _BLOCK):
            length = min(_BLOCK, offset + size - start)
            piece = tensor, start, length
            yield from self._read(_Block(block.file, start, length, [piece]), descriptor)

    def _read(self, block: _Block, descriptor: int) -> Iterator[tuple[TensorRef, S]]:
        start = block.offset % PAGE
        data = _buffer()[start : start + block.size]
        read_into(descriptor, data, block.offset, block.file.path)
        for tensor, offset, size in block.pieces:
            start = offset - block.offset
            position = (offset - tensor.offset) * 8 // BITS[tensor.dtype]
            yield tensor, self.summarise(tensor, data[start : start + size], position)
