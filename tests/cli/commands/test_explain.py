"""``vita-ckpt explain`` as a person types it."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from fixtures.builder import snapshot
from tests.conftest import BASES, GOLDEN, Cli, assert_one_error
from vita_ckpt.checks.explain.loaders import loaders_of

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "explain-v1.json").read_text())


@pytest.mark.parametrize("case", BASES)
def test_a_block_for_each_loader(cli: Cli, case: str) -> None:
    before = snapshot(GOLDEN / case)
    result = cli("explain", GOLDEN / case / "base")
    assert (result.code, result.err) == (0, "")
    for loader in loaders_of(None):
        assert f"\n{loader} · " in result.out
    assert "\nwhere they diverge\n" in result.out
    assert len(result.out.splitlines()) < 100
    assert snapshot(GOLDEN / case) == before


@pytest.mark.parametrize("path", ["A1/base", "A4/base", "A6/base", "A7/mm_projector_fp32"])
def test_json_keeps_its_schema(cli: Cli, path: str) -> None:
    report = json.loads(cli("explain", GOLDEN / path, "--json").out)
    jsonschema.validate(report, SCHEMA)
    assert [loader["loader"] for loader in report["loaders"]] == list(loaders_of(None))


def test_some_of_the_loaders(cli: Cli) -> None:
    result = cli("explain", GOLDEN / "A1" / "base", "--loader", "vita-1.0", "--loader", "hub-model")
    assert "vita-1.0 · " in result.out
    assert "hub-model · " in result.out
    assert "vita-1.5" not in result.out
    assert "diverge" not in result.out


def test_a_broken_checkpoint_is_explained(cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / "A1" / "base", base)
    shutil.copytree(GOLDEN / "A1" / "tower-internvit", tmp_path / "tower-internvit")
    (base / "model-00003-of-00004.safetensors").unlink()
    result = cli("explain", base)
    assert result.code == 0
    assert "vita-1.5 · stops: missing-shard" in result.out
    assert "model-00003-of-00004.safetensors" in result.out
    jsonschema.validate(json.loads(cli("explain", base, "--json").out), SCHEMA)


def test_a_config_is_not_explained(cli: Cli) -> None:
    done = cli("explain", GOLDEN / "A1" / "base" / "config.json")
    assert_one_error(done, 3, "not-a-weight-file", f"give the directory {GOLDEN / 'A1' / 'base'}")


def test_names_do_not_reach_the_terminal_as_they_are(cli: Cli, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(GOLDEN / "A2" / "base", base)
    config = json.loads((base / "config.json").read_text())
    config["mm_vision_tower"] = "clip\x1b[31m\n/../\u202e"
    (base / "config.json").write_text(json.dumps(config))
    result = cli("explain", base)
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "\u202e" not in result.out


def test_nothing_there(cli: Cli, tmp_path: Path) -> None:
    assert_one_error(cli("explain", tmp_path / "nowhere"), 3, "not-found", "nowhere")
