"""vita-ckpt set: keys of the vision config, in a copy or in place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fixtures.builder import read_tensors, snapshot, write_adapter, write_checkpoint
from tests.builders import as_bins
from tests.conftest import Cli, assert_one_error
from vita_ckpt import (
    StaleInputError,
    apply_in_place,
    plan_set,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", shards=2)


def config_of(root: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((root / "config.json").read_text())
    return config


def test_in_a_copy(cli: Cli, base: Path, tmp_path: Path) -> None:
    before = snapshot(base)
    result = cli(
        "set",
        base,
        "mm_vision_tower=/models/InternViT-300M",
        "unfreeze_vision_tower=true",
        "mm_projector_lr=2e-5",
        "tokenizer_model_max_length=4096",
        "mm_audio_encoder=null",
        "--out",
        tmp_path / "out",
    )
    assert result.code == 0, result
    assert "config.json: mm_vision_tower 'tower-internvit' → '/models/InternViT-300M'" in result.out
    changed = {
        "mm_vision_tower": "/models/InternViT-300M",
        "unfreeze_vision_tower": True,
        "mm_projector_lr": 2e-5,
        "tokenizer_model_max_length": 4096,
        "mm_audio_encoder": None,
    }
    assert config_of(tmp_path / "out") == config_of(base) | changed
    assert read_tensors(tmp_path / "out") == read_tensors(base)
    assert snapshot(base) == before


def test_in_place(cli: Cli, base: Path) -> None:
    os.chmod(base / "config.json", 0o640)
    before = snapshot(base)
    result = cli("set", base, "mm_vision_tower=InternViT-300M", "--in-place")
    assert result.code == 0, result
    after = {n: f for n, f in snapshot(base).items() if not n.startswith(".vita-ckpt/")}
    assert after.pop("config.json")[0] == before.pop("config.json")[0]
    assert json.loads(after.pop("vita_ckpt.json")[2])["operations"][0]["operation"] == "set"
    assert after == before
    assert config_of(base)["mm_vision_tower"] == "InternViT-300M"
    again = snapshot(base)
    assert cli("set", base, "mm_vision_tower=InternViT-300M", "--in-place").out == (
        "nothing to change\n"
    )
    assert snapshot(base) == again


def test_in_place_replaces_a_link_and_not_what_it_leads_to(cli: Cli, base: Path) -> None:
    blob = (base / "config.json").rename(base.parent / "blob")
    (base / "config.json").symlink_to(blob)
    before = blob.read_bytes()
    assert cli("set", base, "mm_vision_tower=InternViT-300M", "--in-place").code == 0
    assert blob.read_bytes() == before
    assert not (base / "config.json").is_symlink()


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_of_a_bin_are_not_touched_either(cli: Cli, tmp_path: Path, shards: int) -> None:
    base = as_bins(write_checkpoint(tmp_path / "bins"), shards=shards)
    before = {name: content for name, (_, _, content) in snapshot(base).items()}
    pair = "mm_vision_tower=InternViT-300M"
    assert cli("set", base, pair, "--out", tmp_path / "out").code == 0
    assert cli("set", base, pair, "--in-place").code == 0
    for root in (base, tmp_path / "out"):
        after = {
            name: content
            for name, (_, _, content) in snapshot(root).items()
            if not name.startswith(".vita-ckpt/")
        }
        assert {name for name in before if after[name] != before[name]} == {"config.json"}
        assert after.keys() == before.keys() | {"vita_ckpt.json"}
        assert config_of(root)["mm_vision_tower"] == "InternViT-300M"


def test_dry_run_and_json(cli: Cli, base: Path) -> None:
    before = snapshot(base)
    for extra in (("--in-place", "--dry-run"), ("--dry-run",)):
        result = cli("set", base, "use_s2=False", "mm_vision_tower=a-sig-path", *extra, "--json")
        assert result.code == 0, result
        summary = json.loads(result.out)
        assert [change["key"] for change in summary["config"]] == ["mm_vision_tower"]
        assert summary["out"] is None
        assert [file["name"] for file in summary["rewritten"]] == ["config.json"]
        if "--in-place" in extra:
            assert summary["bytes_to_write"] == summary["rewritten"][0]["bytes"]
    assert snapshot(base) == before


def test_what_disagrees_with_the_weights_is_said(cli: Cli, base: Path) -> None:
    result = cli("set", base, "mm_hidden_size=8", "--dry-run")
    assert result.code == 0
    assert "mm_hidden_size" in result.err
    assert "32" in result.err
    assert cli("set", base, "image_aspect_ratio=pad", "--dry-run").err == ""


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("hidden_size=3", ("unknown-config-key", "hidden_size")),
        ("mm_hidden_size", ("invalid-setting", "KEY=VALUE")),
        ("mm_hidden_size=big", ("invalid-config-value", "a positive integer")),
        ("mm_hidden_size=-4", ("invalid-config-value",)),
        ("mm_hidden_size=1.5", ("invalid-config-value",)),
        ("mm_hidden_size=1_0", ("invalid-config-value",)),
        ("mm_hidden_size=\uff11\uff12", ("invalid-config-value",)),
        ("mm_projector_lr=infinity", ("invalid-config-value", "a number")),
        ("s2_scales=0,384", ("invalid-config-value", "384,768,1152")),
        ("use_s2=yes", ("invalid-config-value", "true or false")),
        ("mm_projector_type=mlp", ("invalid-config-value", "projector type")),
        ("s2_scales=small", ("invalid-config-value", "384,768,1152")),
        ("image_aspect_ratio=round", ("invalid-config-value", "square or pad")),
        ("mm_projector_lr=nan", ("invalid-config-value", "a number")),
        ("mm_vision_tower=", ("invalid-config-value", "text")),
        ("=x", ("unknown-config-key",)),
    ],
)
def test_wrong_values(cli: Cli, base: Path, pair: str, words: tuple[str, ...]) -> None:
    before = snapshot(base)
    assert_one_error(cli("set", base, pair, "--in-place"), 2, *words)
    assert snapshot(base) == before


def test_wrong_calls(cli: Cli, base: Path, tmp_path: Path) -> None:
    pair = "use_s2=true"
    assert_one_error(cli("set", base), 2, "usage")
    assert_one_error(cli("set", base, pair), 2, "no-output")
    assert_one_error(cli("set", base, pair, pair, "--in-place"), 2, "invalid-setting")
    for option in ("--out", "--plan-out"):
        result = cli("set", base, pair, "--in-place", option, tmp_path / "x")
        assert_one_error(result, 2, "options-exclude-each-other")
    assert_one_error(cli("set", tmp_path / "none", pair, "--in-place"), 3, "not-found")
    adapter = write_adapter(tmp_path / "a.safetensors", {"0.weight": (2, 2)})
    assert_one_error(cli("set", adapter, pair, "--in-place"), 3, "not-a-vita-checkpoint")


def test_in_place_is_refused_when_the_base_changed(base: Path) -> None:
    plan = plan_set(base, {"mm_vision_tower": "InternViT"})
    text = (base / "config.json").read_text()
    (base / "config.json").write_text(text + "\n")
    with pytest.raises(StaleInputError):
        apply_in_place(plan)
    assert (base / "config.json").read_text() == text + "\n"
    assert not list(base.glob(".vita-ckpt-*"))
