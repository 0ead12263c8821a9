"""Draw a stack of layers, module by module: the larger a square, the larger the change."""

from __future__ import annotations

from collections.abc import Iterator
from math import cos, radians, sin
from typing import Final

from vita_ckpt.checks.change_map import Cell, ChangeMap
from vita_ckpt.cli.html.blocks import drawing, short
from vita_ckpt.cli.html.markup import Markup, tag
from vita_ckpt.errors import printable

_CELL: Final = 20.0
_LEFT: Final = 58.0
_ANGLE: Final = 50.0
_LETTERS: Final = 34
_LETTER: Final = 6.6
# Steps of relative change, each with the side of its square.
STEPS: Final = (
    (1e-4, 5.0, "below 0.01 %"),
    (1e-3, 7.0, "below 0.1 %"),
    (1e-2, 9.0, "below 1 %"),
    (1e-1, 11.5, "below 10 %"),
    (1.0, 14.0, "below 100 %"),
    (float("inf"), 17.0, "100 % or more"),
)
_UNKNOWN: Final = 2  # the step of a change whose size was not measured


def heat_map(label: str, found: ChangeMap) -> Markup:
    """Draw a map; what is added or removed has a sign, what is of another shape ≠."""
    names = [short(printable(column), _LETTERS) for column in found.columns]
    longest = max(map(len, names)) * _LETTER
    top = longest * sin(radians(_ANGLE)) + 14
    width = _LEFT + _CELL * len(names) + longest * cos(radians(_ANGLE)) + 8
    height = top + _CELL * len(found.rows) + 4
    return drawing(
        label,
        width,
        height,
        (_column(number, name, top) for number, name in enumerate(names)),
        (_row(number, row, found, top) for number, row in enumerate(found.rows)),
        class_="map",
    )


def legend() -> Markup:
    """Draw the steps of relative change, and the signs."""
    items: list[Markup] = []
    for number, (_, side, words) in enumerate(STEPS):
        items += _entry(number, _square(0, 0, number, side), words)
    for number, (sign, words) in enumerate(
        (("+", "added"), ("–", "removed"), ("≠", "other shape"), ("!", "not finite")), len(STEPS)
    ):
        items += _entry(number, tag("g", _sign(0, 0, sign)), words)
    return drawing("Legend of the map", 560, 72, items, class_="narrow")


def percent(cell: Cell) -> str:
    """Return the relative change of a cell in words and numbers."""
    said = [
        f"{number} {word}"
        for number, word in ((cell.added, "added"), (cell.removed, "removed"))
        if number
    ]
    relative = cell.distance.relative_l2 if cell.distance is not None else None
    if relative is not None:
        said.insert(0, f"{relative * 100:.3g} %")
    elif cell.distance is not None and cell.distance.max_abs:
        said.insert(0, "from zero")
    elif cell.changed > cell.unlike:
        said.insert(0, f"{cell.changed - cell.unlike} changed")
    if cell.unlike:
        said.append(f"{cell.unlike} of another shape")
    if _is_broken(cell):
        said.append("not finite")
    return ", ".join(said) or "the same values"


def _entry(number: int, shape: Markup, words: str) -> Iterator[Markup]:
    x, y = 10 + (number % 4) * 138, (number // 4) * 23
    yield tag("g", shape, transform=f"translate({x} {y + 1})")
    yield tag("text", words, x=x + 24, y=y + 15, class_="small")


def _column(number: int, name: str, top: float) -> Markup:
    x, y = _LEFT + _CELL * number + _CELL / 2, top - 6
    place = f"rotate(-{_ANGLE:.0f} {x:.0f} {y:.0f})"
    return tag("text", name, x=x, y=y, transform=place, class_="small")


def _row(number: int, row: str, found: ChangeMap, top: float) -> Iterator[Markup]:
    y = top + _CELL * number
    yield tag("text", row, x=_LEFT - 8, y=y + 14, text_anchor="end", class_="small")
    for column, name in enumerate(found.columns):
        x = _LEFT + _CELL * column
        yield tag("rect", x=x, y=y, width=_CELL, height=_CELL, class_="cell")
        cell = found.cells.get((row, name))
        if cell is not None:
            yield from _mark(x, y, cell)


def _mark(x: float, y: float, cell: Cell) -> Iterator[Markup]:
    if _is_broken(cell):
        yield _sign(x, y, "!")
    elif not cell.changed:
        yield _sign(x, y, "+" if cell.added else "–")
    elif cell.distance is None and cell.unlike:
        yield _sign(x, y, "≠")
    else:
        step = _step(cell)
        yield _square(x, y, step, STEPS[step][1])


def _is_broken(cell: Cell) -> bool:
    distance = cell.distance
    return distance is not None and bool(distance.nonfinite_after)


def _step(cell: Cell) -> int:
    if cell.distance is None:
        return _UNKNOWN
    relative = cell.distance.relative_l2
    if relative is None:
        return len(STEPS) - 1
    return next(number for number, (edge, _, _) in enumerate(STEPS) if relative < edge)


def _square(x: float, y: float, step: int, side: float) -> Markup:
    margin = (_CELL - side) / 2
    return tag("rect", x=x + margin, y=y + margin, width=side, height=side, class_=f"h{step + 1}")


def _sign(x: float, y: float, sign: str) -> Markup:
    return tag("text", sign, x=x + _CELL / 2, y=y + 15, text_anchor="middle", class_="strong")
