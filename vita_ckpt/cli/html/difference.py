"""The page of ``diff``: parts, a map of each stack of layers, tensors, config and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

from vita_ckpt.checks.change_map import ChangeMap, change_maps
from vita_ckpt.checks.diff import (
    ConfigDifference,
    Difference,
    PartDifference,
    TensorDifference,
    figures,
)
from vita_ckpt.cli import render
from vita_ckpt.cli.html.areas import Part, areas
from vita_ckpt.cli.html.blocks import (
    Section,
    badge,
    document,
    folded,
    more,
    scrolling,
    size_of,
    table,
)
from vita_ckpt.cli.html.heat_map import STEPS, heat_map, legend, percent
from vita_ckpt.cli.html.markup import Child, Markup, joined, tag
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.distance import Distance

_FIGURES: Final = ("max |Δ|", "relative L2", "cosine")
_MOST_MAPS: Final = 8
_MAP_TABLE: Final = 40_000  # bytes of the table of numbers of one map
_LIST: Final = 120_000
_COLOURS: Final = {part: number for number, part in enumerate(parts.LABELS)}
_JSON: Final = "vita-ckpt diff --json lists all"


def difference_page(found: Difference) -> str:
    """Return the page of what distinguishes two checkpoints."""
    sections = [Section("parts", "Parts", _parts(found))]
    maps = change_maps(found.tensors)
    if maps:
        sections.append(Section("layers", "Layers and modules", _maps(maps, found.values)))
    if any(tensor.distance is not None for tensor in found.tensors):
        sections.append(Section("spread", "How far tensors are apart", _spread(found.tensors)))
    if found.tensors:
        sections.append(Section("tensors", "Tensors", _tensors(found)))
    if found.config:
        sections.append(Section("config", "Config", _config(found.config)))
    if found.files:
        sections.append(Section("files", "Files", _files(found)))
    if found.breaches:
        sections.insert(0, Section("only", "Outside --only", _breaches(found)))
    if found.unread:
        sections.append(Section("unread", "Not compared", _unread(found.unread)))
    lead = (
        tag("p", "A: ", tag("code", render.path(found.a))),
        tag("p", "B: ", tag("code", render.path(found.b))),
        tag("p", _verdict(found)),
        tag("p", "Config and files are not compared: one side is a lone weight file.")
        if found.tensors_only
        else None,
    )
    names = [render.path(side).rstrip("/").rpartition("/")[2] for side in (found.a, found.b)]
    title = " → ".join(names if names[0] != names[1] else map(render.path, (found.a, found.b)))
    return document("diff", title, lead, sections)


def _verdict(found: Difference) -> Markup:
    if found.identical:
        return badge("no difference", "good")
    if not (found.tensors or found.config or found.files):
        return badge("no difference known", "note")
    counts = ((found.tensors, "tensor"), (found.config, "config key"), (found.files, "file"))
    said = [render.counted(len(what), word) for what, word in counts if what]
    words = [badge(f"changed: {', '.join(said)}", "note")]
    if found.only:
        words += (
            [badge("--only does not hold", "error")]
            if found.breaches
            else [badge("--only holds", "good")]
        )
    return joined((word, " ") for word in words)


def _parts(found: Difference) -> Child:
    rows: list[Sequence[Child]] = [
        (
            joined((tag("span", class_=f"key k{_COLOURS[part.name]}"), parts.LABELS[part.name])),
            *(part.unchanged, part.changed, part.added, part.removed),
            size_of(part.nbytes),
            *(_figures(part.distance) if found.values else ()),
        )
        for part in found.parts
    ]
    counts = ("unchanged", "changed", "added", "removed", "bytes changed")
    headers = ("part", *counts, *(_FIGURES if found.values else ()))
    label = "What changed, as areas by bytes"
    changed = [_area(part, found.tensors) for part in found.parts if part.nbytes]
    return (
        scrolling(label, areas(label, changed)) if changed else None,
        table("Tensors of each part", headers, rows, total=len(rows), kinds=" rrrrrrrr"),
        None
        if found.values
        else tag("p", "Values were not compared: --values measures them.", class_="soft"),
    )


def _area(part: PartDifference, tensors: Sequence[TensorDifference]) -> Part:
    sizes: dict[str, int] = {}
    for tensor in tensors:
        side = tensor.after or tensor.before
        if side is not None and parts.part_of(tensor.name) == part.name:
            sizes[side.dtype] = sizes.get(side.dtype, 0) + side.nbytes
    return Part(parts.LABELS[part.name], _COLOURS[part.name], sizes)


def _figures(distance: Distance | None) -> Sequence[str]:
    return ("–", "–", "–") if distance is None else figures(distance)


def _maps(maps: Sequence[ChangeMap], values: bool) -> Iterator[Markup]:
    what = "The relative change is ‖B − A‖ / ‖A‖ of all values of a module in a layer."
    unknown = "A square says that bytes differ: --values measures by how much."
    yield tag("p", what if values else unknown)
    yield tag("p", "An empty place is unchanged, or not there.", class_="soft")
    yield scrolling("Legend of the maps", legend(), fit=True)
    for one in maps[:_MOST_MAPS]:
        label = f"Changes in {one.stack}, layer by module"
        yield tag("h3", tag("code", one.stack))
        yield scrolling(label, heat_map(label, one), fit=True)
        rows = (
            (
                row,
                *(
                    percent(cell) if (cell := one.cells.get((row, name))) else ""
                    for name in one.columns
                ),
            )
            for row in one.rows
        )
        numbers = table(
            f"{one.stack}: relative change" if values else f"{one.stack}: what changed",
            ("layer", *one.columns),
            rows,
            total=len(one.rows),
            kinds=" " + "r" * len(one.columns),
            nbytes=_MAP_TABLE,
            rest=_JSON,
        )
        yield folded((tag("code", one.stack), " as a table of numbers"), numbers)
    if len(maps) > _MOST_MAPS:
        yield tag("p", more(len(maps) - _MOST_MAPS, _JSON))


def _spread(tensors: Sequence[TensorDifference]) -> Child:
    """Count the tensors of each part by the steps of the maps."""
    ordered = sorted(tensors, key=lambda tensor: parts.part_of(tensor.name))
    rows: list[Sequence[Child]] = []
    for part, group in groupby(ordered, key=lambda tensor: parts.part_of(tensor.name)):
        counts = [0] * (len(STEPS) + 1)
        for tensor in group:
            if tensor.distance is None:
                continue
            relative = tensor.distance.relative_l2
            step = (
                len(STEPS)
                if relative is None
                else next(n for n, (edge, _, _) in enumerate(STEPS) if relative < edge)
            )
            counts[step] += 1
        if any(counts):
            rows.append((parts.LABELS[part], *counts))
    headers = ("part", *(words for _, _, words in STEPS), "from zero")
    caption = "Changed tensors by their relative change"
    return table(caption, headers, rows, total=len(rows), kinds=" rrrrrrrr")


def _tensors(found: Difference) -> Markup:
    # What both have comes first, the farthest first.
    ordered = sorted(found.tensors, key=lambda one: (not one.what, -_relative(one)))
    more_columns = ("values changed", *_FIGURES) if found.values else ()
    headers = ("tensor", "change", "dtype and shape", "bytes", *more_columns)
    return table(
        "Tensors that differ, the largest relative change first"
        if found.values
        else "Tensors that differ",
        headers,
        (_tensor(tensor, found.values) for tensor in ordered),
        total=len(ordered),
        kinds="n  rrrrr",
        nbytes=_LIST,
        rest=_JSON,
    )


def _relative(tensor: TensorDifference) -> float:
    relative = tensor.distance.relative_l2 if tensor.distance is not None else None
    return 0.0 if relative is None else relative


def _tensor(tensor: TensorDifference, values: bool) -> Sequence[Child]:
    sides = dict.fromkeys(
        f"{side.dtype} {list(side.shape)}" for side in (tensor.before, tensor.after) if side
    )
    row = (
        tensor.name,
        ", ".join(tensor.what) or tensor.change,
        " → ".join(sides),
        size_of(tensor.nbytes),
    )
    if not values:
        return row
    distance = tensor.distance
    if distance is None:
        return (*row, "–", "–", "–", "–")
    return (*row, f"{distance.changed:,} of {distance.elements:,}", *figures(distance))


def _config(keys: Sequence[ConfigDifference]) -> Markup:
    rows = (
        (
            key.key,
            key.change,
            "–" if key.change == "added" else repr(key.before),
            "–" if key.change == "removed" else repr(key.after),
        )
        for key in keys
    )
    headers = ("key", "change", "A", "B")
    caption = "Keys of config.json that differ"
    return table(caption, headers, rows, total=len(keys), kinds="n nn", nbytes=_LIST, rest=_JSON)


def _files(found: Difference) -> Markup:
    rows = ((file.name, file.change, _size(file.before), _size(file.after)) for file in found.files)
    headers = ("file", "change", "A", "B")
    caption = "Files beside the weights that differ"
    return table(
        caption, headers, rows, total=len(found.files), kinds="n rr", nbytes=_LIST, rest=_JSON
    )


def _size(nbytes: int | None) -> str:
    return "–" if nbytes is None else size_of(nbytes)


def _breaches(found: Difference) -> Markup:
    breaches = found.breaches
    rows = ((one.subject, one.rule, one.message, one.hint) for one in breaches)
    caption = f"What --only {' '.join(found.only)} does not allow"
    headers = ("subject", "rule", "what", "what to do")
    return table(
        caption, headers, rows, total=len(breaches), kinds="n tt", nbytes=_LIST, rest=_JSON
    )


def _unread(names: Sequence[str]) -> Markup:
    rows = ((name,) for name in names)
    caption = "Of one size on both sides, and not fetched: --fetch compares them"
    return table(caption, ("name",), rows, total=len(names), nbytes=_LIST, rest=_JSON)
