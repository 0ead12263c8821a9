"""Damage: bytes of valid files flipped, moved and cut; values of JSON files replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Places and sizes are numbers of any size, taken modulo what there is.
_anywhere = st.integers(0, (1 << 32) - 1)
_short = st.integers(0, 1 << 32).map(lambda size: 1 + size % 64) | _anywhere

# Numbers that sizes and offsets are, or should not be.
NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 127, 128, 255, 256, 1000, 65535, 65536),
    *(1 << 20, (1 << 24) + 1, 100_000_000, 100_000_001, (1 << 31) - 1, 1 << 31, (1 << 32) - 1),
    *(1 << 32, (1 << 62) - 1, (1 << 63) - 1, 1 << 63, (1 << 63) + 8, (1 << 64) - 8, (1 << 64) - 1),
)

Step = tuple[str, int, int, int]

steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("flip"), _anywhere, st.integers(0, 7), st.just(0)),
    st.tuples(st.just("set"), _anywhere, st.integers(0, 255), st.just(0)),
    st.tuples(st.just("cut"), _anywhere, st.just(0), st.just(0)),
    st.tuples(st.just("drop"), _anywhere, _short, st.just(0)),
    st.tuples(st.just("copy"), _anywhere, _anywhere, _short),
    st.tuples(st.just("swap"), _anywhere, _anywhere, _short),
    st.tuples(st.just("insert"), _anywhere, _anywhere, _short),
    st.tuples(st.just("number"), _anywhere, st.sampled_from(NUMBERS), st.sampled_from([2, 4, 8])),
    st.tuples(st.just("append"), st.just(0), st.just(0), _short),
)
damage = st.lists(steps, min_size=1, max_size=4)


def damaged(data: bytes, how: list[Step], within: int | None = None) -> bytes:
    """``data`` after each step of damage; only its first ``within`` bytes are aimed at."""
    content = bytearray(data)
    for kind, *numbers in how:
        reach = min(len(content), len(content) if within is None else within)
        if reach:
            _apply(content, kind, reach, *numbers)
    return bytes(content)


def _apply(content: bytearray, kind: str, reach: int, at: int, other: int, size: int) -> None:
    at %= reach
    if kind == "flip":
        content[at] ^= 1 << other
    elif kind == "set":
        content[at] = other
    elif kind == "cut":
        del content[at:]
    elif kind == "drop":
        del content[at : at + other % reach]
    elif kind == "append":
        content += bytes(size % 4096)
    elif kind == "number":
        content[at : at + size] = (other % (1 << 8 * size)).to_bytes(size, "little")
    else:
        other, size = other % reach, size % reach
        piece, there = content[other : other + size], content[at : at + size]
        if kind == "swap" and abs(other - at) >= size:
            content[other : other + size] = there
        if kind == "insert":
            content[at:at] = piece
        else:
            content[at : at + size] = piece


def nested(levels: int) -> str:
    """Lists in lists."""
    return "[" * levels + "]" * levels


# Values as they stand in a file: what JSON cannot say, what Python's and Rust's readers take
# differently, what is too large, and words and paths that mean something.
FRAGMENTS = (
    *("null", "true", "false", "[]", "{}", "0", "-0", "-1", "0.5", "1e999", "1E400", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "1.0", "01", "9" * 4300, "9" * 5000, "-" + "9" * 4299),
    *map(str, NUMBERS[-12:]),
    *(nested(levels) for levels in (3, 50, 99, 101, 300, 900, 980, 5000)),
    *('{"a":' * levels + "1" + "}" * levels for levels in (40, 500, 970)),
    *('"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\u202e\\n\\u001b[31m"', '"\\q"', '"\\u12"'),
    *('{"a": 1, "a": 2}', '{"\\ud800": 1}', '{"": {"": ""}}'),
    *('"é\\u00e9"', '"\n"', "[1,]", "[1 2]"),
    *('"' + "x" * 5000 + '"', '"' + "\U0001f600" * 300 + '"', "[" + "0," * 2000 + "0]", '""'),
    *('".."', '"../.."', '"/"', '"/dev/zero"', '"/proc/self/mem"', '"."', '"~"', '"a/b"', '"\\\\"'),
    *('"F32"', '"BF16"', '"F4"', '"f32"', '"float32"', '"sppv1"', '"ldp"', '"vanilla"', '"linear"'),
    *('"mlp9999x_gelu"', '"mlp0x_gelu"', '"identity"'),
    *('"384,768,1152"', '"999999,999999"', '"8,0"'),
    *('"vita-mixtral"', '"vita-Qwen2"', '"qwen2"'),
    *('"mixtral"', '"siglip"', '"clip"', '"intern_vit_6b"'),
    *('"config.json"', '"model-00001-of-00002.safetensors"', '"tower-internvit"', '"sig"', '"eva"'),
    *('{"hidden_size": 8}', '{"shortest_edge": 8}'),
    *('[{"content": []}]', '[["a", 1], [[], 2], [{}]]'),
    *("[0]", "[1, 2]", "[[1], [2]]", "[true]", "[0, 18446744073709551615]", "16", "32", "8", "24"),
)  # fmt: skip

_texts = st.text(max_size=6).map(json.dumps)
fragments = st.sampled_from(FRAGMENTS) | st.integers(-9, 1 << 65).map(str) | _texts

# What happens to one place of a JSON file: which, what, and with which value.
Change = tuple[int, str, str]
changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        _anywhere, st.sampled_from(["value", "value", "value", "drop", "twice", "key"]), fragments
    ),
    min_size=1,
    max_size=3,
)


def changed(sound: bytes, how: list[Change]) -> bytes:
    """A JSON file with some of its values replaced by fragments, its keys dropped or doubled."""
    value = json.loads(sound)
    spliced: dict[str, str] = {}
    for number, (place, action, fragment) in enumerate(how):
        places = [*_places(value)]
        if not places:
            break
        container, key = places[place % len(places)]
        mark = f"@{number}@"
        if action == "drop":
            del container[key]
        elif action == "value" or isinstance(container, list):
            container[key] = mark
            spliced[f'"{mark}"'] = fragment
        elif action == "key":
            container[mark] = container.pop(key)
            spliced[f'"{mark}"'] = fragment if fragment.startswith('"') else f'"{number}"'
        else:  # the key twice: the second is what json.loads takes
            container[mark] = 0
            spliced[f'"{mark}": 0'] = f"{json.dumps(key)}: {fragment}"
    text = json.dumps(value)
    for mark, fragment in spliced.items():
        text = text.replace(mark, fragment, 1)
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value: the container and the key or number."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
