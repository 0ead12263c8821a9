"""``vita-ckpt clean`` as a person types it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.cli.dead import dead_tag
from tests.conftest import Cli, Result, assert_one_error
from tests.in_place import files_of
from vita_ckpt.storage.system import owner


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
        assert cli("clean", tmp_path, "--undo", *dry) == Result(0, "", "nothing to remove\n")
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    (base / "model.safetensors.index.json").unlink()
    assert "would remove the undo data" in cli("clean", base, "--undo", "--dry-run").out
    assert "removed the undo data" in cli("clean", base, "--undo").out


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
