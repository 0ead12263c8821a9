"""Arrange what a diff found by layer and module: one map for each stack of layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Final

from vita_ckpt.checks.diff import TensorDifference
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.distance import Distance

# The words before the number of a layer. Without one of them the first number counts.
_STACKS: Final = frozenset(("layers", "layer", "blocks", "resblocks", "encoders", "h"))
_LONGEST_NUMBER: Final = 9
_MOST_ROWS: Final = 96
_MOST_COLUMNS: Final = 32
OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Cell:
    """What changed in a module of a layer: numbers of tensors, and the distance of their values.

    ``distance`` is None where no values were compared. ``unlike`` counts the changed tensors whose
    shape is another one, which have no distance.
    """

    changed: int = 0
    added: int = 0
    removed: int = 0
    unlike: int = 0
    distance: Distance | None = None

    def __add__(self, other: Cell) -> Cell:
        known = [d for d in (self.distance, other.distance) if d is not None]
        return Cell(
            self.changed + other.changed,
            self.added + other.added,
            self.removed + other.removed,
            self.unlike + other.unlike,
            sum(known, Distance()) if known else None,
        )


@dataclass(frozen=True, slots=True)
class ChangeMap:
    """A stack of layers: rows are layers or ranges of them, columns are modules.

    A place that ``cells`` lacks is unchanged, or not there. ``nbytes`` is the size of what changed.
    """

    stack: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    nbytes: int


def change_maps(tensors: Iterable[TensorDifference]) -> tuple[ChangeMap, ...]:
    """Return a map of each stack of layers in which something changed, the largest change first.

    Weight and bias of a module are one cell, and so are all experts of a layer. At most 96 rows and
    32 columns: beyond that neighbouring layers share a row, and modules the column ``others``.
    """
    stacks: dict[str, dict[tuple[int, str], Cell]] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        place = _place(tensor.name)
        if place is None:
            continue
        stack, layer, module = place
        cells = stacks.setdefault(stack, {})
        cells[layer, module] = cells.get((layer, module), Cell()) + _cell(tensor)
        sizes[stack] = sizes.get(stack, 0) + tensor.nbytes
    maps = [_map(stack, cells, sizes[stack]) for stack, cells in stacks.items()]
    return tuple(sorted(maps, key=lambda one: (-one.nbytes, one.stack)))


def _place(name: str) -> tuple[str, int, str] | None:
    """Return stack, layer and module of a tensor; None if its name has no number."""
    words = name.split(".")
    numbers = [n for n, word in enumerate(words[:-1]) if _is_number(word)]
    if not numbers:
        return None
    at = next((n for n in numbers if n and words[n - 1] in _STACKS), numbers[0])
    rest = ["*" if _is_number(word) else word for word in words[at + 1 :]]
    return ".".join(words[:at]), int(words[at]), ".".join(rest[:-1]) or rest[-1]


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= _LONGEST_NUMBER


def _cell(tensor: TensorDifference) -> Cell:
    kind = tensor.change
    return Cell(
        changed=int(kind == "changed"),
        added=int(kind == "added"),
        removed=int(kind == "removed"),
        unlike=int("shape" in tensor.what),
        distance=tensor.distance,
    )


def _map(stack: str, cells: Mapping[tuple[int, str], Cell], nbytes: int) -> ChangeMap:
    modules = list(dict.fromkeys(module for _, module in sorted(cells)))
    kept = modules if len(modules) <= _MOST_COLUMNS else modules[: _MOST_COLUMNS - 1]
    columns = tuple(kept) + ((OTHERS,) if len(kept) < len(modules) else ())
    layers = {layer for layer, _ in cells}
    # Layers of a stack are numbered from 0: unchanged ones are rows too, unless there are many.
    if max(layers) < _MOST_ROWS:
        layers = set(range(max(layers) + 1))
    ordered = sorted(layers)
    step = ceil(len(ordered) / _MOST_ROWS)
    label = {
        layer: _range(ordered[at], ordered[min(at + step, len(ordered)) - 1])
        for at in range(0, len(ordered), step)
        for layer in ordered[at : at + step]
    }
    known, placed = set(kept), dict[tuple[str, str], Cell]()
    for (layer, module), cell in cells.items():
        key = label[layer], module if module in known else OTHERS
        placed[key] = placed.get(key, Cell()) + cell
    return ChangeMap(stack, tuple(dict.fromkeys(label.values())), columns, placed, nbytes)


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}–{last}"
