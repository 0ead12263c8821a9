"""The allow-listed unpickler: a pickle of tensors becomes descriptions, and nothing is executed.

A pickle is a program for a small stack machine. This module runs that machine with inert values:
a global is a name, a tensor is where its bytes would be, and only the constructors that
``torch.save`` writes are understood. Everything else is refused by name.
"""

from __future__ import annotations

import pickletools
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NoReturn, Protocol

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import MalformedFileError, UnsafePickleError

# 16 MiB of pickle describe a hundred thousand tensors.
LARGEST_PICKLE: Final = 16 << 20

# A few bytes of pickle can name one large value again and again: what is built is bounded too.
_MOST_ITEMS: Final = 1 << 20
# A tensor takes about thirty opcodes; an empty dict takes one, and seventy bytes of memory.
_MOST_OPCODES: Final = 1 << 22
_MOST_DIMENSIONS: Final = 64
_LARGEST_INDEX: Final = 1 << 31

_STORAGES: Final[dict[str, str]] = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
_DTYPES: Final[dict[str, str]] = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint64": "U64",
    "torch.uint32": "U32",
    "torch.uint16": "U16",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
    "torch.complex64": "C64",
}
_UNTYPED: Final = "torch.storage.UntypedStorage"
_TENSOR_TYPES: Final = frozenset({"torch.Tensor", "torch.nn.parameter.Parameter"})
_CONSTRUCTORS: Final = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
    }
)
_STORAGE_DTYPES: Final[dict[str, str]] = {
    f"{module}.{name}": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
}
_ALLOWED: Final = (
    _CONSTRUCTORS | _TENSOR_TYPES | _DTYPES.keys() | _STORAGE_DTYPES.keys() | {_UNTYPED}
)

