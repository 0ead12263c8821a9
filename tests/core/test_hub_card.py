"""The front matter of a card: what the hub reads, merged into what is there."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.hub_card import hub_card, with_metadata

COMMIT = "ab" * 20
OPERATIONS = [
    {"inputs": {"base": {"name": f"hf://org/vita@{COMMIT}"}, "tower": {"name": "hf://org/tower"}}}
]


def front_matter(card: bytes) -> dict[str, Any]:
    """Return what the hub reads."""
    _, inner, _ = card.replace(b"\r\n", b"\n").split(b"---\n", 2)
    value = yaml.safe_load(inner.decode())
    assert isinstance(value, dict)
    return value


def test_a_new_card() -> None:
    card = hub_card("org/new", {"model_type": "vita-Qwen2"}, OPERATIONS)
    assert front_matter(card.encode()) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vita", "multimodal"],
        "base_model": ["org/tower", "org/vita"],
    }
    assert f"- org/vita # commit {COMMIT}\n" in card
    assert card.endswith("---\n\n# org/new\n\nA VITA checkpoint: model_type `vita-Qwen2`.\n")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("license: mit\n", {"license": "mit", "tags": ["vita", "multimodal"]}),
        ("library_name: vita\n", {"library_name": "vita"}),
        ("tags:\n- mine\n- vita\n", {"tags": ["mine", "vita", "multimodal"]}),
        ("tags:\n  - mine\n\nlicense: mit", {"tags": ["mine", "vita", "multimodal"]}),
        ("tags: [a, 'vita']  # mine\n", {"tags": ["a", "vita", "multimodal"]}),
        ("tags: []\n", {"tags": ["vita", "multimodal"]}),
        ("tags: mine\n", {"tags": ["mine", "vita", "multimodal"]}),
        ("tags:\n", {"tags": ["vita", "multimodal"]}),
        ("base_model: org/vita\n", {"base_model": ["org/vita", "org/tower"]}),
        ('base_model: "org/own"\n', {"base_model": ["org/own", "org/tower", "org/vita"]}),
        ("base_model:\n- org/vita # mine\n", {"base_model": ["org/vita", "org/tower"]}),
        ("base_model: {a: b}\n", {"base_model": {"a": "b"}}),
        ("tags: &x [a]\nother: *x\n", {"tags": ["a"], "other": ["a"]}),
        ("tags: |\n  a\n  b\n", {"tags": "a\nb\n"}),
        ("tags:\n  a: 1\n", {"tags": {"a": 1}}),
        ("tags:\n- a: 1\n  b: 2\n", {"tags": [{"a": 1, "b": 2}]}),
        ("widget:\n- text: 'tags: no'\n", {"tags": ["vita", "multimodal"]}),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_is_there_stays(before: str, expected: dict[str, Any], newline: str) -> None:
    before = before if before.endswith("\n") else f"{before}\n"
    card = f"---\n{before}---\n# Mine\n\ntext --- here\n---\n".replace("\n", newline).encode()
    old, new = front_matter(card), with_metadata(card, OPERATIONS)
    found = front_matter(new)
    assert {key: found[key] for key in expected} == expected
    for key, value in old.items():
        if key not in ("tags", "base_model"):
            assert found[key] == value
    assert new.endswith(card.split(b"---" + newline.encode(), 2)[2])
    assert with_metadata(new, OPERATIONS) == new
    if newline == "\r\n":
        assert b"\n" not in new.replace(b"\r\n", b"")


@pytest.mark.parametrize(
    "card",
    [
        b"# Mine\n",
        b"---\nlicense: mit\nno end\n",
        b"----\nno front matter\n----\n",
        b"---\n" + b"a: b\n" * 20_000 + b"---\n",
        b"\xff\xfe\x00binary",
    ],
)
def test_a_card_without_front_matter_gets_one_before_it(card: bytes) -> None:
    new = with_metadata(card, [])
    assert new.endswith(b"---\n\n" + card)
    assert front_matter(new.removesuffix(card)) == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vita", "multimodal"],
    }


@given(st.binary(max_size=200), st.text(alphabet="ab:-[]{}&*|>#'\" \t\n\r", max_size=80))
def test_nothing_is_lost(tail: bytes, inner: str) -> None:
    card = f"---\n{inner}\n---\n".encode() + tail
    new = with_metadata(card, OPERATIONS)
    assert new.endswith(tail)
    letters = [c for c in inner if c in "ab"]
    rest = iter(new.decode("utf-8", "replace"))
    assert all(letter in rest for letter in letters)
