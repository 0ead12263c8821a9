"""Format numbers and tables for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from vita_ckpt.cli import console
from vita_ckpt.cli.fitting import fit, terminal_width
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable

_THOUSAND: Final = 1000
# Modules that tabulate imports, with what it takes from them.
_UNNEEDED: Final[dict[str, dict[str, Any]]] = {
    "importlib.metadata": {"version": str, "PackageNotFoundError": LookupError},
    "html": {"escape": str},
}


def size(count: int) -> str:
    """Format bytes in decimal units: ``15.9 GB``."""
    return _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def count(number: int) -> str:
    """Format a number of parameters: ``7.62 B``, ``313 M``, ``12,352``."""
    return _scaled(number, ("", "k", "M", "B", "T")) if number >= 1_000_000 else f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: ``1 file``, ``2,048 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def path(name: str) -> str:
    """Return a path relative to the working directory if it lies below it, else unchanged."""
    if is_remote(name):
        return name
    below = os.path.relpath(name)
    return name if below.startswith("..") else below


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], right: str = "") -> str:
    """Return a plain table that fits the terminal, if stdout is one.

    ``right`` has the character ``r`` for each right-aligned column.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    columns = terminal_width()
    if columns is not None and cells:
        cells, headers = fit(cells, headers, columns)
    # tabulate 0.9 refuses an alignment for a column that is not there.
    width = max(map(len, cells), default=0)
    align = [("right" if flag == "r" else "left") for flag in right.ljust(width)[:width]]
    return _tabulate()(cells, headers, tablefmt="plain", colalign=align, disable_numparse=True)


def _tabulate() -> Callable[..., str]:
    """Import tabulate, but not what it imports for its own version and for tables in HTML.

    That takes longer to import than click.
    """
    stand_ins = {name: ModuleType(name) for name in _UNNEEDED if name not in sys.modules}
    for name, module in stand_ins.items():
        module.__dict__.update(_UNNEEDED[name])
    sys.modules.update(stand_ins)
    try:
        import tabulate  # noqa: PLC0415 - JSON does not need it
    finally:
        for name in stand_ins:
            del sys.modules[name]
    tabulate.MIN_PADDING = 0  # a header needs no more room than a cell
    render: Callable[..., str] = tabulate.tabulate
    return render


def echo_json(value: Any) -> None:
    """JSON to stdout, in ASCII: whatever a name contains is escaped."""
    console.say(json_text(value))


def _scaled(number: int, units: Sequence[str]) -> str:
    value = float(number)
    for unit in units:
        if value < _THOUSAND or unit == units[-1]:
            digits = f"{value:.0f}" if unit == units[0] else f"{value:.3g}"
            return f"{digits} {unit}".rstrip()
        value /= _THOUSAND
    raise AssertionError("a unit was returned")
