"""Weights on their way from a checkpoint's files into modules: lazily, at once or one by one."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from vita_ckpt.core.checkpoint import Checkpoint, LocalFile, TensorRef
from vita_ckpt.storage.stream import Inputs, tensor_bytes

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}

Observer = Callable[[str, Tensor], None]


class Weights(AbstractContextManager["Weights"]):
    """The tensors of a checkpoint (or of a plan's target), read from where they lie.

    A contiguous tensor is a view of its mapped file: pages come in when they are read, and
    :meth:`release` drops them. Anything else (a cast, a strided view) is materialised on request.
    Raises StaleInputError if a file is not the one that was opened.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.tensors
        self._inputs = Inputs()
        self._maps: dict[LocalFile, mmap.mmap] = {}

    def __exit__(self, *exc: object) -> None:
        self._inputs.close()

    def view(self, name: str) -> Tensor:
        """The tensor ``name`` in its stored dtype, on the CPU; not to be written to."""
        stored = self.tensors[name]
        dtype = TORCH_DTYPES[stored.dtype]
        if stored.nbytes == 0:
            return torch.empty(stored.shape, dtype=dtype)
        if isinstance(stored, TensorRef) and stored.strides is None and not stored.offset % 8:
            count = stored.nbytes // dtype.itemsize
            mapped = self._mapped(stored.source)
            flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=stored.offset)
        else:
            data = bytearray().join(tensor_bytes(stored, self._inputs, name))
            flat = torch.frombuffer(data, dtype=dtype)
        return flat.reshape(stored.shape)

    def release(self, name: str, rows: slice | None = None) -> None:
        """Let go of the memory of a view, or of some of its rows; what is needed is read again."""
        stored = self.tensors[name]
        if not isinstance(stored, TensorRef) or stored.source not in self._maps:
            return
        begin, end = 0, stored.nbytes
        if rows is not None:
            width = stored.nbytes // stored.shape[0]
            begin, end = rows.start * width, min(rows.stop * width, end)
        page = mmap.PAGESIZE
        first = -(-(stored.offset + begin) // page) * page
        last = (stored.offset + end) // page * page
        if last > first:
            self._maps[stored.source].madvise(mmap.MADV_DONTNEED, first, last - first)

    def _mapped(self, source: LocalFile) -> mmap.mmap:
        if source not in self._maps:
            descriptor = self._inputs.descriptor(source)
            # Private and writable only because torch asks for a writable buffer: nobody writes.
            self._maps[source] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        return self._maps[source]


@contextmanager
def on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Build modules without weights: parameters on the meta device in ``dtype``, buffers real.

    The default dtype is set instead of converting afterwards: that would convert the rotary tables
    too, which costs precision.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(before)


def load_resident(
    model: nn.Module,
    names: Mapping[str, str],
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    observe: Observer | None = None,
) -> None:
    """Give every parameter and stored buffer its tensor; floating ones become ``dtype``."""
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name, stored in names.items():
        owner, attribute = _owner(model, name)
        view = weights.view(stored)
        if observe is not None:
            observe(stored, view)
        kind = dtype if kinds[name].is_floating_point else kinds[name]
        tensor = torch.empty(view.shape, dtype=kind, device=device)
        tensor.copy_(view)
        _put(owner, attribute, tensor)
        weights.release(stored)


class Streaming:
    """Forward hooks that lend each module its tensors for the length of its own forward.

    Between forwards the parameters are on the meta device. Tensors already in the wanted dtype are
    views of the mapped files; others are converted into scratch buffers that are used again by the
    next module, since fresh memory would cost more time than the arithmetic. The buffers are a
    stack: a module that has children keeps its own while they run.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device,
        observe: Observer | None = None,
    ) -> None:
        self.device = device
        self._weights = weights
        self._dtype = dtype
        self._observe = observe
        self._scratch: list[Tensor] = []
        self._lent = 0
        owned: dict[nn.Module, dict[str, str]] = {}
        for name, stored in names.items():
            owner, attribute = _owner(model, name)
            owned.setdefault(owner, {})[attribute] = stored
        for owner, attributes in owned.items():
            owner.register_forward_pre_hook(self._lend(attributes))
            owner.register_forward_hook(self._take_back(attributes))

    def rows(self, stored: str, ids: Tensor) -> Tensor:
        """Rows [..., width] of a table [n, width]: only the pages that hold them are read."""
        table = self._weights.view(stored)
        rows = table[ids.cpu()].to(self.device, self._dtype)
        self._weights.release(stored)
        return rows

    def linear(self, stored: str, hidden: Tensor, rows: int) -> Tensor:
        """``hidden`` [..., width] times a matrix [n, width] transposed, ``rows`` at a time."""
        matrix = self._weights.view(stored)
        result = hidden.new_empty((*hidden.shape[:-1], len(matrix)))
        for start in range(0, len(matrix), rows):
            part = matrix[start : start + rows]
            if self._observe is not None:
                self._observe(stored, part)
            result[..., start : start + rows] = nn.functional.linear(hidden, self._converted(part))
            self._weights.release(stored, slice(start, start + rows))
        self._weights.release(stored)
        return result

    def _converted(self, view: Tensor) -> Tensor:
        """``view`` as the computation wants it; valid until its place is used again."""
        if self.device.type != "cpu":
            return view.to(self.device, self._dtype if view.is_floating_point() else view.dtype)
        if view.dtype == self._dtype or not view.is_floating_point():
            return view
        if self._lent == len(self._scratch):
            self._scratch.append(torch.empty(0, dtype=self._dtype))
        if self._scratch[self._lent].numel() < view.numel():
            self._scratch[self._lent] = torch.empty(view.numel(), dtype=self._dtype)
        return self._scratch[self._lent][: view.numel()].view(view.shape).copy_(view)

    def _lend(self, attributes: Mapping[str, str]) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, _arguments: Any) -> None:
            for attribute, stored in attributes.items():
                view = self._weights.view(stored)
                if self._observe is not None:
                    self._observe(stored, view)
                _put(module, attribute, self._converted(view))
                self._lent += 1

        return hook

    def _take_back(self, attributes: Mapping[str, str]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _arguments: Any, _output: Any) -> None:
            self._lent -= len(attributes)
            for attribute, stored in attributes.items():
                current = getattr(module, attribute)
                _put(module, attribute, torch.empty_like(current, device="meta"))
                self._weights.release(stored)

        return hook


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _put(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    if attribute in owner._parameters:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[attribute] = tensor
