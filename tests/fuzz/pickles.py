"""Pickle programs: valid ones opcode by opcode, and what could be put between."""

from __future__ import annotations

import pickletools
import struct

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.fuzz import canary

_HERE = canary.__name__.encode()


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def number(value: int) -> bytes:
    """LONG1."""
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def storage(key: str, kind: str, size: int) -> bytes:
    """A storage's persistent id, and BINPERSID."""
    module, _, name = kind.rpartition(".")
    words = text("storage") + named(module, name) + text(key) + text("cpu")
    return b"(" + words + number(size) + b"tQ"


def tensor(
    key: str, size: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> bytes:
    """A float32 tensor as torch.save writes it."""
    sizes = b"".join(b"(" + b"".join(map(number, n)) + b"t" for n in (shape, strides))
    hooks = named("collections", "OrderedDict") + b")R"
    call = named("torch._utils", "_rebuild_tensor_v2")
    held = storage(key, "torch.FloatStorage", size)
    return call + b"(" + held + number(offset) + sizes + b"\x89" + hooks + b"tR"


# Each of these would leave a mark in the canary if a pickle module ran it.
TRAPS = (
    named(canary.__name__, "spring") + text("a") + b"\x85R",
    short(canary.__name__) + short("spring") + b"\x93)R",
    b"(i" + _HERE + b"\nspring\n",
    b"(" + named(canary.__name__, "Trap") + b"o",
    named(canary.__name__, "Trap") + b")\x81",
    named(canary.__name__, "Trap") + b")}\x92",
    named(canary.__name__, "Trap") + b")\x81}b",
    named(canary.__name__, "Trap") + b")\x81(Ne",
    named(canary.__name__, "Trap") + b")\x81" + text("k") + b"Ns",
    b"\x82" + bytes([canary.CODES[0]]) + b")R",
    b"\x83" + struct.pack("<H", canary.CODES[1]) + b")\x81",
    b"\x84" + struct.pack("<i", canary.CODES[2]) + b"N\x61",
    named("builtins", "eval")
    + text(f"__import__('{canary.__name__}').fuzz.canary.spring()")
    + b"\x85R",
    named("builtins", "exec") + text(f"import {canary.__name__} as c; c.spring()") + b"\x85R",
    named("functools", "partial") + named(canary.__name__, "spring") + b"\x85R)R",
    named("torch._tensor", "_rebuild_from_type_v2")
    + b"("
    + named(canary.__name__, "spring")
    + named("torch", "Tensor")
    + b")}tR",
    named("torch._utils", "_rebuild_parameter")
    + named(canary.__name__, "spring")
    + b")R\x88"
    + named("collections", "OrderedDict")
    + b")R\x87R",
    named("collections", "OrderedDict") + b"]" + named(canary.__name__, "Trap") + b")\x81a\x85R",
)  # fmt: skip

_WORDS = (
    *(text(w) for w in ("a", "0", "1", "storage", "cpu", "state_dict", "", "\0", "x" * 300)),
    *(short(w) for w in ("os", "system", "torch", "FloatStorage", "collections", "OrderedDict")),
    *(b"X\xff\xff\xff\xff", b"X\x00\x00\x10\x00", b"\x8c\xff"),
    *(b"\x8d" + b"\xff" * 8, b"T\x05\x00\x00\x80"),
    *(b"\x8e" + bytes(7) + b"\x80", b"\x96" + b"\xff" * 8),
    *(b"B\x02\x00\x00\x00ab", b"C\x01a", b"U\x01a"),
    *(b"S'a'\n", b"S'\\q'\n", b"S'\\x'\n", b"Va\\ud800\n"),
    *(b"S\n", b"X\x03\x00\x00\x00\xed\xa0\x80"),
)  # fmt: skip
_NUMBERS = (
    *(b"K\x00", b"K\x01", b"K\x02", b"M\xff\xff"),
    *(b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"I01\n"),
    *(b"I5\n", b"L5L\n", b"L-5L\n", b"F1e999\n", b"Fnan\n"),
    *(b"G" + b"\x7f\xf8" + bytes(6), b"\x8a\x00"),
    *(b"\x8b\x04\x00\x00\x00" + b"\xff" * 4, b"\x8b\xff\xff\xff\xff", b"\x8a\xff" + b"\x7f" * 255),
    *map(number, (1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, -1, (1 << 61) - 1)),
    b"L" + b"9" * 5000 + b"L\n",
)  # fmt: skip
_STACK = (
    *(b"N", b"\x88", b"\x89", b"(", b")", b"]", b"}"),
    *(b"0", b"1", b"2", b"t", b"\x85", b"\x86", b"\x87"),
    *(b"a", b"e", b"s", b"u", b"l", b"d", b"R", b"b"),
    *(b"Q", b"\x81", b"\x92", b"o", b"\x93", b"\x94"),
    *(b"\x8f", b"\x90", b"\x91", b"\x97", b"\x98"),
    *(b".", b"\x80\x02", b"\x80\xff", b"Pa\n", b"\xff"),
    *(b"\x95" + bytes(8), b"\x95" + b"\xff" * 8, b"g0\n"),
    *(b"p0\n", b"p-1\n", b"g" + b"9" * 5000 + b"\n"),
    *(op + bytes([n]) for op in (b"q", b"h") for n in (0, 1, 2)),
    *(b"r\xff\xff\xff\x7f", b"r\xff\xff\xff\xff", b"j\x00\x00\x00\x00", b"j\xff\xff\xff\xff"),
)  # fmt: skip
_GLOBALS = tuple(
    named(*kind.rsplit(".", 1))
    for kind in (
        *("torch.FloatStorage", "torch.BoolStorage", "torch.storage.UntypedStorage", "torch.Size"),
        *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch.bfloat16"),
        *("torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter", "torch.Tensor"),
        *("torch._utils._rebuild_parameter_with_state", "torch._tensor._rebuild_from_type_v2"),
        *("collections.OrderedDict", "torch.nn.parameter.Parameter", "torch.cuda.HalfStorage"),
        *("builtins.set", "collections.Counter", "collections.defaultdict", "torch.device"),
        *("torch._utils._rebuild_sparse_tensor", "torch._utils._rebuild_wrapper_subclass"),
        *("argparse.Namespace", "_codecs.encode", "torch.ComplexDoubleStorage"),
        *(
            "copyreg._reconstructor",
            "os.system",
            "torch.load",
            "torch.storage._load_from_bytes",
            "builtins.getattr",
        ),
    )
)
_WHOLE = (
    tensor("0", 4, 0, (2, 2), (2, 1)),
    tensor("0", 4, 0, (4,), (1,)),
    tensor("0", 4, 1, (1 << 20, 1 << 20), (0, 0)),
    tensor("0", 4, 0, (), ()),
    tensor("1", 1 << 40, 0, (1 << 40,), (1,)),
    tensor("0", 4, 0, (0, 1 << 40), (1, 1)),
    storage("0", "torch.FloatStorage", 4),
    storage("0", "torch.storage.UntypedStorage", 16),
    named("collections", "OrderedDict") + b")R",
    text("a") + tensor("0", 4, 0, (4,), (1,)) + b"s",
    b"h\x00h\x00\x86q\x00",
)

pieces = st.one_of(
    *map(st.sampled_from, (_WORDS, _NUMBERS, _STACK, _STACK, _GLOBALS, _WHOLE, TRAPS))
)

programs = st.lists(pieces, max_size=12).map(b"".join)


@st.composite
def state_dicts(draw: DrawFn) -> bytes:
    """A pickle of a state dict in which something else may stand anywhere."""
    body = [b"\x80\x02", b"}", b"q\x00"]
    for name in draw(st.lists(st.sampled_from(["a", "b", "\u00e9", "a"]), max_size=3)):
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
        strides = tuple(draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape))))
        body += [text(name), tensor("0", 4, draw(st.integers(0, 3)), shape, strides), b"s"]
    body.append(b".")
    for piece in draw(st.lists(pieces, max_size=2)):
        body.insert(draw(st.integers(0, len(body))), piece)
    return b"".join(body)


def opcodes(program: bytes) -> list[bytes]:
    """A valid pickle cut between its opcodes."""
    starts = [position for _, _, position in pickletools.genops(program) if position is not None]
    return [program[i:j] for i, j in zip(starts, [*starts[1:], len(program)], strict=True)]


Edit = tuple[str, int, int, bytes]
edits: st.SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "drop", "copy", "swap"]),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        pieces,
    ),
    min_size=1,
    max_size=4,
)


def edited(program: bytes, how: list[Edit]) -> bytes:
    """A valid pickle with opcodes put in, taken out and moved."""
    ops = opcodes(program)
    for what, first, second, piece in how:
        at, other = first % len(ops), second % len(ops)
        if what == "insert":
            ops.insert(at, piece)
        elif what == "replace":
            ops[at] = piece
        elif what == "drop" and len(ops) > 1:
            del ops[at]
        elif what == "copy":
            ops.insert(at, ops[other])
        else:
            ops[at], ops[other] = ops[other], ops[at]
    return b"".join(ops)
