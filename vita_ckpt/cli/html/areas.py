"""Draw sizes as areas: a rectangle for each part, cut by dtype."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from vita_ckpt.cli.html.blocks import drawing, short, size_of
from vita_ckpt.cli.html.markup import Markup, tag
from vita_ckpt.errors import printable

_WIDTH: Final = 720.0
_HEIGHT: Final = 200.0
_LINE: Final = 18.0  # of text
_CHARACTER: Final = 7.2  # the width of one, at most in most fonts


class Rectangle(NamedTuple):
    """A place in a drawing."""

    x: float
    y: float
    width: float
    height: float


class Part(NamedTuple):
    """A part: its label, the number of its colour, and its bytes by dtype."""

    label: str
    colour: int
    dtypes: Mapping[str, int]


def areas(label: str, parts: Sequence[Part]) -> Markup:
    """Draw each part as large as its bytes are; what has room for it has its name in it."""
    known = [(sum(part.dtypes.values()), part) for part in parts]
    known = sorted(((size, part) for size, part in known if size), key=lambda pair: -pair[0])
    places = squarified([size for size, _ in known], Rectangle(0, 0, _WIDTH, _HEIGHT))
    shapes = [
        shape
        for (_, part), place in zip(known, places, strict=True)
        for shape in _part(part, place)
    ]
    return drawing(label, _WIDTH, _HEIGHT, shapes)


def _part(part: Part, place: Rectangle) -> Iterator[Markup]:
    dtypes = sorted(((d, n) for d, n in part.dtypes.items() if n), key=lambda pair: -pair[1])
    for (dtype, size), inner in zip(dtypes, squarified([n for _, n in dtypes], place), strict=True):
        said = f"{part.label} {dtype} {size_of(size)}"
        yield tag(
            "g",
            tag("title", said),
            tag("rect", class_=f"area p{part.colour}", **inner._asdict()),
            _words((part.label, f"{dtype} {size_of(size)}"), inner),
        )


def _words(lines: Sequence[str], place: Rectangle) -> Iterator[Markup]:
    room = int((place.width - 12) / _CHARACTER)
    if place.height < _LINE * len(lines) + 8 or room < max(map(len, lines)) // 2 or room < 6:
        return
    for number, line in enumerate(lines):
        yield tag(
            "text",
            short(printable(line), room),
            x=place.x + 8,
            y=place.y + _LINE * (number + 1),
            class_=None if number else "strong",
        )


def squarified(sizes: Sequence[float], place: Rectangle) -> list[Rectangle]:
    """Cut ``place`` into rectangles as large as ``sizes`` say, largest first, near to squares.

    The sizes are positive and descending (Bruls, Huizing and van Wijk, 2000).
    """
    found: list[Rectangle] = []
    rest, left = list(sizes), float(sum(sizes))
    while rest:
        side, length = min(place.width, place.height), max(place.width, place.height)
        row = 1
        while row < len(rest) and _worst(rest[: row + 1], side, length, left) <= _worst(
            rest[:row], side, length, left
        ):
            row += 1
        taken, rest = rest[:row], rest[row:]
        total = float(sum(taken))
        depth, along = length * total / left, 0.0
        for size in taken:
            step = side * size / total
            found.append(
                Rectangle(place.x, place.y + along, depth, step)
                if place.width >= place.height
                else Rectangle(place.x + along, place.y, step, depth)
            )
            along += step
        left -= total
        place = (
            Rectangle(place.x + depth, place.y, max(place.width - depth, 0), place.height)
            if place.width >= place.height
            else Rectangle(place.x, place.y + depth, place.width, max(place.height - depth, 0))
        )
    return found


def _worst(row: Sequence[float], side: float, length: float, left: float) -> float:
    """Return the worst ratio of the sides of rectangles that share a row."""
    total = sum(row)
    depth = length * total / left
    if not depth or not side:
        return 1.0
    return max(
        max(depth / (side * size / total), (side * size / total) / depth) if size else 1e9
        for size in row
    )
