"""JSON for programs in whatever language: strict, and of any value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import GOLDEN, Cli
from vita_ckpt.core.strict_json import json_text

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_every_value_is_strict_json(value: object) -> None:
    json.loads(json_text(value), parse_constant=pytest.fail)


def test_what_json_has_a_word_for_is_what_it_was() -> None:
    value = {"a": [1, 2.5, None, True, "NaN"], "b": {"c": 1e308}}
    assert json.loads(json_text(value)) == value
    assert json.loads(json_text({"a": [float("inf"), float("nan")]})) == {"a": ["inf", "nan"]}


def test_credentials_are_left_out_of_keys_too() -> None:
    said = json_text({"https://me:geheim@host/x": ["hf_" + "a" * 34]})
    assert json.loads(said) == {"https://…@host/x": ["hf_…"]}


@pytest.mark.parametrize("said", ["1e999", "-Infinity", "NaN"])
def test_a_config_with_numbers_that_are_none(cli: Cli, tmp_path: Path, said: str) -> None:
    base = shutil.copytree(GOLDEN / "A7" / "base", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {"mm_hidden_size": float(said), "rms_norm_eps": float(said)}
    (base / "config.json").write_text(json.dumps(config))
    adapter = GOLDEN / "A7" / "mm_projector_fp32"
    for arguments in (
        ["inspect", base, "--json"],
        ["validate", base, "--format", "json"],
        ["validate", base, "--format", "sarif"],
        ["explain", base, "--json"],
        ["diff", base, GOLDEN / "A7" / "base", "--json"],
        ["merge-projector", "--base", base, "--adapter", adapter, "--dry-run", "--json"],
    ):
        done = cli(*arguments)
        assert done.code in (0, 1), done
        json.loads(done.out, parse_constant=pytest.fail)