_PUSHED_AS_READ: Final = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
# What picklers do not write into a pickle of protocol 2, and torch's own reader refuses there.
_NOT_IN_PROTOCOL_2: Final = frozenset(
    (
        *("INT", "LONG", "LONG4", "FLOAT", "STRING", "BINSTRING", "UNICODE", "PUT", "GET"),
        *("LIST", "DICT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("SHORT_BINUNICODE", "BINUNICODE8", "STACK_GLOBAL", "MEMOIZE", "FRAME"),
    )
)
_DEVICES: Final = re.compile(
    r"(cpu|cuda|meta|mps|xpu|xla|hpu|npu|ipu|mtia|hip|mlu|musa|maia|vulkan|sdaa|gcu|tpu|lazy|ve|"
    r"ort|fpga|supa|privateuseone)(:[0-9]{1,3})?",
    re.ASCII,
)
_DIFFERENTIABLE: Final = frozenset(
    dtype for dtype in BITS if dtype.startswith(("F", "BF", "C")) and dtype != "F8_E8M0"
)
_CONSTANTS: Final[dict[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES: Final = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


# What malformed pickles raise; the escapes of old strings are a warning, which may be an error too.
_MALFORMED: Final = (
    *(ValueError, IndexError, TypeError, EOFError, RecursionError, OverflowError),
    DeprecationWarning,
)


class PickleStream(Protocol):
    """What the machine reads from: a binary file whose reads are bounded by its owner."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def readline(self) -> bytes: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A storage: its ``key`` in the file, its ``size`` in elements of ``dtype`` ("" if untyped)."""

    key: str
    dtype: str
    size: int

    @property
    def width(self) -> int:
        """Bytes of one element: an untyped storage is counted in bytes."""
        return BITS[self.dtype] // 8 if self.dtype else 1


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A view of a storage: ``offset`` and ``strides`` in elements."""

    storage: PickledStorage
    dtype: str
    offset: int
    shape: Shape
    strides: Shape


@dataclass(frozen=True, slots=True)
class Found:
    """What a pickle names: storages by key, and tensors, whether or not a name leads to them."""

    storages: dict[str, PickledStorage] = field(default_factory=dict)
    tensors: list[PickledTensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


class _Mark:
    pass


_MARK: Final = _Mark()


def read_pickle(
    stream: PickleStream,
    path: str,
    found: Found | None = None,
    *,
    legacy: bool = False,
) -> Any:
    """The object of the next pickle in ``stream``: plain values, dicts, lists and PickledTensor.

    Every storage and every tensor that the pickle names is put into ``found``. In a ``legacy`` file
    the persistent id of a storage has one more field.

    Raises UnsafePickleError naming the global (or the opcode) that is not on the list, and
    MalformedFileError for what is no pickle. ``path`` is for messages.
    """
    try:
        return _Machine(path, Found() if found is None else found, legacy).run(stream)
    except _MALFORMED as error:
        raise MalformedFileError(
            "invalid-pickle", path, expected="a pickle written by torch.save", got=str(error)
        ) from error


class _Machine:
    def __init__(self, path: str, found: Found, legacy: bool) -> None:
        self._path = path
        self._found = found
        self._legacy = legacy
        self._protocol = 0
        self._items_left = _MOST_ITEMS
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: PickleStream) -> Any:
        opcodes = pickletools.genops(stream)  # type: ignore[arg-type]
        for opcode, argument, _ in islice(opcodes, _MOST_OPCODES):
            if opcode.name == "STOP":
                return self._pop(1)[0]
            if opcode.name == "PROTO":
                self._protocol = int(argument or 0)
            elif self._protocol == 2 and opcode.name in _NOT_IN_PROTOCOL_2:
                raise ValueError(f"the opcode {opcode.name} in a pickle of protocol 2")
            self._step(opcode.name, argument)
        raise EOFError("the pickle has no end, or more opcodes than a state dict")

    def _step(self, name: str, argument: Any) -> None:  # noqa: PLR0912 - one arm per opcode
        stack = self._stack
        if name in _PUSHED_AS_READ:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            if not 0 <= argument < _LARGEST_INDEX:
                raise ValueError(f"memo entry {argument}")
            self._memo[argument] = self._top(object, name)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top(object, name)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise ValueError(f"memo entry {argument} is not set")
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(self._pop_mark() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "DICT"):
            stack.append(_pairs(self._pop_mark()) if name == "DICT" else {})
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_mark() if name == "APPENDS" else self._pop(1)
            self._top(list, name).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if name == "SETITEMS" else self._pop(2)
            self._top(dict, name).update(_pairs(items))
        elif name == "GLOBAL":
            stack.append(self._global(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise ValueError("a global whose name is no text")
            stack.append(self._global(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            stack.append(self._storage(self._pop(1)[0]))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._reduce(function, arguments))
        elif name == "BUILD":
            # The attributes of a state dict (its _metadata) do not concern the tensors.
            state = self._pop(1)
            if not isinstance(state[0], dict):
                raise ValueError("attributes that are no dict")
            self._top(OrderedDict, name)
        elif name not in ("PROTO", "FRAME"):
            self._refuse(f"the opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise IndexError("the pickle takes more from its stack than it put there")
        items = self._stack[len(self._stack) - count :]
        if any(item is _MARK for item in items):
            raise IndexError("the pickle takes more from its stack than it put behind a mark")
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def _top(self, kind: type, opcode: str) -> Any:
        if self._stack[-1] is _MARK or not isinstance(self._stack[-1], kind):
            raise ValueError(f"{opcode} on a {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _global(self, name: str) -> _Global:
        if name not in _ALLOWED:
            self._refuse(f"the global {name}")
        return _Global(name)

    def _refuse(self, what: str) -> NoReturn:
        raise UnsafePickleError(
            "unsafe-pickle",
            self._path,
            expected="a state dict of tensors only",
            got=what,
            hint="nothing was executed; save the state dict alone, or as safetensors",
        )

    def _storage(self, identifier: Any) -> PickledStorage:
        match identifier:
            case ("storage", _Global(name=kind), key, str(device), int(size), *rest):
                if rest != ([None] if self._legacy else []):
                    raise ValueError("a storage that is a view of another one")
                if not _DEVICES.fullmatch(device):
                    raise ValueError(f"a storage on a device that no torch has: {device!r:.40}")
                dtype = "" if kind == _UNTYPED else _STORAGE_DTYPES.get(kind)
                if dtype is not None and isinstance(key, (str, int)) and size >= 0:
                    return self._found.storages.setdefault(
                        str(key), PickledStorage(str(key), dtype, size)
                    )
        raise ValueError("a persistent id that is no storage")

    def _reduce(self, function: Any, arguments: Any) -> Any:  # noqa: PLR0911 - one per constructor
        name = function.name if isinstance(function, _Global) else type(function).__name__
        match name, arguments:
            case "collections.OrderedDict", ():
                return OrderedDict()
            case "collections.OrderedDict", (list(pairs),):
                self._items_left -= len(pairs)
                if self._items_left < 0:
                    raise ValueError("more items than a state dict has")
                return OrderedDict(_pairs([item for pair in pairs for item in _pair(pair)]))
            case "torch.Size", (tuple(sizes),):
                return sizes
            case "torch._utils._rebuild_tensor", (
                PickledStorage() as storage,
                offset,
                sizes,
                strides,
            ):
                return self._made(
                    _tensor(storage, storage.dtype, offset, sizes, strides), learns=False
                )
            case "torch._utils._rebuild_tensor_v2", (
                PickledStorage() as storage,
                offset,
                sizes,
                strides,
                bool(learns),
                None | dict(),
                *metadata,
            ) if not any(metadata) and len(metadata) <= 1:
                return self._made(_tensor(storage, storage.dtype, offset, sizes, strides), learns)
            case "torch._utils._rebuild_tensor_v3", (
                PickledStorage() as storage,
                offset,
                sizes,
                strides,
                bool(learns),
                None | dict(),
                _Global(name=dtype),
                *metadata,
            ) if not any(metadata) and len(metadata) <= 1 and dtype in _DTYPES:
                return self._made(_tensor(storage, _DTYPES[dtype], offset, sizes, strides), learns)
            case (
                "torch._utils._rebuild_parameter",
                (PickledTensor() as tensor, bool(learns), None | dict()),
            ):
                return self._made(tensor, learns)
            case (
                "torch._utils._rebuild_parameter_with_state",
                (PickledTensor() as tensor, bool(learns), None | dict(), _),
            ):
                return self._made(tensor, learns)
            case "torch._tensor._rebuild_from_type_v2", (
                _Global() as rebuild,
                _Global(name=kind),
                tuple(inner),
                _,
            ) if kind in _TENSOR_TYPES and rebuild.name != name:
                return self._reduce(rebuild, inner)
        return self._refuse(f"a call of {name} that torch.save does not write")

    def _made(self, tensor: PickledTensor, learns: bool) -> PickledTensor:
        if learns and tensor.dtype not in _DIFFERENTIABLE:
            raise ValueError(f"a tensor of {tensor.dtype} that requires a gradient")
        self._found.tensors.append(tensor)
        return tensor


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a dict item without a value")
    keys = items[::2]
    for key in keys:
        # Integers hash to themselves: large ones could be made to collide.
        is_small = isinstance(key, int) and abs(key) < _LARGEST_INDEX
        if not (isinstance(key, str) or is_small):
            raise ValueError(f"a dict key of type {type(key).__name__}")
    return dict(zip(keys, items[1::2], strict=True))


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError("an item that is no pair")
    return value[0], value[1]


def _tensor(
    storage: PickledStorage, dtype: str, offset: Any, sizes: Any, strides: Any
) -> PickledTensor:
    if max(len(sizes), len(strides)) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(sizes)} dimensions")
    numbers = (offset, *sizes, *strides)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a tensor whose offset, sizes or strides are not sizes")
    if len(sizes) != len(strides) or not dtype:
        raise ValueError("a tensor whose sizes, strides and dtype do not go together")
    return PickledTensor(storage, dtype, offset, tuple(sizes), tuple(strides))


def state_dict_of(value: Any) -> Mapping[str, PickledTensor] | None:
    """The tensors of a state dict, at the top or one level below; None if there is no dict.

    Values that are no tensors (an epoch, an optimizer's settings) are passed over. One level below
    means under ``state_dict``, ``module`` or ``model``, where that holds more tensors than the top.
    """
    if not isinstance(value, dict):
        return None
    levels = [value]
    levels += [
        value[key] for key in ("state_dict", "module", "model") if isinstance(value.get(key), dict)
    ]
    found = [
        {
            name: tensor
            for name, tensor in level.items()
            if isinstance(name, str) and isinstance(tensor, PickledTensor)
        }
        for level in levels
    ]
    return max(found, key=len)
