"""Sections of YAML files: read as YAML reads them, within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt import InputError
from vita_ckpt.storage.formats.yaml_file import read_yaml_sections
from vita_ckpt.storage.stores.local import LOCAL


def read(path: Path, text: str | bytes, *names: str) -> dict[str, Any]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with LOCAL.open(str(path)) as source:
        return read_yaml_sections(source, names)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: 1\nb: 2\n", {"a": 1}),
        ("---\n# note\na:\n- 1\n- 2\nb: 2\n", {"a": [1, 2]}),
        ("b: &x 1\nc: *x\na: 1\n", {"a": 1}),  # what is not needed is not parsed
        ("b: {unclosed\na: 1\n", {"a": 1}),
        ("{a: 1, b: 2}", {"a": 1}),
        ("a: 1\n'quoted key': 2\n", {"a": 1}),
        ("a: 1\na: 2\n", {"a": 2}),
        ("b: 'text\na: 3'\na: 1\n", {"a": 1}),
        ("a: |\n  one\n\n  two\nb: 1\n", {"a": "one\n\ntwo\n"}),
        ("a:\r\n  c: 1\r\nb: 2\r\n", {"a": {"c": 1}}),
        ("b: 2\n", {}),
        ("", {}),
        ("\ufeffa: 1\n", {"a": 1}),
    ],
)
def test_sections(tmp_path: Path, text: str, wanted: dict[str, Any]) -> None:
    assert read(tmp_path / "x.yaml", text, "a") == wanted


KEYS = st.sampled_from(["alpha", "beta", "gamma_1", "x-y"])
LEAVES = st.none() | st.booleans() | st.integers(-9, 99) | st.text(max_size=9) | st.floats(-9, 9)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.booleans())
def test_what_yaml_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], flow: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    text = yaml.safe_dump(content, default_flow_style=flow)
    wanted = {name: value for name, value in yaml.safe_load(text).items() if name == "beta"}
    assert read(path, text, "beta") == wanted


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"a: " + b"x" * (4 << 20), "yaml-too-large"),
        (b"a: \xff", "invalid-yaml"),
        ("a: [1, 2", "invalid-yaml"),
        ("- 1\n- 2\n", "invalid-yaml"),
        ("a: &x [1]\n", None),
        ("a: [&x 1, *x]\n", "invalid-yaml"),
        ("a: *x\n", "invalid-yaml"),
        ("a: !!python/object/apply:os.system ['true']\n", "invalid-yaml"),
        ("a: " + "[" * 40 + "]" * 40, "invalid-yaml"),
        ("a: " + "[" * 99999, "invalid-yaml"),
        ("a: " + "1" * 99999, "invalid-yaml"),
        ("a: {[1]: 2}\n", "invalid-yaml"),
        ("a: 2001-99-99\n", "invalid-yaml"),
    ],
    ids=range(13),
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, code: str | None) -> None:
    if code is None:
        read(tmp_path / "x.yaml", text, "a")
        return
    with pytest.raises(InputError) as caught:
        read(tmp_path / "x.yaml", text, "a")
    assert caught.value.code == code
