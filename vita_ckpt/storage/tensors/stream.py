"""Stream the bytes of a tensor: copied by the kernel, or converted for a cast."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from threading import Lock
from typing import Final, Protocol

from vita_ckpt.core.checkpoint import (
    Cast,
    File,
    LocalFile,
    LoraMerge,
    Mean,
    Part,
    Pieces,
    RandomInit,
    Stored,
    Tensor,
    TensorRef,
    on_disk,
    parameters,
)
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import CastError
from vita_ckpt.storage.stores.local import check_same, opened, read_at
from vita_ckpt.storage.system.blas import one_thread
from vita_ckpt.storage.system.syscalls import copy_range, start_writeback

Progress = Callable[[int], None]

# Bytes of one step of a copy: large enough to hide the overhead, small enough for writeback to keep
# up.
_STEP: Final = 32 << 20
_READ_STEP: Final = 4 << 20
# What is converted stays in the processor's cache: larger blocks take three times as long.
_CAST_STEP: Final = 256 << 10
_SMALLEST_STEP: Final = 64 << 10

# Is called with a tensor's name and how many of its values became zero in a conversion.
Flushed = Callable[[str, int], None]


def no_progress(_count: int) -> None:
    """Ignore progress."""


def not_said(_name: str, _count: int) -> None:
    """Ignore values that became zero."""


class Inputs(AbstractContextManager["Inputs"]):
    """Descriptors of the input files, each opened once and checked against its fingerprint.

    ``flushed`` is told of values that become zero when they are converted.
    """

    def __init__(self, flushed: Flushed = not_said) -> None:
        self._stack = ExitStack()
        self._lock = Lock()
        self._flushed = flushed
        self._descriptors: dict[LocalFile, int] = {}
        self._multiplies = False

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor."""
        self._stack.close()

    def begin_products(self) -> None:
        """Let each product of matrices run in one thread, until these inputs are closed."""
        with self._lock:
            if not self._multiplies:
                self._multiplies = True
                self._stack.enter_context(one_thread())

    def note_flushed(self, name: str, count: int) -> None:
        """Pass on that ``count`` values of a tensor became zero in a conversion."""
        with self._lock:
            self._flushed(name, count)

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
                data = read_at(source, min(size, _READ_STEP), offset, path)
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
    tensor: Tensor, inputs: Inputs, name: str, step: int = _READ_STEP
) -> Iterator[bytes]:
    """Yield the contiguous bytes of ``tensor`` in pieces, of stored ones of ``step`` bytes at most.

    The span of a strided view is read at once. Raises CastError where a cast loses a value.
    """
    if not isinstance(tensor, Pieces):
        yield from _part_bytes(tensor, inputs, name, step)
    elif tensor.runs > 1:
        yield from _interleaved(tensor, inputs, name)
    else:
        for part in tensor.parts:
            yield from tensor_bytes(part, inputs, name, step)


def _part_bytes(part: Part, inputs: Inputs, name: str, step: int) -> Iterator[bytes]:
    if isinstance(part, RandomInit):
        from vita_ckpt.storage.tensors.random_init import drawn_bytes  # noqa: PLC0415 - numpy

        yield from drawn_bytes(part)
    elif isinstance(part, TensorRef):
        yield from _ref_bytes(part, inputs, step)
    elif isinstance(part, Mean):
        from vita_ckpt.storage.tensors.mean import mean_bytes  # noqa: PLC0415 - numpy

        yield from mean_bytes(part, _ref_bytes(part.ref, inputs, _CAST_STEP), name)
    elif isinstance(part, LoraMerge):
        from vita_ckpt.storage.tensors.lora import merged_bytes  # noqa: PLC0415 - numpy

        inputs.begin_products()
        yield from merged_bytes(part, partial(_read_range, inputs), name)
    else:
        yield from _cast_bytes(part, inputs, name, min(step, _CAST_STEP))


def _cast_bytes(cast: Cast, inputs: Inputs, name: str, step: int) -> Iterator[bytes]:
    from vita_ckpt.storage.tensors.cast import (  # noqa: PLC0415 - numpy
        BecomesInfiniteError,
        convert,
        count_flushed,
        most,
    )

    ref, position = cast.ref, 0
    for data in _ref_bytes(ref, inputs, step):
        try:
            converted = convert(data, ref.dtype, cast.dtype)
        except BecomesInfiniteError as error:
            times = abs(error.value) / most(cast.dtype)
            raise CastError(
                "cast-overflow",
                f"{ref.source.path}: {name}",
                expected=f"values that {cast.dtype} can hold",
                got=f"{error.value:g} at element {position + error.index}, "
                f"{times:.3g} times the largest",
                hint="keep its dtype, or take a wider one; a sound model rarely has such values",
            ) from error
        flushed = count_flushed(data, converted, ref.dtype, cast.dtype)
        if flushed:
            inputs.note_flushed(name, flushed)
        yield converted
        position += len(data) * 8 // BITS[ref.dtype]


def _interleaved(pieces: Pieces, inputs: Inputs, name: str) -> Iterator[bytes]:
    """Yield the bytes of a tensor whose parts are cut into runs, several runs at a time."""
    sizes = [part.nbytes // pieces.runs for part in pieces.parts]
    # Whole elements of any dtype.
    step = max(_SMALLEST_STEP, _READ_STEP // len(pieces.parts) // 8 * 8)
    streams = [_Stream(tensor_bytes(part, inputs, name, step)) for part in pieces.parts]
    most = max(1, _READ_STEP // max(sum(sizes), 1))
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


def _read_range(inputs: Inputs, ref: Stored, start: int, stop: int) -> bytes:
    """Return the elements ``start`` to ``stop`` of a tensor, in C order."""
    width = BITS[ref.dtype] // 8
    if isinstance(ref, Pieces):
        if ref.runs > 1:
            return b"".join(tensor_bytes(ref, inputs, ""))[start * width : stop * width]
        return b"".join(_range_of_parts(inputs, ref, start, stop))
    if ref.strides is not None:
        return b"".join(_ref_bytes(ref, inputs))[start * width : stop * width]
    source = inputs.descriptor(ref.source)
    return read_at(source, (stop - start) * width, ref.offset + start * width, ref.source.path)


def _range_of_parts(inputs: Inputs, pieces: Pieces, start: int, stop: int) -> Iterator[bytes]:
    for part in pieces.parts:
        assert isinstance(part, TensorRef | Pieces)  # noqa: S101 - what is stored is not converted
        count = parameters(part)
        if start < count and stop > 0:
            yield _read_range(inputs, part, max(start, 0), min(stop, count))
        start, stop = start - count, stop - count


def _ref_bytes(ref: TensorRef, inputs: Inputs, step: int = _READ_STEP) -> Iterator[bytes]:
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
