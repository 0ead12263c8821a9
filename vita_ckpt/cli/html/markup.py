"""Build markup that is escaped by construction: text is never markup, and no tag runs or loads."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import Final, TypeAlias

from vita_ckpt.errors import printable

# What a page is made of. Nothing here runs, loads, embeds or sends.
_TAGS: Final = frozenset(
    (
        *("body", "header", "main", "nav", "section", "footer", "div", "span"),
        *("h1", "h2", "h3", "p", "a", "code", "strong", "ul", "li", "dl", "dt", "dd"),
        *("details", "summary", "figure", "figcaption"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
        *("svg", "title", "g", "rect", "line", "polygon", "text"),
    )
)
_ATTRIBUTES: Final = frozenset(
    (
        *("id", "class", "href", "open", "role", "scope", "tabindex"),
        *("aria-label", "aria-labelledby"),
        *("viewBox", "width", "height", "x", "y", "x1", "x2", "y1", "y2", "rx", "points"),
        *("transform", "text-anchor"),
    )
)
_VOID: Final = frozenset(("line", "polygon", "rect"))
_REFERENCES: Final = str.maketrans(
    # Of the last two XML has none, not even as references.
    {c: f"&#{ord(c)};" for c in "&<>\"'`"} | {"\ufffe": "\\ufffe", "\uffff": "\\uffff"}
)


class Markup:
    """Escaped markup. :func:`tag` and :func:`page` make it; text is no markup until they have."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    @property
    def nbytes(self) -> int:
        """The size in a file, in bytes."""
        return len(self._text.encode())


# What may stand in an element: text and numbers are escaped, None is nothing.
Child: TypeAlias = "Markup | str | int | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """Return an element. ``class_`` is the attribute class, ``aria_label`` is aria-label.

    Every text is made printable, bounded to one line of 300 characters, and escaped. An attribute
    that is None is left out. Raises ValueError for a tag or attribute that no page may have, and
    for a link that leads out of the page.
    """
    if name not in _TAGS:
        raise ValueError(f"no page has the tag {name}")
    said = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{said}/>")
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def joined(children: Child) -> Markup:
    """Return children one after the other, without an element around them."""
    return Markup("".join(_parts(children)))


def page(title: str, style: str, body: Markup) -> str:
    """Return a whole document whose policy forbids whatever ``style`` and ``body`` do not hold."""
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src &#39;none&#39;; style-src &#39;sha256-{digest}&#39;"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        '<meta name="color-scheme" content="light dark"/>\n'
        '<meta name="referrer" content="no-referrer"/>\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n{body}\n</html>\n"
    )


def _parts(child: Child) -> Iterable[str]:
    if child is None:
        return
    if isinstance(child, Markup):
        yield str(child)
    elif isinstance(child, str | int):
        yield _text(child)
    else:
        for one in child:
            yield from _parts(one)


def _attribute(key: str, value: str | float) -> str:
    name = key.rstrip("_").replace("_", "-")
    if name not in _ATTRIBUTES:
        raise ValueError(f"no element of a page has the attribute {name}")
    if name == "href" and not str(value).startswith("#"):
        raise ValueError("links stay in the page")
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {name}="{_text(value)}"'


def _text(value: object) -> str:
    return printable(value).translate(_REFERENCES)
