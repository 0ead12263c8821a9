"""Pass every byte of tensors to a visitor, read once by a few threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from mmap import mmap
from threading import Lock
from typing import Final

from vita_ckpt.core.checkpoint import LocalFile, TensorRef, on_disk
from vita_ckpt.core.dtype import BITS
from vita_ckpt.storage.stores.local import check_same, identify, opened, read_into
from vita_ckpt.storage.system.threads import run_all
from vita_ckpt.storage.tensors.stream import Progress, no_progress

# A tensor, the bytes of some whole elements of it as they lie in the file, and the number of the
# first of them, counted from the tensor's element 0. The bytes are gone after the call.
Visit = Callable[[TensorRef, memoryview, int], None]

# Small enough to be looked at while it is still in the processor's cache. Of a strided tensor less
# is given at once: whoever tells its elements from what lies between needs room for their numbers.
_BLOCK: Final = 2 << 20
_STRIDED: Final = 1 << 18
# Bytes are read to where they lie in a page of the file: some processors copy them to a place a
# little further on at a sixth of the speed.
_PAGE: Final = 4096
# Blocks that a thread takes at once: it reads them in a row.
_TAKEN: Final = 16
# Reading on over a gap of this size costs less than another call.
_GAP: Final = 4096
_REPORT: Final = 0.1  # seconds between two calls of a progress

_Piece = tuple[TensorRef, int, int]  # offset in the file, and bytes


def scan(
    tensors: Iterable[TensorRef],
    visit: Visit,
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> None:
    """Give ``visit`` all that lies in the files between the first and the last byte of each tensor.

    It is called by ``threads`` threads (by default two, as many as keep a disk or a page cache
    busy) in no order; an error of its ends the scan. ``progress`` is told, ten times a second,
    how many bytes were read since. Memory is that of a buffer of 2 MB for each thread.

    Raises StaleInputError if a file is not the one that was opened, or changes meanwhile, and
    InputError if it cannot be read.
    """
    by_place = sorted(tensors, key=lambda tensor: (tensor.source.path, tensor.offset))
    blocks = _blocks(_pieces(by_place))
    _Scan(blocks, visit, progress).run(threads or min(os.cpu_count() or 1, 2))
    for file in {tensor.source.path: on_disk(tensor.source) for tensor in by_place}.values():
        check_same(file, identify(file.path))


@dataclass(frozen=True, slots=True)
class _Block:
    """What is read by one call, and which parts of it are whose."""

    file: LocalFile
    offset: int
    size: int
    pieces: list[_Piece]


def _pieces(tensors: Iterable[TensorRef]) -> Iterator[_Piece]:
    for tensor in tensors:
        end = tensor.offset + tensor.span
        step = _BLOCK if tensor.strides is None else _STRIDED
        for offset in range(tensor.offset, end, step):
            yield tensor, offset, min(step, end - offset)


def _blocks(pieces: Iterable[_Piece]) -> Iterator[_Block]:
    taken: list[_Piece] = []
    path, start, end = "", 0, 0
    for piece in pieces:
        tensor, offset, size = piece
        joins = start <= offset <= end + _GAP and offset + size <= start + _BLOCK
        if taken and not (joins and tensor.source.path == path):
            yield _Block(on_disk(taken[0][0].source), start, end - start, taken)
            taken = []
        if not taken:
            path, start, end = tensor.source.path, offset, offset
        taken.append(piece)
        end = max(end, offset + size)
    if taken:
        yield _Block(on_disk(taken[0][0].source), start, end - start, taken)


class _Scan:
    """Blocks handed out to threads, until there are no more or one of them fails."""

    def __init__(self, blocks: Iterator[_Block], visit: Visit, progress: Progress) -> None:
        self._blocks = blocks
        self._visit = visit
        self._progress = progress
        self._lock = Lock()
        self._stopped = False
        self._unreported = 0
        self._reported_at = time.monotonic()

    def run(self, threads: int) -> None:
        """Work with ``threads`` threads; raise the first error of any."""
        try:
            run_all([self._work_or_stop] * threads, threads)
        finally:
            self._stopped = True
        self._report()

    def _work_or_stop(self) -> None:
        try:
            self._work()
        except BaseException:
            self._stopped = True
            raise

    def _work(self) -> None:
        buffer = memoryview(mmap(-1, _PAGE + _BLOCK))
        for file, blocks in groupby(self._take(), lambda block: block.file):
            # A descriptor of its own: a checkpoint may have more files than a process may open.
            with opened(file.path) as (descriptor, seen):
                check_same(file, seen)
                for block in blocks:
                    start = block.offset % _PAGE
                    data = buffer[start : start + block.size]
                    read_into(descriptor, data, block.offset, file.path)
                    for tensor, offset, size in block.pieces:
                        start = offset - block.offset
                        position = (offset - tensor.offset) * 8 // BITS[tensor.dtype]
                        self._visit(tensor, data[start : start + size], position)

    def _take(self) -> Iterator[_Block]:
        done = 0
        while True:
            with self._lock:
                self._advance(done)
                blocks = [] if self._stopped else list(islice(self._blocks, _TAKEN))
            if not blocks:
                return
            yield from blocks
            done = sum(block.size for block in blocks)

    def _advance(self, count: int) -> None:
        self._unreported += count
        if time.monotonic() - self._reported_at > _REPORT:
            self._report()

    def _report(self) -> None:
        self._progress(self._unreported)
        self._unreported = 0
        self._reported_at = time.monotonic()
