"""Draw how large values are: a bar for each power of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, floor, log2
from typing import Final

from vita_ckpt.cli.html.blocks import drawing
from vita_ckpt.cli.html.markup import Markup, tag

_WIDTH: Final = 640.0
_HEIGHT: Final = 120.0
_BOTTOM: Final = 22.0
_LEAST: Final = 16  # bars, so that few of them are not wide
_MOST_TICKS: Final = 10


def histogram(label: str, counts: Mapping[int, int]) -> Markup:
    """Draw the number of values from 2**e up to 2**(e + 1) for each e of ``counts``."""
    first, last = min(counts), max(counts)
    last = max(last, first + _LEAST - 1)
    step = _WIDTH / (last - first + 1)
    largest = max(counts.values())
    top = _HEIGHT - _BOTTOM
    bars = (
        tag(
            "rect",
            x=(e - first) * step + step * 0.08,
            # What is there is seen, however little it is.
            y=top - max(number / largest * (top - 4), 1.0),
            width=step * 0.84,
            height=max(number / largest * (top - 4), 1.0),
            class_="bar",
        )
        for e, number in sorted(counts.items())
        if number
    )
    axis = tag("line", x1=0, y1=top, x2=_WIDTH, y2=top, class_="rule")
    return drawing(label, _WIDTH, _HEIGHT, bars, axis, _ticks(first, last, step), class_="narrow")


def _ticks(first: int, last: int, step: float) -> Iterator[Markup]:
    """Yield the powers of ten below the bars."""
    lowest, highest = ceil(first / log2(10)), floor((last + 1) / log2(10))
    every = max(1, ceil((highest - lowest + 1) / _MOST_TICKS))
    for power in range(lowest, highest + 1, every):
        x = (power * log2(10) - first) * step
        end = "start" if x < 20 else "end" if x > _WIDTH - 20 else "middle"
        yield tag("text", f"1e{power}", x=x, y=_HEIGHT - 6, text_anchor=end, class_="small soft")
