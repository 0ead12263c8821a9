"""Pages, read back by parsers that know nothing of us, and held to what every page promises."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

RUNS = {"script", "iframe", "object", "embed", "form", "link", "img", "base", "foreignobject"}
VOID = {"meta", "line", "rect", "polygon"}


class Reader(HTMLParser):
    """What a browser's parser sees: the tags, the attributes, and what is open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def read_page(page: str) -> Reader:
    """Read a page as a browser does and as XML; it runs, loads and leads to nothing."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    tree = ET.fromstring(page.partition("\n")[2])
    assert [element.tag for element in tree.iter()] == [tag_case(tag) for tag, _ in reader.tags]
    assert {tag for tag, _ in reader.tags}.isdisjoint(RUNS)
    ids = [found["id"] for _, found in reader.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name not in ("src", "style", "xlink:href", "action", "srcset"), (tag, name)
            if name in ("href", "aria-labelledby"):
                assert (value or "").removeprefix("#") in ids, value
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    assert not re.search(r"url|import|expression|//", style[0])
    assert page.count("Content-Security-Policy") == 1
    return reader


def tag_case(tag: str) -> str:
    return {"viewbox": "viewBox"}.get(tag, tag)
