"""``vita-ckpt undo`` as a person types it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from fixtures.builder import read_tensors
from tests.conftest import Cli, assert_one_error
from tests.in_place import files_of


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
    assert "is restored to the state before the merge-projector" in undone.out
    assert files_of(base) == before
    assert_one_error(cli("undo", base), 3, "nothing-to-undo")
    assert "is whole: nothing to do" in cli("recover", base).out


def test_the_command_that_is_named_can_be_pasted(cli: Cli, base: Path, tmp_path: Path) -> None:
    spaced = base.rename(tmp_path / "a b")
    said = cli("set", spaced, "image_aspect_ratio=pad", "--in-place").out
    undo = said.rpartition("; vita-ckpt ")[2].removesuffix(" undoes it\n")
    assert cli(*shlex.split(undo)).out.partition("is restored to the state before the set (")[1]
    plan = tmp_path / "the plan.json"
    said = cli("set", spaced, "image_aspect_ratio=pad", "--plan-out", plan).err
    assert shlex.split(said)[-3:] == [str(plan), "--out", "PATH"]


def test_undo_data_is_no_part_of_a_checkpoint(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0
    result = cli("set", base, "use_s2=false", "--out", tmp_path / "out")
    assert ".vita-ckpt" not in result.out
    assert not (tmp_path / "out" / ".vita-ckpt").exists()
