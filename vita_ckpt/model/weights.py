"""Move weights from a checkpoint's files into modules, all at once or while running."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from vita_ckpt.core.checkpoint import Checkpoint, File, TensorRef
from vita_ckpt.model.staging import Source, staged
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

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
# The device of each module, by name, as in accelerate; "" is the whole model.
DeviceMap = Mapping[str, torch.device]

# The bytes of a large tensor that are processed at once.
_SLICE: Final = 64 << 20


class Weights(AbstractContextManager["Weights"]):
    """The tensors of a checkpoint (or of a plan's target), read from their files.

    A contiguous tensor is a view of its memory-mapped file: pages are loaded when they are read,
    and :meth:`release` drops them. Other tensors (casts, strided views) are materialised on
    request. Raises StaleInputError if a file is not the one that was opened.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.tensors
        self._inputs = Inputs()
        self._maps: dict[File, mmap.mmap] = {}

    def __exit__(self, *exc: object) -> None:
        self._inputs.close()

    def view(self, name: str) -> Tensor:
        """Return the tensor ``name`` in its stored dtype, on the CPU. It must not be modified."""
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

    def slices(self, name: str, rows: int | None = None) -> Iterator[Tensor]:
        """Yield the tensor as successive views of ``rows`` rows, by default about 64 MiB each.

        Each view is released when the next one is requested.
        """
        view = self.view(name)
        if rows is None:
            if view.nbytes <= _SLICE:
                yield view
                self.release(name)
                return
            rows = max(1, _SLICE * len(view) // view.nbytes)
        for start in range(0, len(view), rows):
            yield view[start : start + rows]
            self.release(name, slice(start, start + rows))
        self.release(name)

    def on_devices(
        self, wanted: Iterable[tuple[str, torch.device]]
    ) -> Iterator[tuple[tuple[str, torch.device], Tensor]]:
        """Yield each wanted tensor in its stored dtype, in any order; on the CPU as a :meth:`view`.

        A view is released when the next tensor is requested.
        """
        far: list[tuple[TensorRef, tuple[str, torch.device]]] = []
        for name, device in wanted:
            stored = self.tensors[name]
            if device.type == "cuda" and isinstance(stored, TensorRef) and stored.strides is None:
                far.append((stored, (name, device)))
            else:
                yield (name, device), self.view(name).to(device)
                self.release(name)
        # Files are read from front to back.
        far.sort(key=lambda entry: (entry[0].source.path, entry[0].offset))
        arriving = staged((self._source(ref), _empty(ref, place[1])) for ref, place in far)
        for (_, place), tensor in zip(far, arriving, strict=True):
            yield place, tensor

    def _source(self, stored: TensorRef) -> Source:
        descriptor = self._inputs.descriptor(stored.source)
        return Source(descriptor, stored.source.path, stored.offset)

    def release(self, name: str, rows: slice | None = None) -> None:
        """Free the memory of a view, or of some of its rows; it is read again if needed."""
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

    def _mapped(self, source: File) -> mmap.mmap:
        if source not in self._maps:
            descriptor = self._inputs.descriptor(source)
            # Copy-on-write, because torch requires a writable buffer; it is never written to.
            self._maps[source] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        return self._maps[source]


@contextmanager
def on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Build modules without weights: parameters on the meta device in ``dtype``, buffers real.

    The default dtype is set, rather than converting afterwards, because a conversion would also
    affect the rotary tables and lose precision.
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
    device_map: DeviceMap,
    observe: Observer | None = None,
) -> None:
    """Set every parameter and stored buffer to its tensor, in the dtype of the module's own.

    Names of one stored tensor (a tied ``lm_head``) share it if they are on one device. On the CPU a
    tensor that already has its dtype remains a view of the memory-mapped file. This takes no time,
    and writes to it do not reach the file, but the file must not be overwritten meanwhile.
    """
    state = model.state_dict()
    wanted: dict[tuple[str, torch.device], list[str]] = {}
    for name, stored in names.items():
        wanted.setdefault((stored, device_of(name, device_map)), []).append(name)
    for place, tensor in weights.on_devices(wanted):
        if observe is not None:
            observe(place[0], tensor)
        converted = tensor.to(state[wanted[place][0]].dtype)
        for name in wanted[place]:
            _put(*_owner(model, name), converted)
    place_unstored(model, device_map)


def place_unstored(model: nn.Module, device_map: DeviceMap) -> None:
    """Move the buffers that no file holds, such as position ids, to the devices of their modules.

    Modules are built with these buffers on the CPU, and torch takes no index from another device.
    """
    stored = model.state_dict().keys()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in stored:
            _put(*_owner(model, name), buffer.to(device_of(name, device_map)))


def device_of(name: str, device_map: DeviceMap) -> torch.device:
    """Return the device of a module or tensor: that of its nearest ancestor in the map."""
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map[name]


class Streaming:
    """Forward hooks that give each module its tensors for the duration of its forward.

    Between forwards the parameters are on the meta device. Tensors already in the wanted dtype are
    views of the memory-mapped files. Others are converted into scratch buffers that the next module
    reuses, since fresh memory would take longer than the arithmetic. The buffers form a stack: a
    module with children keeps its own while they run.
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
        self._observed: set[str] = set()
        self._scratch: list[Tensor] = []
        self._lent = 0
        owned: dict[nn.Module, dict[str, str]] = {}
        for name, stored in names.items():
            owner, attribute = _owner(model, name)
            owned.setdefault(owner, {})[attribute] = stored
        for owner, attributes in owned.items():
            owner.register_forward_pre_hook(self._lend(attributes))
            owner.register_forward_hook(self._take_back(attributes))
        place_unstored(model, {"": device})

    def rows(self, stored: str, ids: Tensor) -> Tensor:
        """Return rows [..., width] of a table [n, width]; only their pages are read."""
        table = self._weights.view(stored)
        rows = table[ids.cpu()].to(self.device, self._dtype)
        self._weights.release(stored)
        return rows

    def linear(self, stored: str, hidden: Tensor, rows: int) -> Tensor:
        """Multiply ``hidden`` [..., width] by the transpose of [n, width], ``rows`` at a time."""
        count = self._weights.tensors[stored].shape[0]
        result = hidden.new_empty((*hidden.shape[:-1], count))
        start = 0
        for part in self._weights.slices(stored, rows):
            self._notify(stored, part)
            end = start + len(part)
            weight = self._converted(part, self._dtype)
            result[..., start:end] = nn.functional.linear(hidden, weight)
            start = end
        return result

    def observe_rest(self, names: Iterable[str]) -> None:
        """Call the observer once with each tensor that no forward has read whole, in slices."""
        if self._observe is None:
            return
        for stored in dict.fromkeys(names):
            if stored not in self._observed:
                for part in self._weights.slices(stored):
                    self._notify(stored, part)

    def _notify(self, stored: str, view: Tensor) -> None:
        if self._observe is not None:
            self._observe(stored, view)
            self._observed.add(stored)

    def _converted(self, view: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``view`` in ``dtype``, on the computation's device.

        The result is valid until its buffer is reused.
        """
        if self.device.type != "cpu" or dtype != self._dtype:
            return view.to(self.device, dtype)
        if view.dtype == dtype:
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
                self._notify(stored, view)
                _put(module, attribute, self._converted(view, getattr(module, attribute).dtype))
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


def _empty(stored: TensorRef, device: torch.device) -> Tensor:
    return torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype], device=device)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def _put(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    if attribute in owner._parameters:
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[attribute] = tensor
