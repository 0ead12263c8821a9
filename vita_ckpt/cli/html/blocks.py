"""The blocks of a page: the document, its sections, tables that stay small, drawings, facts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from vita_ckpt import __version__
from vita_ckpt.cli import render
from vita_ckpt.cli.html.markup import Child, Markup, joined, page, tag
from vita_ckpt.cli.html.style import STYLE
from vita_ckpt.core.dataclass import dataclass

# A table takes at most so many bytes of the page: rows that do not fit are counted.
TABLE: Final = 150_000
_CLASSES: Final = {"n": "name", "r": "r", "t": "text"}
_MOST_LINKS: Final = 12  # at the top of a page


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a page: the anchor that links name, its heading, and what is in it."""

    anchor: str
    title: str
    body: Child


def document(what: str, subject: str, lead: Child, sections: Sequence[Section]) -> str:
    """Return a page about ``subject``, with links to its sections."""
    linked = sections[:_MOST_LINKS]
    links = (tag("li", tag("a", one.title, href=f"#{one.anchor}")) for one in linked)
    body = tag(
        "body",
        tag("a", "Skip to the report", class_="skip", href="#report"),
        tag(
            "header",
            tag("p", f"vita-ckpt {what}", class_="soft"),
            tag("h1", subject),
            lead,
            tag("nav", tag("ul", links), aria_label="Sections"),
        ),
        tag("main", map(_section, sections), id="report"),
        tag("footer", f"Written by vita-ckpt {__version__}. This file loads and runs nothing."),
    )
    return page(f"{subject} – vita-ckpt {what}", STYLE, body)


def _section(section: Section) -> Markup:
    heading = tag("h2", section.title, id=f"{section.anchor}-title")
    return tag(
        "section",
        heading,
        section.body,
        id=section.anchor,
        aria_labelledby=f"{section.anchor}-title",
    )


def table(
    caption: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    total: int,
    kinds: str = "n",
    nbytes: int = TABLE,
    rest: str = "",
) -> Markup:
    """Return a table of the first of ``total`` rows that fit into ``nbytes``, and say so.

    ``kinds`` has a character for each column: ``n`` for names, ``r`` for numbers, ``t`` for prose,
    a space for words. ``rest`` says where the other rows are.
    """
    classes = [_CLASSES.get(kinds[n : n + 1]) for n in range(len(headers))]
    head = tag(
        "thead",
        tag(
            "tr",
            (
                tag("th", header, scope="col", class_=kind if kind == "r" else None)
                for header, kind in zip(headers, classes, strict=True)
            ),
        ),
    )
    shown = list(within((_row(row, classes) for row in rows), nbytes))
    left = total - len(shown)
    body = tag("table", tag("caption", caption), head, tag("tbody", shown))
    return joined((scrolling(caption, body), tag("p", more(left, rest)) if left > 0 else None))


def within(rows: Iterable[Markup], nbytes: int) -> Iterator[Markup]:
    """Yield rows as long as they fit into ``nbytes`` together; the first one always."""
    used = 0
    for number, row in enumerate(rows):
        used += row.nbytes
        if used > nbytes and number:
            return
        yield row


def more(left: int, rest: str = "") -> str:
    """Return the sentence that says how many lines were left out, and where they are."""
    return f"… and {left:,} more, left out here" + (f": {rest}" if rest else ".")


def scrolling(label: str, content: Child, *, fit: bool = False) -> Markup:
    """Return wide content that scrolls by itself, also by the keyboard; the page does not.

    With ``fit`` its frame is no wider than it is.
    """
    kind = "scroll fit" if fit else "scroll"
    return tag("div", content, class_=kind, role="region", tabindex=0, aria_label=label)


def drawing(
    label: str, width: float, height: float, *shapes: Child, class_: str | None = None
) -> Markup:
    """Return a drawing, which for a screen reader is one picture with a name."""
    fixed = class_ is not None and "map" in class_
    return tag(
        "svg",
        tag("title", label),
        *shapes,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img",
        aria_label=label,
        class_=class_,
        width=width if fixed else None,
        height=height if fixed else None,
    )


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup | None:
    """Return a list of names and values; None if there are none."""
    items = [(tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", items) if items else None


def badge(word: str, kind: str) -> Markup:
    """Return a word that stands out by its colour too: error, warning, note or good."""
    return tag("span", word, class_=f"badge {kind}")


def folded(summary: Child, *content: Child, open_: bool = False) -> Markup:
    """Return content that a reader unfolds."""
    return tag("details", tag("summary", summary), *content, open="open" if open_ else None)


def short(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters: its middle is left out."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def size_of(count: int) -> str:
    """Return bytes in a unit that reads well."""
    return render.size(count)


def _row(cells: Sequence[Child], classes: Sequence[str | None]) -> Markup:
    first, *others = cells
    return tag(
        "tr",
        tag("th", first, scope="row", class_=classes[0] and f"{classes[0]} first"),
        (tag("td", cell, class_=kind) for cell, kind in zip(others, classes[1:], strict=True)),
    )
