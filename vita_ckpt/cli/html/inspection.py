"""The page of ``inspect``: parts as areas, the config beside the weights, values, lineage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vita_ckpt.checks.distribution import Distribution
from vita_ckpt.checks.inspection.summary import Inspection, PartSummary
from vita_ckpt.cli import render
from vita_ckpt.cli.html.areas import Part, areas
from vita_ckpt.cli.html.blocks import (
    Section,
    badge,
    document,
    facts,
    more,
    scrolling,
    short,
    size_of,
    table,
)
from vita_ckpt.cli.html.histogram import histogram
from vita_ckpt.cli.html.lineage import MOST as MOST_DRAWN
from vita_ckpt.cli.html.lineage import lineage
from vita_ckpt.cli.html.markup import Child, Markup, joined, tag
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint, parameters
from vita_ckpt.core.provenance import operations

_NUMBER: Final = re.compile(r"(?<![^.])[0-9]+(?=\.|$)")
_MOST_SENTENCES: Final = 60
_COLOURS: Final = {part: number for number, part in enumerate(parts.LABELS)}


def inspection_page(
    inspection: Inspection,
    checkpoint: Checkpoint,
    headline: str,
    config: Sequence[Sequence[str]],
    details: Sequence[tuple[str, str]],
    values: Mapping[str, Distribution] | None = None,
) -> str:
    """Return the page of a checkpoint.

    ``headline``, ``config`` and ``details`` are what the screen says too. ``values`` is None where
    no values were read.
    """
    sections = [
        Section("parts", "Parts", _parts(inspection)),
        *_section("config", "Config", config and _config(config)),
        *_section("details", "Details", facts((name or "also", text) for name, text in details)),
        *_section("values", "Values", values and _values(values)),
        Section("tensors", "Tensors", _tensors(checkpoint)),
        Section("files", "Files", _files(inspection)),
        Section("lineage", "Lineage", _lineage(checkpoint, inspection)),
    ]
    said = list(_sentences(inspection))
    shown = [tag("li", sentence) for sentence in said[:_MOST_SENTENCES]]
    if said:
        verdict: Child = (
            tag("p", badge(f"{render.counted(len(said), 'contradiction')}", "error")),
            tag("ul", shown, class_="plain"),
            tag("p", more(len(said) - len(shown))) if len(said) > len(shown) else None,
        )
    else:
        verdict = tag("p", badge("nothing contradicts", "good"))
    return document(
        "inspect", render.path(inspection.path), (tag("p", headline), verdict), sections
    )


def _section(anchor: str, title: str, body: Child) -> Iterator[Section]:
    if body:
        yield Section(anchor, title, body)


def _sentences(inspection: Inspection) -> Iterator[str]:
    if inspection.needs_alignment:
        yield "the projector was drawn at random: it needs alignment training"
    yield from inspection.disagreements


def _parts(inspection: Inspection) -> Child:
    shown = [
        Part(parts.LABELS[part.name], _COLOURS[part.name], _by_dtype(part))
        for part in inspection.parts
    ]
    label = "Parts as areas by their bytes"
    rows = [
        (
            joined(
                (
                    tag("span", class_=f"key k{_COLOURS[part.name]}"),
                    parts.LABELS[part.name],
                )
            ),
            part.tensors,
            render.count(part.parameters),
            size_of(part.bytes),
            _share(part.bytes, inspection.bytes),
            ", ".join(f"{dtype} {size_of(n)}" for dtype, n in _by_dtype(part).items()) or "–",
        )
        for part in inspection.parts
    ]
    rows.append(
        (
            tag("strong", "total"),
            inspection.tensors,
            render.count(inspection.parameters),
            size_of(inspection.bytes),
            _share(inspection.bytes, inspection.bytes),
            ", ".join(inspection.dtypes) or "–",
        )
    )
    headers = ("part", "tensors", "parameters", "bytes", "share", "dtypes")
    drawn = scrolling(label, areas(label, shown)) if inspection.bytes else None
    return (
        drawn,
        table("Parts of the checkpoint", headers, rows, total=len(rows), kinds=" rrrr"),
    )


def _by_dtype(part: PartSummary) -> dict[str, int]:
    return dict(zip(part.dtypes, part.bytes_by_dtype, strict=True))


def _share(number: int, total: int) -> str:
    share = number / total if total else 0.0
    return (
        "0 %" if not number else "< 0.1 %" if share < 0.001 else f"{share:.1%}".replace("%", " %")
    )


def _config(lines: Sequence[Sequence[str]]) -> Markup:
    rows = [(*line[:3], badge("NO", "error") if line[3] == "NO" else line[3]) for line in lines]
    headers = ("key", "value", "weights say", "agree")
    caption = "Keys of the config beside what the weights say"
    return table(caption, headers, rows, total=len(rows), kinds="nnn")


def _values(values: Mapping[str, Distribution]) -> Child:
    rows = [
        (
            parts.LABELS[part],
            f"{found.elements:,}",
            f"{found.zeros:,}",
            f"{found.nan:,}",
            f"{found.infinite:,}",
            _magnitude(found.typical),
            _magnitude(found.largest if found.elements else None),
            f"{found.uncounted:,}",
        )
        for part, found in values.items()
    ]
    headers = (
        *("part", "values", "zero", "NaN", "infinite", "median |x| from"),
        *("largest |x|", "not floats"),
    )
    drawn = [
        tag(
            "figure",
            tag("figcaption", f"{parts.LABELS[part]}: magnitudes of its values"),
            scrolling(
                f"{parts.LABELS[part]}: magnitudes",
                histogram(
                    f"{parts.LABELS[part]}: number of values by magnitude, in powers of two",
                    found.exponents,
                ),
                fit=True,
            ),
        )
        for part, found in values.items()
        if found.exponents
    ]
    caption = "Every value was read: how large they are, part by part"
    return table(caption, headers, rows, total=len(rows), kinds=" rrrrrrr"), drawn


def _magnitude(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _tensors(checkpoint: Checkpoint) -> Markup:
    """Tensors whose names differ in their numbers alone are one row."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, tensor in checkpoint.tensors.items():
        key = _NUMBER.sub("*", name), tensor.dtype, tensor.shape
        found = groups.setdefault(key, [0, 0, 0])
        found[0] += 1
        found[1] += parameters(tensor)
        found[2] += tensor.nbytes
    ordered = sorted(groups.items(), key=lambda pair: (-pair[1][2], pair[0]))
    rows = (
        (name, number, dtype, str(list(shape)), render.count(elements), size_of(nbytes))
        for (name, dtype, shape), (number, elements, nbytes) in ordered
    )
    return table(
        "Tensors, the largest first; * stands for the numbers of layers",
        ("name", "tensors", "dtype", "shape of each", "parameters", "bytes"),
        rows,
        total=len(ordered),
        kinds="nr  rr",
        rest="vita-ckpt inspect --tensors lists every tensor",
    )


