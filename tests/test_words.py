"""Everything that users read has none of the banned turns, and the check finds them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import words

ROOT = Path(__file__).parent.parent


def test_no_page_message_or_rule_has_a_banned_turn() -> None:
    texts = list(words.places())
    assert len(texts) > 3000
    assert [(place, turn) for place, text in texts for turn in words.found_in(text)] == []


def test_no_sentence_is_too_long() -> None:
    texts = list(words.paragraphs())
    assert len(texts) > 1500
    assert [(place, long) for place, text in texts for long in words.too_long(text)] == []


def test_a_long_sentence_is_found() -> None:
    long = "It " + "very " * 40 + "long."
    assert words.too_long(f"Short. {long} Short: {'a ' * 20}") == [f"{long[:50]}… (42 words)"]
    page = f"# Title\n\n```\n{long}\n```\n\n- item\n  more\n- {long}\n\n| a | {long} |\n"
    assert list(words._paragraphs(page)) == ["item more", long, " a ", f" {long} "]


@pytest.mark.parametrize(
    "text",
    [
        "The tower is said to be SigLIP.",
        "It is what stands in the index.",
        "Nobody reads it.",
        "a directory of which nothing is left",
        "Whoever wrote it knows.",
        "It is kept, whatever it is.",
        "a rule that is none",
    ],
)
def test_a_banned_turn_is_found_with_its_advice(text: str) -> None:
    (turn,) = words.found_in(text)
    assert sum(re.fullmatch(pattern, turn, re.I) is not None for pattern in words.BANNED) == 1


def test_where_texts_are_looked_for() -> None:
    places = {place for place, _ in words.places()}
    assert any(place.startswith("README.md:") for place in places)
    assert any(place.startswith("docs/guarantees.md:") for place in places)
    assert "the rule missing-tensor" in places
    assert "the error output-exists" in places
    assert any(place.startswith("vita_ckpt/cli/commands/undo.py:") for place in places)
    assert any(place.startswith("vita_ckpt/surgery/config.py:") for place in places)


def test_it_is_part_of_lint() -> None:
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    assert "docs.words" in lint
