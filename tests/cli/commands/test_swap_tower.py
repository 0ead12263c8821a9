"""``vita-ckpt swap-tower`` as a person types it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from fixtures.builder import TowerSpec, read_tensors, snapshot, write_checkpoint, write_tower
from tests.conftest import GOLDEN, Cli, assert_one_error

A8 = GOLDEN / "A8"


@pytest.fixture
def in_a8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(A8)


@pytest.mark.torch
@pytest.mark.usefixtures("in_a8")
def test_the_main_job(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli(
        "swap-tower",
        "--base",
        "base",
        "--tower",
        "tower-internvit",
        "--projector",
        "new_projector/mm_projector.bin",
        "--out",
        out,
        "--verify",
    )
    assert result.code == 0, result
    assert "the result, which is not written yet\n" in result.err  # it is not the base that works
    assert "it works" in result.err
    assert "config.json: mm_hidden_size 48 → 96: the width of the tower's output" in result.out
    assert "added: vision_tower_config.json: the tower's config" in result.out
    assert read_tensors(out) == read_tensors(A8 / "swapped_by_upstream")


@pytest.mark.usefixtures("in_a8")
def test_a_choice_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    call = ("swap-tower", "--base", "base", "--tower", "tower-internvit", "--out", tmp_path / "o")
    words = ("projector-choice-needed", "96→64", "48→64", "--projector FILE", "reinit")
    assert_one_error(cli(*call), 2, *words)
    assert_one_error(cli(*call, "--projector", "keep"), 2, "projector-does-not-fit")
    assert_one_error(cli(*call, "--projector", "nowhere.bin"), 3, "not-found", "nowhere.bin")
    assert_one_error(cli(*call, "--seed", "-1"), 2, "usage")
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("in_a8")
def test_json_and_dry_run(cli: Cli, tmp_path: Path) -> None:
    schema = json.loads(
        resources.files("vita_ckpt.schemas").joinpath("summary-v1.json").read_text()
    )
    call = ("--base", "base", "--tower", "tower-internvit", "--projector", "reinit")
    result = cli("swap-tower", *call, "--dry-run", "--json")
    assert result.code == 0, result
    summary = json.loads(result.out)
    jsonschema.validate(summary, schema)
    assert {file["name"]: file["change"] for file in summary["files"]} == {
        "vision_tower_config.json": "added",
        "preprocessor_config.json": "added",
        "vita_ckpt.json": "added",
    }
    out = tmp_path / "out"
    written = json.loads(cli("swap-tower", *call, "--out", out, "--json").out)
    jsonschema.validate(written, schema)
    (out / "vita_ckpt.json").unlink()  # it says what was written, so its size comes last
    size = sum(f.stat().st_size for f in out.iterdir() if not f.name.endswith(".safetensors"))
    weights = sum(
        t["bytes"]
        for t in json.loads(cli("inspect", out, "--tensors", "--json").out)["tensor_list"]
    )
    assert written["bytes_to_write"] == size + weights


@pytest.mark.usefixtures("in_a8")
def test_a_saved_swap(cli: Cli, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    call = ("--base", "base", "--tower", "tower-internvit", "--projector", "new_projector")
    assert cli("swap-tower", *call, "--plan-out", plan).code == 0
    assert cli("apply", plan, "--out", tmp_path / "out").code == 0
    assert read_tensors(tmp_path / "out") == read_tensors(A8 / "swapped_by_upstream")


@pytest.mark.torch
@pytest.mark.usefixtures("in_a8")
def test_the_mark_of_an_untrained_projector(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("--base", "base", "--tower", "tower-internvit")
    assert cli("swap-tower", *call, "--projector", "reinit", "--out", out).code == 0
    said = "it needs alignment training"
    assert said in cli("inspect", out).out
    assert json.loads(cli("inspect", out, "--json").out)["needs_alignment"] is True
    result = cli("verify", out, "--device", "cpu")
    assert result.code == 0
    assert "projector-untrained" in result.out
    merged = tmp_path / "merged"
    assert (
        cli("merge-projector", "--base", out, "--adapter", "new_projector", "--out", merged).code
        == 0
    )
    assert said not in cli("inspect", merged).out
    assert "projector-untrained" not in cli("verify", merged, "--device", "cpu").out


@pytest.mark.usefixtures("in_a8")
def test_what_cannot_be_written_is_not_verified_first(cli: Cli, tmp_path: Path) -> None:
    """A pass over a large checkpoint takes minutes: a wrong output is said before."""
    call = ("--base", "base", "--tower", "tower-internvit", "--projector", "reinit", "--verify")
    (tmp_path / "there").mkdir()
    for more, code in (
        (("--out", tmp_path / "there"), "output-exists"),
        (("--out", tmp_path / "x.bin"), "wrong-output-kind"),
        (("--plan-out", tmp_path / "there"), "output-exists"),
        ((), "no-output"),
    ):
        assert_one_error(cli("swap-tower", *call, *more), 2, code)


@pytest.mark.torch
def test_a_failed_verification_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    """A tower whose values float16 cannot hold."""
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    base = write_checkpoint(tmp_path / "base")
    tower = write_tower(tmp_path / "clip", TowerSpec("clip"))
    data = bytearray((tower / "model.safetensors").read_bytes())
    data[-4:] = b"\x00\x00\x80\x7f"  # the last value becomes infinite
    (tower / "model.safetensors").write_bytes(data)
    before = snapshot(tmp_path)
    call = ("--base", base, "--tower", tower, "--projector", "reinit", "--out", tmp_path / "out")
    result = cli("swap-tower", *call, "--verify")
    assert result.code == 1
    assert "verification-failed" in result.err
    assert snapshot(tmp_path) == before


def test_wrong_towers_are_one_line(cli: Cli, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    odd = write_tower(tmp_path / "odd-internvit", TowerSpec("internvit", image_size=6))
    misleading = write_tower(tmp_path / "design" / "internvit", TowerSpec())
    clip = write_tower(tmp_path / "clip", TowerSpec("clip"))
    bare = write_tower(tmp_path / "bare-clip", TowerSpec("clip"))
    (bare / "config.json").unlink()
    cut = write_tower(tmp_path / "cut-clip", TowerSpec("clip"))
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    before = snapshot(tmp_path)
    for tower, more, words in (
        (odd, (), ("odd-patch-grid",)),
        (misleading, (), ("tower-path-misleads", "SiglipVisionTower", "--tower-path")),
        (clip, ("--use-s2",), ("s2-needs-siglip",)),
        (bare, (), ("tower-config-unknown", "--tower-config")),
        (cut, (), ("truncated-file",)),
        (tmp_path / "nowhere", (), ("not-found",)),
        (base / "config.json", (), ("not-a-weight-file",)),
    ):
        call = ("--base", base, "--tower", tower, "--projector", "reinit")
        result = cli("swap-tower", *call, *more, "--out", tmp_path / "out")
        assert_one_error(result, 3, *words)
        assert snapshot(tmp_path) == before
    call = ("--base", clip, "--tower", clip, "--projector", "reinit")
    result = cli("swap-tower", *call, "--out", tmp_path / "out")
    assert_one_error(result, 3, "not-a-vita-checkpoint")
    inside = ("--base", base, "--tower", clip, "--projector", "reinit", "--out", clip / "out")
    assert_one_error(cli("swap-tower", *inside), 2, "output-overlaps-input")