def _files(inspection: Inspection) -> Child:
    rows = [
        (
            shard.name or render.path(inspection.path),
            shard.format,
            shard.tensors,
            size_of(shard.bytes),
        )
        for shard in inspection.shards
    ]
    left = [(name, str(reason)) for name, reason in inspection.left_out.items()]
    return (
        table(
            "Weight files",
            ("file", "format", "tensors", "bytes"),
            rows,
            total=len(rows),
            kinds="n rr",
        ),
        table(
            "Beside the checkpoint, and no part of it",
            ("name", "why"),
            left,
            total=len(left),
            kinds="nt",
        )
        if left
        else None,
    )


def _lineage(checkpoint: Checkpoint, inspection: Inspection) -> Child:
    known = operations(checkpoint)
    if not known:
        return tag("p", "No surgery is known.")
    name = inspection.path.rstrip("/").rpartition("/")[2]
    label = f"How {short(name, 80)} was made: {render.counted(len(known), 'operation')}"
    first = len(known) - MOST_DRAWN
    drawn = lineage(label, known, name)
    rows = [_operation(entry) for entry in reversed(known)]
    return (
        tag("p", f"The last {MOST_DRAWN} of {len(known):,} operations are drawn.")
        if first > 0
        else None,
        scrolling(label, drawn, fit=True),
        table(
            "Operations, the newest first",
            ("operation", "time", "inputs", "asked for", "tensors written"),
            rows,
            total=len(rows),
            kinds=" nnnr",
            rest="vita-ckpt history lists every operation",
        ),
    )


def _operation(entry: Any) -> Sequence[Child]:
    entry = entry if isinstance(entry, Mapping) else {}
    inputs = (
        f"{role}: {given.get('name', '')}" if isinstance(given, Mapping) else str(role)
        for role, given in _pairs(entry.get("inputs"))
    )
    asked = (f"{key}={value}" for key, value in _pairs(entry.get("arguments")))
    written = dict(_pairs(entry.get("written"))).get("tensors")
    return (
        str(entry.get("operation", "unknown")),
        str(entry.get("time", "–")),
        ", ".join(inputs) or "–",
        ", ".join(asked) or "–",
        len(_pairs(written)),
    )


def _pairs(value: Any) -> Sequence[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else ()
