"""Options of every surgery: where and how its result is written."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from fixtures.builder import read_tensors, snapshot, write_checkpoint
from tests.conftest import Cli, assert_one_error


def test_a_plan_never_lands_in_its_own_inputs(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    merge = ["merge-projector", "--base", base, "--adapter", adapter]
    before = snapshot(tmp_path)
    result = cli(*merge, "--plan-out", base / "plan.json")
    assert_one_error(result, 2, "output-overlaps-input")
    (tmp_path / "out").mkdir()
    result = cli(*merge, "--plan-out", tmp_path / "plan.json", "--out", tmp_path / "out")
    assert_one_error(result, 2, "output-exists")
    assert snapshot(tmp_path) == before


def test_a_summary_in_place(cli: Cli, base: Path, adapter: Path) -> None:
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--in-place", "--json")
    schema = json.loads(
        resources.files("vita_ckpt.schemas").joinpath("summary-v1.json").read_text()
    )
    for extra, out in ((("--dry-run",), None), ((), str(base))):
        summary = json.loads(cli(*call, *extra).out)
        jsonschema.validate(summary, schema)
        assert summary["out"] == out
        assert [file["name"] for file in summary["patched"]] == ["model-00003-of-00003.safetensors"]
        assert summary["carried"] == []
        assert summary["bytes_to_write"] == sum(file["bytes"] for file in summary["patched"])


def test_wrong_calls(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    merge = ("merge-projector", "--base", base, "--adapter", adapter, "--in-place")
    for option in (("--out", tmp_path / "x"), ("--plan-out", tmp_path / "x"), ("--link", "copy")):
        result = cli(*merge, *option)
        assert_one_error(result, 2, "options-exclude-each-other", str(option[0]))
    assert_one_error(cli(*merge[:-1]), 2, "no-output", "--in-place")
    assert_one_error(cli(*merge, "--link", "reflinks"), 2, "usage")
    plan = (*merge[:-1], "--plan-out", tmp_path / "x")
    assert_one_error(cli(*plan, "--digest"), 2, "options-exclude-each-other", "vita-ckpt apply")
    assert_one_error(cli(*plan, "--out", tmp_path / "x"), 2, "outputs-collide")
    assert not (tmp_path / "x").exists()
    for command in ("undo", "recover"):
        assert_one_error(cli(command, tmp_path / "none"), 3, "not-found")
        assert_one_error(cli(command, adapter), 3, "not-found", "a file")
    assert_one_error(cli("history", tmp_path / "none"), 3, "not-found")
    assert_one_error(cli("clean", adapter, "--undo"), 3, "not-found")
    assert not (base / ".vita-ckpt").exists()


@pytest.mark.parametrize("link", ["auto", "copy", "hardlink", "symlink"])
def test_links(cli: Cli, base: Path, adapter: Path, tmp_path: Path, link: str) -> None:
    out, before = tmp_path / "out", snapshot(base)
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--out", out, "--check")
    result = cli(*call, "--link", link)
    assert result.code == 0, result
    assert read_tensors(adapter).items() <= read_tensors(out).items()
    for name in ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
        assert (out / name).is_symlink() == (link == "symlink")
        same = (out / name).stat().st_ino == (base / name).stat().st_ino
        assert same == (link in ("hardlink", "symlink"))
    assert not (out / "tokenizer.json").is_symlink()
    assert (out / "tokenizer.json").stat().st_nlink == 1
    # A later change of the one in place is none of the other.
    tower = tmp_path / "tower-internvit"
    swap = ("swap-tower", "--base", out, "--tower", tower, "--in-place")
    assert cli(*swap).code == 0
    assert {n: c for n, (_, _, c) in snapshot(base).items()} == {
        n: c for n, (_, _, c) in before.items()
    }


def test_a_reflink_that_cannot_be_leaves_nothing(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--out", tmp_path / "out")
    result = cli(*call, "--link", "reflink")
    if result.code:  # not on this file system
        assert_one_error(result, 2, "link-not-possible", "--link auto")
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".vita-ckpt-*"))


def test_a_hard_link_across_file_systems_cannot_be(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if other.stat().st_dev == tmp_path.stat().st_dev:
        return
    base = write_checkpoint(
        other / f"vita-ckpt-test-{os.getpid()}" / "base", dtype="BF16", shards=3
    )
    try:
        call = ("merge-projector", "--base", base, "--adapter", adapter, "--out", tmp_path / "out")
        result = cli(*call, "--link", "hardlink")
        assert_one_error(result, 2, "link-not-possible", "cross-device")
        assert not (tmp_path / "out").exists()
        assert cli(*call, "--link", "symlink").code == 0
    finally:
        subprocess.run(["rm", "-rf", str(base.parent)], check=True)


def test_what_is_said_of_what_says_what_was_done(cli: Cli, base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("# A model")
    pair = ("image_aspect_ratio=pad", "--digest", "--model-card", "--json")
    for extra in (("--out", tmp_path / "out", "--dry-run"), ("--in-place",)):
        summary = json.loads(cli("set", base, *pair, *extra).out)
        assert {file["name"]: file["change"] for file in summary["files"]} == {
            "vita_ckpt.json": "added",
            "README.md": "replaced",
            "vita_ckpt.manifest.json": "added",
        }
        assert "README.md" not in {file["name"] for file in summary["carried"]}
    for more in ((), ("--digest",), ("--digest", "--model-card")):
        again = cli("set", base, "image_aspect_ratio=pad", "--in-place", *more)
        assert again.out == "nothing to change\n"
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").out == "nothing to change\n"


def test_a_model_card_says_how_it_was_made(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    head, body = b"---\nlicense: mit\ntags: [mine]\n", b"---\n# A model \xff\n"
    text = head + body
    front = (
        b"---\nlicense: mit\ntags:\n- mine\n- vita\n- multimodal\nlibrary_name: transformers\n"
        b"pipeline_tag: image-text-to-text\n" + body
    )
    (base / "README.md").write_bytes(text)
    out = tmp_path / "out"
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--model-card")
    assert cli(*call, "--out", out, "--digest").code == 0
    card = (out / "README.md").read_bytes()
    assert card.startswith(front)
    assert card.count(b"## Lineage") == 1
    assert b"`adapter`: `adapter.safetensors`" in card
    assert cli("set", out, "image_aspect_ratio=pad", "--in-place", "--model-card").code == 0
    again = (out / "README.md").read_bytes()
    assert again.startswith(front)
    assert again.count(b"## Lineage") == 1
    assert b"image_aspect_ratio=pad" in again
    assert cli("validate", out, "--deep").code == 0
    (base / "README.md").unlink()
    assert cli(*call, "--out", tmp_path / "bare").code == 0
    bare = (tmp_path / "bare" / "README.md").read_bytes()
    assert bare.startswith(b"---\nlibrary_name: transformers\n")
    assert b"\n---\n\n<!-- vita-ckpt: lineage" in bare
