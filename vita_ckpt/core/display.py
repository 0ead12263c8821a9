"""Show a value on one screen: as text in a terminal, as a table in a notebook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from itertools import islice
from typing import Any, ClassVar, Final

from vita_ckpt.errors import escaped

MAX_LINES: Final = 24
MAX_COLUMNS: Final = 100

# How many texts of a sequence are joined at most; the line is cut anyway.
_MAX_JOINED: Final = 12


class Displayed:
    """A base of dataclasses whose ``repr`` fits on one screen, however much they hold.

    At most 24 lines of 100 printable characters. Subclasses are declared with
    ``@dataclass(repr=False)`` and override :meth:`display_rows` where counts of their fields say
    too little.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def display_rows(self) -> Iterable[tuple[str, object]]:
        """Yield the labels and values to show: by default every field that is not empty."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.repr and value is not None and value not in ("", (), {}):
                yield field.name.replace("_", " "), value

    def __repr__(self) -> str:
        rows = list(_cells(self.display_rows()))
        width = max((len(label) for label, _ in rows), default=0)
        lines = [f"  {label.ljust(width)}  {text}" for label, text in rows]
        return "\n".join(_cut(line) for line in (type(self).__name__, *lines))

    def _repr_html_(self) -> str:
        from html import escape  # noqa: PLC0415 - slow to import, and only notebooks need it

        rows = "".join(
            f'<tr><th style="text-align:left">{escape(label)}</th>'
            f'<td style="text-align:left">{escape(text)}</td></tr>'
            for label, text in _cells(self.display_rows())
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def count_by_type(values: Iterable[object]) -> str:
    """Count values by the names of their types: ``4 ReplaceTensor, 1 SetConfig``."""
    counts = Counter(type(value).__name__ for value in values)
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _cells(rows: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    """Yield each row as two printable lines; leave out what would not fit on the screen."""
    for label, value in islice(rows, MAX_LINES - 1):
        yield _cut(label), _cut(_text(value))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    if isinstance(value, Mapping):
        return f"{len(value):,}"
    if isinstance(value, tuple):
        if not all(isinstance(item, str) for item in value):
            return f"{len(value):,}"
        joined = "; ".join(item[:MAX_COLUMNS] for item in value[:_MAX_JOINED])
        return f"{len(value):,}: {joined}" if len(value) > 1 else joined
    return str(value)


def _cut(text: str) -> str:
    """Escape ``text`` for a terminal and cut it to the width of the screen."""
    # Escaping makes nothing shorter: what lies beyond need not be looked at.
    line = escaped(text[: MAX_COLUMNS + 1])
    return line if len(line) <= MAX_COLUMNS else f"{line[: MAX_COLUMNS - 1]}…"
