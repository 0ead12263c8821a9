"""Markup is escaped because there is no way to write it unescaped."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given

from tests.cli.pages import read_page
from tests.cli.reports import HOSTILE, NAMES
from vita_ckpt.cli.html import markup
from vita_ckpt.cli.html.blocks import Section, document, table
from vita_ckpt.cli.html.markup import tag
from vita_ckpt.errors import printable

PACKAGE = Path(markup.__file__).parent.parent.parent


@given(NAMES)
def test_a_text_stays_a_text(name: str) -> None:
    section = Section("a", name, (tag("p", name, class_=name), tag("title", name)))
    reader = read_page(document(name, name, tag("p", name), [section]))
    seen = printable(name).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    assert reader.text.count(seen) >= 6 * bool(seen)
    assert seen in [found.get("class") for tag, found in reader.tags if tag == "p"]
    assert [tag for tag, _ in reader.tags if tag in ("b", "img", "testcase")] == []


def test_what_would_run_load_or_lead_away_is_refused() -> None:
    for name in ("script", "img", "iframe", "style", "foreignObject", "form", "p onclick"):
        with pytest.raises(ValueError, match="no page has the tag"):
            tag(name)
    for attribute in ("onclick", "style", "src", "xlink:href", "a b"):
        with pytest.raises(ValueError, match="no element of a page"):
            tag("p", **{attribute: "x"})
    for address in ("javascript:alert(1)", "https://example.org", "//x", "", " #a"):
        with pytest.raises(ValueError, match="stay in the page"):
            tag("a", "x", href=address)


def test_only_the_builder_makes_markup() -> None:
    """Whoever made Markup of a text by hand could forget to escape it."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if "Markup(" not in text:
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        made = [node for node in calls if getattr(node.func, "id", "") == "Markup"]
        assert not made or path == Path(markup.__file__), path


def test_a_table_stops_where_its_bytes_end_and_says_so() -> None:
    rows = [(name, str(number)) for number, name in enumerate(HOSTILE * 100)]
    short = table("t", ("name", "n"), rows, total=len(rows), nbytes=20_000, rest="elsewhere")
    assert 19_000 < short.nbytes < 22_000
    shown = str(short).count("<tr>") - 1
    assert f"{len(rows) - shown:,} more, left out here: elsewhere" in str(short)
    whole = table("t", ("name", "n"), rows[:3], total=3)
    assert "left out" not in str(whole)
    # One row is shown however long it is.
    assert str(table("t", ("name",), [("x",)], total=1, nbytes=1)).count("<tr>") == 2
