"""Every section of docs/upstream.md that code, tests or pages cite is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "upstream.md"
PLACES = ("vita_ckpt", "tests", "benchmarks", "docs", "fixtures", "examples")

# The document that a section belongs to, if its name is given: in capitals, or the number of a
# standard. A section without a name is a section of UPSTREAM.
NAME = r"\b(?P<name>[A-Z][A-Z_]+|(?:RFC|PEP|ISO) ?[0-9]+)(?:\.md)?(?:'s)?[\s#]+"
SECTIONS = r"§§?\s*(?P<first>[0-9]+)(?:\s*[-–]\s*(?P<last>[0-9]+))?"
CITATION = re.compile(f"(?:{NAME})?{SECTIONS}")


def cited(text: str) -> list[int]:
    """The numbers of the sections of UPSTREAM that ``text`` cites."""
    numbers: list[int] = []
    for found in CITATION.finditer(text):
        if found["name"] in (None, "UPSTREAM"):
            first = int(found["first"])
            numbers += range(first, int(found["last"] or first) + 1)
    return numbers


def sections(page: str) -> list[int]:
    """The numbers of the page's sections, in the order of the page."""
    return [int(number) for number in re.findall(r"^## ([0-9]+)\. \S", page, re.M)]


def texts() -> Iterator[tuple[str, str]]:
    """Every Python file and every page that may cite, by its path; not this one."""
    paths = [path for place in PLACES for path in (ROOT / place).rglob("*")]
    for path in sorted([*paths, *ROOT.glob("*.md")]):
        if path.suffix in (".py", ".md") and path != Path(__file__):
            yield str(path.relative_to(ROOT)), path.read_text()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("hidden state -2 (UPSTREAM §3)", [3]),
        ("(UPSTREAM §4 says how many)", [4]),
        ("UPSTREAM\n    # §5", [5]),
        ("UPSTREAM's §1, UPSTREAM.md § 2", [1, 2]),
        ("UPSTREAM §3 and §4; see §12", [3, 4, 12]),
        ("UPSTREAM §§5–7", [5, 6, 7]),
        ("AUDIO §9, RFC 9110 §14.4 and PEP 639 §3", []),
        ("upstream says nothing", []),
    ],
)
def test_what_a_citation_is(text: str, numbers: list[int]) -> None:
    assert cited(text) == numbers


def test_sections_are_numbered_without_gaps() -> None:
    numbers = sections(PAGE.read_text())
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_cited_section_exists() -> None:
    known = set(sections(PAGE.read_text()))
    citations = {(path, number) for path, text in texts() for number in cited(text)}
    assert {number for _, number in citations} >= {3, 4}
    assert {(path, number) for path, number in citations if number not in known} == set()


def test_nothing_names_a_page_that_is_not_there() -> None:
    """The page is docs/upstream.md, in lower case."""
    assert [path for path, text in texts() if "UPSTREAM.md" in text] == []
