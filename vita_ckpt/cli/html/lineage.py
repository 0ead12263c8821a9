"""Draw how a checkpoint was made: its surgeries one below the other, what went into each beside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vita_ckpt.cli.html.blocks import drawing, short
from vita_ckpt.cli.html.markup import Markup, tag
from vita_ckpt.errors import printable

_WIDTH: Final = 560.0
_BOX: Final = 240.0
_HIGH: Final = 40.0
_GAP: Final = 34.0
_RIGHT: Final = _WIDTH - _BOX - 2
_LETTERS: Final = 32  # that a box has room for
MOST: Final = 12  # operations that are drawn: the last ones
_INPUTS: Final = 4  # of one operation that are drawn


def lineage(label: str, operations: Sequence[Any], name: str) -> Markup:
    """Draw the last of ``operations``, the newest at the bottom, and the checkpoint below it."""
    shown = [entry if isinstance(entry, Mapping) else {} for entry in operations[-MOST:]]
    shapes: list[Markup] = []
    y, above = 2.0, None
    for number, entry in enumerate(shown):
        inputs = _inputs(entry)
        if number and inputs and inputs[0][0] == "base":
            inputs = inputs[1:]  # the operation above made it
        for place, (role, given) in enumerate(inputs[:_INPUTS]):
            top = y + place * (_HIGH + 8)
            shapes += _box(0, top, f"{role}", given, "box")
            shapes += _arrow(2 + _BOX, top + _HIGH / 2, _RIGHT, y + _HIGH / 2)
        if above is not None:
            shapes += _arrow(_RIGHT + _BOX / 2, above, _RIGHT + _BOX / 2, y)
        time = str(entry.get("time", ""))[:10]
        shapes += _box(_RIGHT, y, str(entry.get("operation", "unknown")), time, "done")
        above = y + _HIGH
        y += max(1, len(inputs[:_INPUTS])) * (_HIGH + 8) - 8 + _GAP
    if above is not None:
        shapes += _arrow(_RIGHT + _BOX / 2, above, _RIGHT + _BOX / 2, y)
    shapes += _box(_RIGHT, y, "this checkpoint", name, "box")
    return drawing(label, _WIDTH, y + _HIGH + 4, shapes, class_="narrow")


def _inputs(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return role and name of what went into an operation, whatever the file says."""
    given = entry.get("inputs")
    pairs = given.items() if isinstance(given, Mapping) else ()
    return [
        (str(role), str(value.get("name", "")) if isinstance(value, Mapping) else "")
        for role, value in pairs
    ]


def _box(x: float, y: float, first: str, second: str, kind: str) -> Iterator[Markup]:
    yield tag("rect", x=x + 1, y=y, width=_BOX, height=_HIGH, rx=6, class_=kind)
    for line, text in enumerate((first, second)):
        yield tag(
            "text",
            short(printable(text), _LETTERS),
            x=x + 11,
            y=y + 17 + line * 16,
            class_="small soft" if line else "strong",
        )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> Iterator[Markup]:
    yield tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="edge")
    if x1 == x2:
        tip = f"{x2 - 5:.0f},{y2 - 8:.0f} {x2 + 5:.0f},{y2 - 8:.0f} {x2:.0f},{y2:.0f}"
    else:
        tip = f"{x2 - 8:.0f},{y2 - 5:.0f} {x2 - 8:.0f},{y2 + 5:.0f} {x2:.0f},{y2:.0f}"
    yield tag("polygon", points=tip, class_="tip")
