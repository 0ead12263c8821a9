"""``vita-ckpt extract-tower`` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.builder import snapshot
from tests.conftest import GOLDEN, Cli, assert_one_error

A8 = GOLDEN / "A8"


@pytest.fixture
def in_a8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)


@pytest.mark.usefixtures("in_a8")
def test_extract_tower(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "tower-siglip"
    result = cli("extract-tower", "--from", "base", "--out", out)
    assert result.code == 0, result
    assert "added: config.json: the tower's config" in result.out
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert json.loads(cli("inspect", out, "--json").out)["kind"] == "vision-tower"
    assert [line.split()[:4] for line in result.out.splitlines()[1:2]] == [
        ["vision", "tower", "added", "64"]
    ]
    again = cli("extract-tower", "--from", "base", "--out", out)
    assert_one_error(again, 2, "output-exists")
    file = cli("extract-tower", "--from", "base", "--out", tmp_path / "x.safetensors")
    assert_one_error(file, 2, "wrong-output-kind", "a directory")
    no_tower = cli("extract-tower", "--from", "new_projector", "--out", tmp_path / "y")
    assert_one_error(no_tower, 3, "unknown-tower", "got none of these, and model_type 'vita-Qwen2'")
    plan = tmp_path / "plan.json"
    assert cli("extract-tower", "--from", "base", "--plan-out", plan).code == 0
    assert cli("apply", plan, "--out", tmp_path / "later").code == 0
    assert snapshot(tmp_path / "later").keys() == snapshot(out).keys()
