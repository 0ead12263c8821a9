"""Stream the bytes of a tensor: copied by the kernel, or converted for a cast."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from threading import Lock
from typing import Final, Protocol

from vita_ckpt.core.checkpoint import (
    File,
    LocalFile,
    Pieces,
    RandomInit,
    Tensor,
    TensorRef,
    on_disk,
)
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import CastError
from vita_ckpt.storage.stores.local import check_same, opened, read_at
from vita_ckpt.storage.system.syscalls import copy_range, start_writeback

Progress = Callable[[int], None]

# Bytes of one step of a copy: large enough to hide the overhead, small enough for writeback to keep
# up.
_STEP: Final = 32 << 20
_CAST_STEP: Final = 4 << 20
_SMALLEST_STEP: Final = 64 << 10


def no_progress(_count: int) -> None:
    """Ignore progress."""


class Inputs(AbstractContextManager["Inputs"]):
    """Descriptors of the input files, each opened once and checked against its fingerprint."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._descriptors: dict[LocalFile, int] = {}

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self._stack.close()

    def descriptor(self, file: File) -> int:
        """Return a descriptor of ``file``. Raises StaleInputError if the file has changed."""
        file = on_disk(file)
        with self._lock:
            if file not in self._descriptors:
                descriptor, seen = self._stack.enter_context(opened(file.path))
                check_same(file, seen)
                self._descriptors[file] = descriptor
            return self._descriptors[file]


class Writer:
    """An output descriptor that starts writeback while writing, so that fsync waits less."""

    def __init__(self, descriptor: int, progress: Progress) -> None:
        self._descriptor = descriptor
        self._progress = progress
        self._written = 0

    def write(self, data: bytes) -> None:
        """Append ``data``."""
        view = memoryview(data)
        while view:
            count = os.write(self._descriptor, view[:_STEP])
            self._advance(count)
            view = view[count:]

    def copy(self, source: int, offset: int, size: int, path: str) -> None:
        """Append ``size`` bytes of the descriptor ``source`` from ``offset``, inside the kernel."""
        while size:
            count = copy_range(source, offset, self._descriptor, min(size, _STEP))
            if count:
                self._advance(count)
            else:  # another file system, or a shortened file, for which reading fails
                data = read_at(source, min(size, _CAST_STEP), offset, path)
                self.write(data)
                count = len(data)
            offset += count
            size -= count

    def _advance(self, count: int) -> None:
        start_writeback(self._descriptor, self._written, count)
        self._written += count
        self._progress(count)


class Hash(Protocol):
    """The interface of a hashlib digest."""

    def update(self, data: bytes, /) -> None:
        """Add more bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all bytes so far, in hex."""


def write_tensor(
    tensor: Tensor, inputs: Inputs, name: str, writer: Writer, digest: Hash | None = None
) -> None:
    """Append the contiguous bytes of ``tensor``. Raises CastError where a cast loses a value.

    Digested bytes pass through this process; without ``digest`` the kernel may copy them.
    """
    if isinstance(tensor, Pieces) and tensor.runs == 1:
        for part in tensor.parts:
            write_tensor(part, inputs, name, writer, digest)
        return
    if digest is None and isinstance(tensor, TensorRef) and tensor.strides is None:
        source = inputs.descriptor(tensor.source)
        writer.copy(source, tensor.offset, tensor.nbytes, tensor.source.path)
        return
    for data in tensor_bytes(tensor, inputs, name):
        if digest is not None:
            digest.update(data)
        writer.write(data)


def tensor_bytes(
    tensor: Tensor, inputs: Inputs, name: str, step: int = _CAST_STEP
) -> Iterator[bytes]:
    """Yield the contiguous bytes of ``tensor`` in pieces, of stored ones of ``step`` bytes at most.

    The span of a strided view is read at once. Raises CastError where a cast loses a value.
    """
    if isinstance(tensor, Pieces):
        if tensor.runs > 1:
            yield from _interleaved(tensor, inputs, name)
            return
        for part in tensor.parts:
            yield from tensor_bytes(part, inputs, name, step)
        return
    if isinstance(tensor, RandomInit):
        from vita_ckpt.storage.tensors.random_init import drawn_bytes  # noqa: PLC0415 - numpy

        yield from drawn_bytes(tensor)
        return
    if isinstance(tensor, TensorRef):
        yield from _ref_bytes(tensor, inputs, step)
        return
    ref = tensor.ref
    from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert  # noqa: PLC0415 - numpy

    position = 0
    for data in _ref_bytes(ref, inputs, step):
        try:
            yield convert(data, ref.dtype, tensor.dtype)
        except BecomesInfiniteError as error:
            raise CastError(
                "cast-overflow",
                f"{ref.source.path}: {name}",
                expected=f"values that {tensor.dtype} can hold",
                got=f"{error.value:g} at element {position + error.index}",
                hint="mend the file; merge-projector --dtype keeps the dtype of an adapter",
            ) from error
        position += len(data) * 8 // BITS[ref.dtype]


def _interleaved(pieces: Pieces, inputs: Inputs, name: str) -> Iterator[bytes]:
    """Yield the bytes of a tensor whose parts are cut into runs, several runs at a time."""
    sizes = [part.nbytes // pieces.runs for part in pieces.parts]
    # Whole elements of any dtype.
    step = max(_SMALLEST_STEP, _CAST_STEP // len(pieces.parts) // 8 * 8)
    streams = [_Stream(tensor_bytes(part, inputs, name, step)) for part in pieces.parts]
    most = max(1, _CAST_STEP // max(sum(sizes), 1))
    if most == 1:  # runs that are too long to be held
        for _ in range(pieces.runs):
            for stream, size in zip(streams, sizes, strict=True):
                yield from stream.pieces(size)
        return
    for start in range(0, pieces.runs, most):
        count = min(most, pieces.runs - start)
        blocks = [
            b"".join(stream.pieces(count * size))
            for stream, size in zip(streams, sizes, strict=True)
        ]
        yield b"".join(
            block[run * size : (run + 1) * size]
            for run in range(count)
            for block, size in zip(blocks, sizes, strict=True)
        )


class _Stream:
    """The bytes of a tensor, taken as many at a time as are wanted."""

    def __init__(self, source: Iterator[bytes]) -> None:
        self._source = source
        self._rest = memoryview(b"")

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes."""
        while size:
            if not self._rest:
                self._rest = memoryview(next(self._source))
            taken, self._rest = self._rest[:size], self._rest[size:]
            size -= len(taken)
            yield bytes(taken)


def _ref_bytes(ref: TensorRef, inputs: Inputs, step: int) -> Iterator[bytes]:
    if 0 in ref.shape:
        return
    source, path = inputs.descriptor(ref.source), ref.source.path
    if ref.strides is not None:
        from vita_ckpt.storage.tensors.cast import gather  # noqa: PLC0415 - numpy only where it is needed

        width = BITS[ref.dtype] // 8
        data = read_at(source, ref.span, ref.offset, path)
        yield from gather(data, width, ref.shape, ref.strides, step)
        return
    offset, left = ref.offset, ref.nbytes
    while left:
        data = read_at(source, min(left, step), offset, path)
        yield data
        offset += len(data)
        left -= len(data)
