"""Read tensors into pinned memory while earlier copies to the GPU go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from vita_ckpt.storage.stores.local import read_into

# One read and one copy: long enough to cost nothing, and memory that is pinned four times.
STEP: Final = 32 << 20
_THREADS: Final = 2
_BUFFERS: Final = 4


@dataclass(frozen=True)
class Source:
    """Where a tensor's bytes lie: an open descriptor, its path for errors, and the offset."""

    descriptor: int
    path: str
    offset: int


def staged(wanted: Iterable[tuple[Source, Tensor]], step: int = STEP) -> Iterator[Tensor]:
    """Fill every tensor with its bytes, ``step`` at a time, and yield it, in order.

    The tensors are empty and contiguous; what is enqueued on their device's current stream after
    they are yielded sees their values. Raises MalformedFileError if a file ends too early.
    """
    buffers: list[_Buffer] = []
    reading: deque[tuple[_Piece, _Buffer, Future[None]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for number, piece in enumerate(_pieces(wanted, step)):
            if number < _BUFFERS:
                buffers.append(_Buffer(step, pinned=piece.tensor.is_cuda))
            else:
                yield from _copy(*reading.popleft())
            buffer = buffers[number % _BUFFERS]
            reading.append((piece, buffer, pool.submit(_read, piece, buffer)))
        while reading:
            yield from _copy(*reading.popleft())


class _Buffer:
    """Memory that is read into and copied from, in turn."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.data = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.memory: memoryview = self.data.numpy().data
        self.copied: torch.cuda.Event | None = None


@dataclass(frozen=True)
class _Piece:
    """Bytes from ``start`` of a tensor; the last piece completes it."""

    source: Source
    tensor: Tensor
    start: int
    size: int
    last: bool


def _pieces(wanted: Iterable[tuple[Source, Tensor]], step: int) -> Iterator[_Piece]:
    for source, tensor in wanted:
        for start in range(0, max(tensor.nbytes, 1), step):
            left = tensor.nbytes - start
            yield _Piece(source, tensor, start, min(step, left), left <= step)


def _read(piece: _Piece, buffer: _Buffer) -> None:
    if buffer.copied is not None:
        buffer.copied.synchronize()
    source = piece.source
    read_into(
        source.descriptor, buffer.memory[: piece.size], source.offset + piece.start, source.path
    )


def _copy(piece: _Piece, buffer: _Buffer, reading: Future[None]) -> Iterator[Tensor]:
    reading.result()
    target = piece.tensor.reshape(-1).view(torch.uint8)[piece.start : piece.start + piece.size]
    target.copy_(buffer.data[: piece.size], non_blocking=True)
    if piece.tensor.is_cuda:
        buffer.copied = torch.cuda.current_stream(piece.tensor.device).record_event()
    if piece.last:
        yield piece.tensor
