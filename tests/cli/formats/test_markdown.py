"""Reports as Markdown, read back by a parser that knows nothing of us."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

from hypothesis import given
from markdown_it import MarkdownIt

from tests.cli.reports import HOSTILE, HOSTILE_REPORTS, findings_of, rendered
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.core.report import Report
from vita_ckpt.errors import printable


class _Page(HTMLParser):
    """The text of a page's cells and headings, and every tag in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self._text: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "h3"):
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "h3") and self._text is not None:
            place = self.headings if tag == "h3" else self.rows[-1]
            place.append("".join(self._text))
            self._text = None


def read_markdown(text: str) -> _Page:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return _Page(parser.render(text))


@given(HOSTILE_REPORTS)
def test_markdown_shows_names_as_they_are(reports: list[Report]) -> None:
    page = read_markdown(rendered("markdown", reports))
    plain = {"p", "strong", "h3", "code", "table", "thead", "tbody", "tr", "th", "td", "wbr"}
    assert page.tags <= plain
    assert len(page.headings) == len(reports)
    rows = [row for row in page.rows if row]
    assert len(rows) == len(findings_of(reports))
    for severity, rule, _, what in rows:
        assert severity in ("error", "warning", "note")
        assert rule in {*RULES, "no-such-rule"}
        assert what == what.strip()


def test_markdown_is_a_table() -> None:
    hostile = " ".join(name for name in HOSTILE if name.isprintable() and len(name) < 100)
    report = Report("a|b", "k", (finding("config-type", "key", hostile, file="a|b/c*d*.json"),))
    page = read_markdown(rendered("markdown", [report]))
    assert page.headings == ["a|b"]
    ((severity, rule, file, what),) = (row for row in page.rows if row)
    assert (severity, rule, file) == ("error", "config-type", "c*d*.json")
    assert what.split() == f"key: {printable(hostile)}".split()


# What a text node of GitHub's pages turns into a link, as its parser and its filters find it.
AUTOLINKS = re.compile(
    r"(?i)www\.|(https?|ftp)://|mailto:|xmpp:|[a-z0-9._+-]+@[a-z0-9]|@[a-z0-9]|#[0-9]|GH-[0-9]"
    r"|\b[0-9]*[a-f][0-9a-f]{39}\b"
)


@given(HOSTILE_REPORTS)
def test_markdown_makes_no_link_of_a_name(reports: list[Report]) -> None:
    for text in html.unescape(rendered("markdown", reports)).split("<wbr>"):
        assert not AUTOLINKS.search(text.replace("mailto:", "").replace("xmpp:", ""))
