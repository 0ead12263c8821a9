"""vita-ckpt history, undo, recover, clean; and the options of what is written."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from safetensors import safe_open

from fixtures.builder import (
    TowerSpec,
    mm_projector,
    read_tensors,
    snapshot,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.conftest import Cli, Result, assert_one_error
from tests.storage.test_in_place import files_of
from vita_ckpt.storage.system import owner

MLP = mm_projector("mlp2x_gelu", 32, 16)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


def dead_tag() -> str:
    program = "from vita_ckpt.storage.system.owner import current; print(current().tag)"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_in_place_and_back(cli: Cli, base: Path, adapter: Path) -> None:
    before = files_of(base)
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--in-place")
    planned = cli(*call, "--dry-run")
    assert "patched: model-00003-of-00003.safetensors" in planned.out
    assert f"would change {os.path.relpath(base)} in place" in planned.out or (
        f"would change {base} in place" in planned.out
    )
    assert files_of(base) == before
    result = cli(*call)
    assert result.code == 0, result
    assert "undoes it" in result.out
    assert "added: vita_ckpt.json" in result.out
    assert read_tensors(adapter).items() <= read_tensors(base).items()
    history = cli("history", base)
    assert "can be undone" in history.out
    assert "adapter: adapter.safetensors" in history.out
    undone = cli("undo", base)
    assert undone.code == 0
    assert "is as it was before merge-projector" in undone.out
    assert files_of(base) == before
    assert_one_error(cli("undo", base), 3, "nothing-to-undo")
    assert "is whole: nothing to do" in cli("recover", base).out


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


def test_history_as_json(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    schema = json.loads(
        resources.files("vita_ckpt.schemas").joinpath("history-v1.json").read_text()
    )
    empty = json.loads(cli("history", base, "--json").out)
    jsonschema.validate(empty, schema)
    assert (empty["operations"], empty["undoable"]) == ([], None)
    assert "no surgery is known" in cli("history", base).out
    out = tmp_path / "out"
    clip = write_tower(tmp_path / "tower-clip", TowerSpec("clip"))
    call = ("--base", base, "--tower", clip, "--projector", "reinit", "--seed", 3)
    assert cli("swap-tower", *call, "--out", out).code == 0
    projector = write_adapter(tmp_path / "p.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    merge = ("merge-projector", "--base", out, "--adapter", projector, "--in-place")
    assert cli(*merge, "--digest").code == 0
    assert cli("set", out, f"mm_vision_tower={tmp_path}/clip", "--in-place").code == 0
    found = json.loads(cli("history", out, "--json").out)
    jsonschema.validate(found, schema)
    first, second, third = found["operations"]
    assert first["seed"] == 3
    assert first["needs_alignment"] is True
    assert second["inputs"]["adapter"]["name"] == "p.safetensors"
    assert third["arguments"] == {"mm_vision_tower": "clip"}
    assert found["needs_alignment"] is False
    assert found["has_manifest"] is True
    assert found["undoable"]["operation"] == "set"
    assert str(tmp_path) not in json.dumps(found["operations"])
    for name, digest in second["written"]["tensors"].items():
        with safe_open(projector, "np") as file:
            stored = file.get_tensor(name)
        assert stored.dtype == "float32"
        shard = next(
            path for path in out.glob("*.safetensors") if name.encode() in path.read_bytes()
        )
        data = shard.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        begin, end = json.loads(data[8:start])[name]["data_offsets"]
        piece = data[start + begin : start + end]
        assert digest == f"sha256:{hashlib.sha256(piece).hexdigest()}"


@pytest.mark.parametrize("text", ["{", "[]", '{"operations": 3}', '{"operations": [1, {"x": []}]}'])
def test_a_history_that_somebody_else_wrote(cli: Cli, base: Path, text: str) -> None:
    (base / "vita_ckpt.json").write_text(text)
    assert cli("history", base).code == 0
    assert json.loads(cli("history", base, "--json").out)["undoable"] is None
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    assert cli("history", base).out.count("image_aspect_ratio=pad") == 1


def test_a_torn_checkpoint_is_made_whole_by_the_next_command(
    cli: Cli, base: Path, adapter: Path
) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    kept = base / ".vita-ckpt" / "undo-1"
    (kept / "owner-nobody").rename(kept / f"owner-{dead_tag()}")
    kept.rename(base / ".vita-ckpt" / "active")  # as a killed undo leaves it
    assert_one_error(cli("history", base), 3, "mid-surgery", "died", "vita-ckpt recover")
    merge = ("merge-projector", "--base", base, "--adapter", adapter)
    assert_one_error(cli(*merge, "--out", base.parent / "out"), 3, "mid-surgery")
    result = cli(*merge, "--in-place")
    assert result.code == 0, result
    assert "had died" in result.err
    assert [
        o["operation"] for o in json.loads(cli("history", base, "--json").out)["operations"]
    ] == ["merge-projector"]


def test_clean_removes_what_the_dead_left(cli: Cli, base: Path, tmp_path: Path) -> None:
    tag = dead_tag()
    dead = [
        tmp_path / f".vita-ckpt-000000000001-{tag}.tmp",
        base / f".vita-ckpt-000000000002-{tag}.tmp",
        base / ".vita-ckpt" / f"prepare-000000000003-{tag}",
        base / ".vita-ckpt" / f"trash-000000000004-{tag}",
    ]
    elsewhere = owner.current().tag + "x"
    kept = [
        tmp_path / f".vita-ckpt-000000000005-{owner.current().tag}.tmp",
        tmp_path / f".vita-ckpt-000000000006-{elsewhere}.tmp",
        tmp_path / ".vita-ckpt-000000000007.tmp",
    ]
    for path in dead + kept:
        path.mkdir(parents=True)
        (path / "model").write_bytes(b"x" * 1000)
    assert_one_error(cli("clean", tmp_path / "no" / "where"), 3, "not-found")
    before = {n: c for n, c in files_of(base).items() if not n.startswith(".vita-ckpt-")}
    listed = cli("clean", base, "--dry-run")
    assert listed.out.count("would remove") == 4
    assert "(1 kB)" in listed.out
    assert all(path.exists() for path in dead + kept)
    note = cli("set", base, "use_s2=true", "--out", tmp_path / "out").err
    assert note.count("a killed run left") == 1
    result = cli("clean", base)
    assert result.code == 0
    assert result.out.count("removed") == 4
    assert result.err.count("kept") == 3
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)
    assert files_of(base) == before
    assert cli("clean", tmp_path / "never-came").out == ""
    assert cli("-q", "clean", tmp_path).err == ""


def test_clean_drops_undo_data(cli: Cli, base: Path) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    now = files_of(base)
    assert "would remove the undo data" in cli("clean", base, "--undo", "--dry-run").out
    assert "removed the undo data" in cli("clean", base, "--undo").out
    assert cli("clean", base, "--undo").out == ""
    assert not (base / ".vita-ckpt").exists()
    assert files_of(base) == now
    assert_one_error(cli("undo", base), 3, "nothing-to-undo")


def test_clean_of_undo_data_is_the_same_dry(cli: Cli, base: Path, tmp_path: Path) -> None:
    """A directory of checkpoints, and a checkpoint that cannot be read, are cleaned too."""
    for dry in ([], ["--dry-run"]):
        assert cli("clean", tmp_path, "--undo", *dry) == Result(0, "", "")
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    (base / "model.safetensors.index.json").unlink()
    assert "would remove the undo data" in cli("clean", base, "--undo", "--dry-run").out
    assert "removed the undo data" in cli("clean", base, "--undo").out


def test_one_file_is_one_file(cli: Cli, base: Path) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    assert "1 file\n" in cli("history", base).out


def test_the_command_that_is_named_can_be_pasted(cli: Cli, base: Path, tmp_path: Path) -> None:
    spaced = base.rename(tmp_path / "a b")
    said = cli("set", spaced, "image_aspect_ratio=pad", "--in-place").out
    undo = said.rpartition("; vita-ckpt ")[2].removesuffix(" undoes it\n")
    assert cli(*shlex.split(undo)).out.endswith(", undone\n")
    plan = tmp_path / "the plan.json"
    said = cli("set", spaced, "image_aspect_ratio=pad", "--plan-out", plan).err
    assert shlex.split(said)[-3:] == [str(plan), "--out", "PATH"]


def test_undo_data_is_no_part_of_a_checkpoint(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    result = cli("set", base, "use_s2=false", "--out", tmp_path / "out")
    assert ".vita-ckpt" not in result.out
    assert not (tmp_path / "out" / ".vita-ckpt").exists()


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


def test_a_saved_plan_in_place(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    saved = tmp_path / "plan.json"
    call = ("merge-projector", "--base", base, "--adapter", adapter)
    assert cli(*call, "--plan-out", saved).code == 0
    assert cli("apply", saved, "--in-place").code == 0
    assert read_tensors(adapter).items() <= read_tensors(base).items()
    assert_one_error(cli("apply", saved, "--in-place"), 3, "input-changed")
    assert cli("undo", base).code == 0
    (tmp_path / "plan.json").unlink()
    assert cli(*call, "--plan-out", saved).code == 0
    data = json.loads(saved.read_text())
    saved.write_text(json.dumps({**data, "record": None}))
    assert_one_error(cli("apply", saved, "--in-place"), 3, "invalid-plan", "record")


def test_a_model_card_says_how_it_was_made(
    cli: Cli, base: Path, adapter: Path, tmp_path: Path
) -> None:
    text = b"---\nlicense: mit\n---\n# A model \xff\n"
    (base / "README.md").write_bytes(text)
    out = tmp_path / "out"
    call = ("merge-projector", "--base", base, "--adapter", adapter, "--model-card")
    assert cli(*call, "--out", out, "--digest").code == 0
    card = (out / "README.md").read_bytes()
    assert card.startswith(text)
    assert card.count(b"## Lineage") == 1
    assert b"`adapter`: `adapter.safetensors`" in card
    assert cli("set", out, "image_aspect_ratio=pad", "--in-place", "--model-card").code == 0
    again = (out / "README.md").read_bytes()
    assert again.startswith(text)
    assert again.count(b"## Lineage") == 1
    assert b"image_aspect_ratio=pad" in again
    assert cli("validate", out, "--deep").code == 0
    (base / "README.md").unlink()
    assert cli(*call, "--out", tmp_path / "bare").code == 0
    assert (tmp_path / "bare" / "README.md").read_bytes().startswith(b"<!-- vita-ckpt: lineage")


def test_a_surgery_looks_for_no_left_overs_among_temporary_files(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python would write there, and where that fails, in the working directory, to find a place."""
    trap = tmp_path / "trap"
    (trap / f".vita-ckpt-000000000001-{dead_tag()}.tmp").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(trap))
    done = cli("set", base, "use_s2=true", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert ".vita-ckpt-" not in done.err
    assert "removed" in cli("clean", base).out
    assert list(trap.iterdir()) == []


def test_clean_without_a_place_for_temporary_files(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / f".vita-ckpt-000000000001-{dead_tag()}.tmp"
    left.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    done = cli("clean", tmp_path)
    assert (done.code, done.err) == (0, "")
    assert not left.exists()
