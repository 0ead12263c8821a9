"""A stranger's patterns match what ``re`` matches, and none takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.patterns import LONGEST, Pattern, PatternError

PIECES = (
    *("a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "[a-c1]", "(a|b)", "(?:ab|c)", "(?=b)", "(?!a)"),
    *("^", "$", r"\b", "*", "+", "?", "{1,2}", "{2}", "{,1}", "|", "(", ")", ".*", "a+?", "1"),
)
TEXTS = ("", "a", "b", "ab", "aab", "1b", "a.b", "abab", "c", "\n", "a\n")


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.sampled_from(TEXTS))
def test_it_matches_what_re_matches(pattern: str, text: str) -> None:
    try:
        found = Pattern(pattern)
    except PatternError:
        return  # of a kind that names of modules do not need, or none at all
    known = re.compile(pattern)
    assert found.fullmatch(text) is (known.fullmatch(text) is not None)
    assert found.match(text) is (known.match(text) is not None)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k|v|o)_proj",
        r"^model\.layers\.\d+\.(self_attn|mlp)\.(?:q_proj|up_proj)$",
        r"^(?!.*vision_tower).*(?:q_proj|k_proj)$",
        r"model\.layers\.([0-9]|1[0-9])\.mlp\.[a-z_]+",
        r"(?P<part>model)\..*_proj",
    ],
)
def test_patterns_of_runs_are_understood(pattern: str) -> None:
    for name in (
        "model.layers.3.self_attn.q_proj",
        "model.vision_tower.layers.0.k_proj",
        "lm_head",
    ):
        assert Pattern(pattern).fullmatch(name) is (re.fullmatch(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*a){20}", ".*.*.*.*.*.*.*.*b", "((a*)*)*b"]
)
def test_a_pattern_that_explodes_in_re_is_done_at_once(pattern: str) -> None:
    began = time.process_time()
    try:
        Pattern(pattern).fullmatch("a" * 200 + "!")
    except PatternError as error:
        assert "too long" in str(error)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a)\1",
        "(?<=a)b",
        "(?i)a",
        "a++",
        "a{1,100000}",
        "(" * 40 + "a" + ")" * 40,
        "a" * (LONGEST + 1),
        "(",
        "[",
        "*",
        "a**",
        "\\",
        "[b-a]",
        "a{2,1}",
    ],
)
def test_what_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)
