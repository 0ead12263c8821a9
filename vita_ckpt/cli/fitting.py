"""Fit the cells of a table into the width of a terminal, without breaking words."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Final, TextIO

_GAP: Final = 2  # spaces between two columns
_WORD: Final = re.compile(r"\S+\s*")
# A word that is too long, such as the name of a tensor, is broken after one of these.
_PART: Final = re.compile(r"[^./,]*[./,]+|[^./,]+")
# Tables fit terminals from this width on. Where one does not fit otherwise, a word is broken after
# one of these too, as in the name of a key.
_NARROWEST: Final = 60
_SMALL_PART: Final = re.compile(r"[^./,_-]*[./,_-]+|[^./,_-]+")


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Return the width to fit: ``COLUMNS``, or that of the terminal ``stream`` is, else None.

    ``stream`` is stdout by default.
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # no terminal, or no file at all
        return None


def fit(
    rows: Sequence[Sequence[str]], headers: Sequence[str], width: int
) -> tuple[list[list[str]], list[str]]:
    """Return the cells of ``rows`` and ``headers`` with line breaks: the table fits if it can.

    The widest columns are narrowed first. A line breaks between words, and after a ``.``, ``/`` or
    ``,`` in a word that is wider than its column; if that is not enough for 60 columns or more,
    after a ``_`` or ``-`` too. A table of longer parts stays wider.
    """
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    gaps = _GAP * (len(widths) - 1)
    part = _PART
    least = [max(_longest_part(cell, part) for cell in column) for column in columns]
    if width >= _NARROWEST and sum(least) + gaps > width:
        smaller = [max(_longest_part(cell, _SMALL_PART) for cell in c) for c in columns]
        if sum(smaller) + gaps <= width:
            part, least = _SMALL_PART, smaller
    excess = sum(widths) + gaps - width
    while excess > 0:
        wide = [at for at, size in enumerate(widths) if size > least[at]]
        if not wide:
            break
        widest = max(wide, key=widths.__getitem__)
        next_widest = max((widths[at] for at in wide if widths[at] < widths[widest]), default=0)
        narrower = max(least[widest], next_widest, widths[widest] - excess)
        excess -= widths[widest] - narrower
        widths[widest] = narrower
    head, *body = (
        ["\n".join(_lines(cell, widths[at], part)) for at, cell in enumerate(row)]
        for row in (headers, *rows)
    )
    return body, head


def wrapped(line: str, indent: int, width: int) -> list[str]:
    """Return a line in pieces of at most ``width``, broken between words; all but one indented."""
    if len(line) <= width or indent >= width:
        return [line]
    first, rest = line[:indent], _lines(line[indent:], width - indent, _SMALL_PART)
    return [first + rest[0], *(" " * indent + piece for piece in rest[1:])]


def _longest_part(text: str, part: re.Pattern[str]) -> int:
    return max((len(found) for word in text.split() for found in part.findall(word)), default=0)


def _lines(text: str, width: int, part: re.Pattern[str]) -> list[str]:
    lines = [""]
    for word in _WORD.findall(text):
        pieces = [word] if len(word.rstrip()) <= width else part.findall(word)
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.rstrip() for line in lines]
