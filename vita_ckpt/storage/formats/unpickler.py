"""The inert unpickler: a pickle becomes descriptions of its objects, and nothing is executed.

A pickle is a program for a small stack machine. This module runs that machine with inert values:
a global is a name, a tensor is where its bytes would be, and what is made by a class or function
other than those of tensors and plain containers is a record of what it was given. Globals of
modules that run code are refused by name.
"""

from __future__ import annotations

import pickletools
import re
from collections import OrderedDict
from dataclasses import field
from itertools import islice
from typing import Any, Final, NoReturn, Protocol

from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import BITS
from vita_ckpt.core.pickle_globals import is_admitted, judge
from vita_ckpt.core.pickled import Global, Record
from vita_ckpt.errors import MalformedFileError, UnsafePickleError

# 16 MiB of pickle describe a hundred thousand tensors.
LARGEST_PICKLE: Final = 16 << 20

# A few bytes of pickle can name one large value again and again: what is built is bounded too.
_MOST_ITEMS: Final = 1 << 20
_MOST_BYTES: Final = 2 * LARGEST_PICKLE
# A tensor takes about thirty opcodes; an empty dict takes one, and seventy bytes of memory.
_MOST_OPCODES: Final = 1 << 22
_MOST_DIMENSIONS: Final = 64
_LARGEST_INDEX: Final = 1 << 31
# Tuples as keys: how many, and of how many values; their hashes could be made to collide.
_MOST_TUPLE_KEYS: Final = 1 << 12
_LONGEST_TUPLE_KEY: Final = 64

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
# Storages whose elements no weight file has, and the bytes of one element.
_OTHER_STORAGES: Final[dict[str, int]] = {
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}
_UNTYPED: Final = "torch.storage.UntypedStorage"
_TORCH_DTYPE: Final = re.compile(
    r"torch\.(bool|bfloat16|q?u?int[0-9x]+|float[0-9][0-9a-z_]*|complex[0-9]+|bits[0-9x]+)",
    re.ASCII,
)
# Calls that make a tensor whose bytes are not simply those of a storage.
_OTHER_TENSORS: Final = frozenset(
    f"torch._utils.{name}"
    for name in (
        *("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor", "_rebuild_qtensor"),
        *("_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor"),
        *("_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy"),
    )
)
# The type and the bytes of an element of every kind of storage; an untyped one has bytes.
_STORAGE_TYPES: Final[dict[str, tuple[str, int]]] = {_UNTYPED: ("", 1)} | {
    f"{module}.{name}": kind
    for module in ("torch", "torch.cuda")
    for name, kind in (
        *((name, (dtype, BITS[dtype] // 8)) for name, dtype in _STORAGES.items()),
        *((name, ("", width)) for name, width in _OTHER_STORAGES.items()),
    )
}

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
        *("INST", "OBJ", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEWOBJ_EX"),
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
    """A storage: its ``key`` in the file, its ``size`` in elements of ``width`` bytes.

    ``dtype`` is empty for bytes without a type, and for elements that no weight file has.
    """

    key: str
    dtype: str
    size: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class PickledTensor:
    """A view of a storage: ``offset`` and ``strides`` in elements."""

    storage: PickledStorage
    dtype: str
    offset: int
    shape: Shape
    strides: Shape


@dataclass(slots=True)
class Found:
    """What a pickle names, whether or not a name leads to it.

    ``storages`` by key, ``tensors``, and as ``objects`` the globals, as module and name, that
    torch's own restricted loading does not take.
    """

    storages: dict[str, PickledStorage] = field(default_factory=dict)
    tensors: list[PickledTensor] = field(default_factory=list)
    objects: dict[tuple[str, str], None] = field(default_factory=dict)


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
    """The object of the next pickle in ``stream``.

    Its values are plain ones (None, bool, int, float, complex, str, bytes), dicts, lists, tuples,
    PickledStorage, PickledTensor, and for all else Global and Record. What the pickle names is put
    into ``found``. In a ``legacy`` file the persistent id of a storage has one more field.

    Raises UnsafePickleError naming the global of a module that runs code, or an opcode that takes
    objects from elsewhere, and MalformedFileError for what is no pickle. ``path`` is for messages.
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
        self._bytes_left = _MOST_BYTES
        self._tuple_keys_left = _MOST_TUPLE_KEYS
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

    def _step(self, name: str, argument: Any) -> None:  # noqa: PLR0912, PLR0915 - one arm per opcode
        stack = self._stack
        if name in _PUSHED_AS_READ:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            if not 0 <= argument < _LARGEST_INDEX:
                raise ValueError(f"memo entry {argument}")
            self._memo[argument] = self._top(name)
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top(name)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            if argument not in self._memo:
                raise ValueError(f"memo entry {argument} is not set")
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            if stack.pop() is _MARK:
                raise IndexError("the pickle takes away its own mark")
        elif name == "POP_MARK":
            self._pop_mark()
        elif name == "DUP":
            stack.append(self._top(name))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(self._pop_mark() if name == "LIST" else [])
        elif name in ("EMPTY_DICT", "DICT"):
            stack.append(self._pairs(self._pop_mark()) if name == "DICT" else {})
        elif name in ("EMPTY_SET", "FROZENSET"):
            # What a set holds is not hashed: that could take for ever.
            is_empty = name == "EMPTY_SET"
            kind = "builtins.set" if is_empty else "builtins.frozenset"
            stack.append(Record(kind, items=[] if is_empty else self._pop_mark()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = self._pop(1) if name == "APPEND" else self._pop_mark()
            self._items_of_top(list, name).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if name == "SETITEMS" else self._pop(2)
            self._items_of_top(dict, name).update(self._pairs(items))
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self._global(module, attribute))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise ValueError("a global whose name is no text")
            stack.append(self._global(module, attribute))
        elif name == "BINPERSID":
            stack.append(self._storage(self._pop(1)[0]))
        elif name == "REDUCE":
            stack.append(self._reduce(*self._pop(2)))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            stack.append(_object(*self._pop(3 if name == "NEWOBJ_EX" else 2)))
        elif name == "INST":
            module, _, attribute = argument.partition(" ")
            inst = self._global(module, attribute)
            stack.append(_object(inst, tuple(self._pop_mark())))
        elif name == "OBJ":
            arguments = self._pop_mark()
            stack.append(_object(arguments[0], tuple(arguments[1:])))
        elif name == "BUILD":
            self._build(self._pop(1)[0])
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

    def _top(self, opcode: str) -> Any:
        if self._stack[-1] is _MARK:
            raise ValueError(f"{opcode} on a mark")
        return self._stack[-1]

    def _items_of_top(self, kind: type, opcode: str) -> Any:
        """Return the list or dict on top, or the items of the record there."""
        top = self._top(opcode)
        if isinstance(top, Record):
            if top.items is None:
                top.items = kind()
            top = top.items
        if not isinstance(top, kind) or (opcode == "ADDITEMS" and top is self._stack[-1]):
            raise ValueError(f"{opcode} on a {type(top).__name__}")
        return top

    def _global(self, module: str, name: str) -> Global:
        if not is_admitted(module, name):
            if judge(module, name) == "runs-code":
                self._refuse(f"the global {module}.{name}")
            self._found.objects[module, name] = None
        return Global(f"{module.replace('__builtin__', 'builtins', 1)}.{name}")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsafePickleError(
            "unsafe-pickle",
            self._path,
            expected="tensors and plain values only",
            got=what,
            hint="nothing was executed; do not load it, and ask where it came from",
        )

    def _storage(self, identifier: Any) -> PickledStorage:
        match identifier:
            case ("storage", Global(name=kind), key, str(device), int(size), *rest):
                if rest != ([None] if self._legacy else []):
                    raise ValueError("a storage that is a view of another one")
                if not _DEVICES.fullmatch(device):
                    raise ValueError(f"a storage on a device that no torch has: {device!r:.40}")
                if kind in _STORAGE_TYPES and isinstance(key, str | int) and size >= 0:
                    dtype, width = _STORAGE_TYPES[kind]
                    storage = PickledStorage(str(key), dtype, size, width)
                    return self._found.storages.setdefault(storage.key, storage)
        raise ValueError("a persistent id that is no storage")

    def _build(self, state: Any) -> None:
        top = self._top("BUILD")
        if isinstance(top, Record):
            top.state = state
        # The attributes of a state dict (its _metadata) do not concern the tensors.
        elif not (isinstance(top, OrderedDict) and isinstance(state, dict)):
            raise ValueError(f"attributes of a {type(top).__name__}")

    def _reduce(self, function: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError("a call whose arguments are no tuple")
        if isinstance(function, Record):
            return Record(f"{function.name}()", (function, arguments))
        if not isinstance(function, Global):
            raise ValueError(f"a call of a {type(function).__name__}")
        name = function.name
        made = self._tensor(name, arguments)
        if made is None:
            made = self._plain(name, arguments)
        return Record(name, arguments) if made is None else made

    def _plain(self, name: str, arguments: tuple[Any, ...]) -> Any:  # noqa: PLR0911, PLR0912 - one per constructor
        """Return what a call that torch admits makes of plain values; None for any other call."""
        match name, arguments:
            case "collections.OrderedDict", ():
                return OrderedDict()
            case "collections.OrderedDict", (list(pairs),):
                self._charge(len(pairs))
                flat = [item for pair in pairs for item in _pair(pair)]
                return OrderedDict(self._pairs(flat))
            case "torch.Size", (tuple(sizes) | list(sizes),):
                if not all(type(size) is int for size in sizes):
                    raise ValueError("a size that is no number")
                return sizes
            case "builtins.set" | "builtins.frozenset", () | (list() | tuple(),):
                items = arguments[0] if arguments else ()
                self._charge(len(items))
                return Record(name, items=list(items))
            case "builtins.complex", (int() | float() as real, int() | float() as imaginary):
                return complex(real, imaginary)
            case "_codecs.encode" | "builtins.bytearray" | "builtins.bytes", (
                str(text),
                "latin1" | "latin-1",
            ):
                self._bytes_left -= len(text)
                if self._bytes_left < 0:
                    raise ValueError("more bytes than a state dict has")
                return text.encode("latin-1")
            case "collections.Counter", () | (dict(),):
                return Record(name, arguments)
            case "builtins.bytearray" | "builtins.bytes", () | (bytes() | bytearray(),):
                return arguments[0] if arguments else b""
            case "torch.device", (str(),) | (str(), int()):
                return Record(name, arguments)
            case "copyreg._reconstructor" | "copy_reg._reconstructor", (kind, _, _):
                return _object(kind, arguments[1:])
            case "copyreg.__newobj__", (kind, *_):
                self._charge(len(arguments))
                return _object(kind, arguments[1:])
        if name in _STRICT:
            raise ValueError(f"a call of {name} that torch.save does not write")
        return None

    def _tensor(self, name: str, arguments: tuple[Any, ...]) -> Any:  # noqa: PLR0911 - one per constructor
        """Return the tensor that a call makes, or a record of it; None for any other call."""
        match name, arguments:
            case "torch._utils._rebuild_tensor", (PickledStorage() as storage, _, _, _):
                return self._view(name, arguments, _typed(storage))
            case "torch._utils._rebuild_tensor_v2", (
                PickledStorage() as storage,
                _,
                _,
                _,
                bool(learns),
                None | dict(),
                *metadata,
            ) if len(metadata) <= 1:
                dtype = _typed(storage) if not any(metadata) else ""
                return self._view(name, arguments, dtype, learns=learns)
            case "torch._utils._rebuild_tensor_v3", (
                PickledStorage(),
                _,
                _,
                _,
                bool(learns),
                None | dict(),
                Global(name=kind),
                *metadata,
            ) if len(metadata) <= 1 and _TORCH_DTYPE.fullmatch(kind):
                dtype = _DTYPES.get(kind, "") if not any(metadata) else ""
                return self._view(name, arguments, dtype, learns=learns)
            case (
                "torch._utils._rebuild_parameter",
                (PickledTensor() | Record() as data, bool(learns), None | dict()),
            ) | (
                "torch._utils._rebuild_parameter_with_state",
                (PickledTensor() | Record() as data, bool(learns), None | dict(), _),
            ):
                return self._made(data, learns=learns)
            case "torch._tensor._rebuild_from_type_v2", (
                Global() as rebuild,
                Global(name=kind),
                tuple(inner),
                state,
            ) if rebuild.name != name:
                made = self._reduce(rebuild, inner)
                is_tensor = isinstance(made, PickledTensor)
                return made if is_tensor else Record(kind, (made,), state)
            case "torch._utils._rebuild_device_tensor_from_cpu_tensor", (
                PickledTensor() as tensor,
                Global(name=kind),
                str(),
                bool(learns),
            ):
                is_same = _DTYPES.get(kind) == tensor.dtype
                return self._made(tensor, learns=learns) if is_same else Record(name, arguments)
        if name in _OTHER_TENSORS:
            return Record(name, arguments)
        if name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_")) and (
            is_admitted(*name.rsplit(".", 1))
        ):
            raise ValueError(f"a call of {name} that torch.save does not write")
        return None

    def _view(
        self,
        name: str,
        arguments: tuple[Any, ...],
        dtype: str,
        *,
        learns: bool = False,
    ) -> PickledTensor | Record:
        """Return a tensor; a record of the call for a dtype that no weight file has."""
        storage, offset, sizes, strides = arguments[:4]
        _check_numbers(offset, sizes, strides)
        if not dtype:
            return Record(name, arguments)
        tensor = PickledTensor(storage, dtype, offset, tuple(sizes), tuple(strides))
        self._made(tensor, learns=learns)
        return tensor

    def _made(self, tensor: Any, *, learns: bool) -> Any:
        if isinstance(tensor, PickledTensor):
            if learns and tensor.dtype not in _DIFFERENTIABLE:
                raise ValueError(f"a tensor of {tensor.dtype} that requires a gradient")
            self._found.tensors.append(tensor)
        return tensor

    def _charge(self, count: int) -> None:
        """Count what is made of few bytes."""
        self._items_left -= count
        if self._items_left < 0:
            raise ValueError("more items than a state dict has")

    def _pairs(self, items: list[Any]) -> dict[Any, Any]:
        if len(items) % 2:
            raise ValueError("a dict item without a value")
        keys = items[::2]
        for key in keys:
            if isinstance(key, tuple):
                self._tuple_keys_left -= 1
                is_fit = self._tuple_keys_left >= 0 and len(key) <= _LONGEST_TUPLE_KEY
                is_fit = is_fit and all(map(_can_be_key, key))
            else:
                is_fit = _can_be_key(key)
            if not is_fit:
                raise ValueError(f"a dict key of type {type(key).__name__}")
        return dict(zip(keys, items[1::2], strict=True))


# Constructors that torch admits, whose arguments it would refuse if they are not as expected.
_STRICT: Final = frozenset(
    (
        *("collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device"),
        *("builtins.set", "builtins.complex", "builtins.bytearray"),
    )
)


def _object(kind: Any, arguments: Any, keywords: Any = None) -> Any:
    """Return a record for an object of a class; keywords are the last of its arguments."""
    if not isinstance(kind, Global) or not isinstance(arguments, tuple):
        raise ValueError(f"an object of a {type(kind).__name__}")
    if kind.name == "collections.OrderedDict" and not arguments and not keywords:
        return OrderedDict()
    return Record(kind.name, (arguments, keywords) if keywords else arguments)


def _can_be_key(key: Any) -> bool:
    # Integers hash to themselves: large ones could be made to collide.
    if isinstance(key, int):
        return abs(key) < _LARGEST_INDEX
    return key is None or isinstance(key, str | bytes | float | Global | Record | PickledTensor)


def _typed(storage: PickledStorage) -> str:
    """Return the dtype of a tensor that has its storage's, empty if no weight file has it."""
    if not storage.dtype and storage.width == 1:
        raise ValueError("a tensor without a dtype")
    return storage.dtype


def _pair(value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError("an item that is no pair")
    return value[0], value[1]


def _check_numbers(offset: Any, sizes: Any, strides: Any) -> None:
    if max(len(sizes), len(strides)) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor of {len(sizes)} dimensions")
    numbers = (offset, *sizes, *strides)
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a tensor whose offset, sizes or strides are not sizes")
    if len(sizes) != len(strides):
        raise ValueError("a tensor whose sizes and strides do not go together")
