"""In place: what changes is written and nothing else, and what a copy would be comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fixtures.builder import TowerSpec, read_tensors, write_adapter, write_checkpoint, write_tower
from tests.builders import as_bins, while_writing
from tests.in_place import (
    MLP,
    PLANS,
    Planned,
    files_of,
    merge,
    other_type,
    same_shapes,
    set_key,
    timeless,
)
from vita_ckpt import (
    CastError,
    InputError,
    Options,
    OutputError,
    StaleInputError,
    UsageError,
    apply,
    apply_in_place,
    history,
    inspect,
    open_checkpoint,
    plan_extract_projector,
    plan_merge_projector,
    plan_set,
    summarize,
    undo,
    validate,
)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.__name__)
def test_it_makes_what_a_copy_would_be_and_undo_brings_back(
    tmp_path: Path, adapter: Path, plan: Planned, shards: int
) -> None:
    write_tower(tmp_path / "tower-internvit", TowerSpec(), seed=5)
    base = write_checkpoint(tmp_path / "base", dtype="BF16", shards=shards)
    before = files_of(base)
    out = Path(apply(plan(base, adapter), tmp_path / "out"))
    assert apply_in_place(plan(base, adapter)) == str(base)
    assert timeless(files_of(base)) == timeless(files_of(out))
    assert open_checkpoint(base).tensors.keys() == open_checkpoint(out).tensors.keys()
    done = undo(base)
    assert (done.operation, done.recovered) == (plan(base, adapter).operation, False)
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


@pytest.mark.parametrize("plan", [merge, same_shapes], ids=lambda p: p.__name__)
def test_tensors_that_keep_their_place_are_patched(
    base: Path, adapter: Path, plan: Planned
) -> None:
    """The file stays the same file, and only the ranges of these tensors differ."""
    inodes = {file.name: file.stat().st_ino for file in base.iterdir()}
    before = files_of(base)
    planned = plan(base, adapter)
    changed = {edit.name for edit in planned.tensor_edits}
    expected = {n: t for n, t in read_tensors(base).items() if n not in changed}
    summary = summarize(planned, in_place=True)
    apply_in_place(planned)
    assert {n: t for n, t in read_tensors(base).items() if n not in changed} == expected
    patched = {file.name for file in summary.patched}
    assert patched
    assert not [file for file in summary.rewritten if file.name.endswith(".safetensors")]
    for name, inode in inodes.items():
        kept = name in patched or files_of(base)[name] == before[name]
        assert ((base / name).stat().st_ino == inode) == kept, name


def test_another_dtype_of_one_width_changes_the_header_where_it_is(
    tmp_path: Path, base: Path
) -> None:
    adapter = write_adapter(tmp_path / "a.safetensors", MLP, dtype="F16", seed=3)
    plan = plan_merge_projector(base, adapter, dtype="f16")
    assert summarize(plan, in_place=True).patched
    before = files_of(base)
    apply_in_place(plan)
    merged = {n: t for n, t in read_tensors(base).items() if "mm_projector" in n}
    assert merged == read_tensors(adapter)
    assert inspect(base).tensors == len(read_tensors(base))
    undo(base)
    assert files_of(base) == before


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_bytes_that_other_names_lead_to_are_not_written_into(
    tmp_path: Path, base: Path, adapter: Path, link: str
) -> None:
    """As in the hub cache: the checkpoint gets a file of its own, and undo the link again."""
    store = tmp_path / "store"
    store.mkdir()
    for file in list(base.glob("*.safetensors")):
        if link == "hardlink":
            os.link(file, store / file.name)
        else:
            file.rename(store / file.name)
            file.symlink_to(os.path.join("..", "store", file.name))
    stored, before = files_of(store), files_of(base)
    inodes = {file.name: file.stat().st_ino for file in base.iterdir()}
    plan = merge(base, adapter)
    assert not summarize(plan, in_place=True).patched
    apply_in_place(plan)
    assert files_of(store) == stored
    found = {n: t for n, t in read_tensors(base).items() if "mm_projector" in n}
    assert found == read_tensors(adapter)
    undo(base)
    assert files_of(base) == before
    assert {file.name: file.stat().st_ino for file in base.iterdir()} == inodes


def test_a_file_that_is_read_while_it_is_written_into_is_written_anew(tmp_path: Path) -> None:
    """The adapter is the base by another name: its bytes could come out mixed."""
    base = write_checkpoint(tmp_path / "base", dtype="BF16")
    (tmp_path / "alias.safetensors").symlink_to(base / "model.safetensors")
    plan = plan_merge_projector(base, tmp_path / "alias.safetensors")
    assert not summarize(plan, in_place=True).patched
    expected = read_tensors(base)
    apply_in_place(plan)
    assert read_tensors(base) == expected


@pytest.mark.parametrize("shards", [1, 2])
def test_bins_become_safetensors_and_bins_again(tmp_path: Path, adapter: Path, shards: int) -> None:
    base = as_bins(write_checkpoint(tmp_path / "base", dtype="BF16"), shards=shards)
    before = files_of(base)
    apply_in_place(merge(base, adapter))
    assert not list(base.glob("*.bin*"))
    assert read_tensors(adapter).items() <= read_tensors(base).items()
    undo(base)
    assert files_of(base) == before


def test_nothing_to_change_changes_nothing(base: Path) -> None:
    before = files_of(base)
    apply_in_place(plan_set(base, {"use_s2": False}))
    apply_in_place(plan_merge_projector(base, base))
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


def test_modes_stay(base: Path, adapter: Path) -> None:
    for file in base.iterdir():
        file.chmod(0o640)
    apply_in_place(other_type(base, adapter))
    modes = {f.name: f.stat().st_mode & 0o777 for f in base.iterdir() if f.is_file()}
    assert set(modes.values()) == {0o640}


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.__name__)
def test_where_there_are_no_hard_links_files_are_moved(
    base: Path, adapter: Path, plan: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on exFAT, or of files of other people."""

    def refuse(*_paths: object, **_options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before = files_of(base)
    plan(base, adapter)
    monkeypatch.setattr(os, "link", refuse)
    apply_in_place(plan(base, adapter))
    assert files_of(base) != before
    assert not [f for f in validate(base, deep=True).findings if f.severity == "error"]
    undo(base)
    assert files_of(base) == before


def test_an_extraction_is_not_in_place(base: Path, tmp_path: Path, adapter: Path) -> None:
    with pytest.raises(UsageError, match="not-in-place"):
        apply_in_place(plan_extract_projector(base))


def test_a_conversion_that_overflows_leaves_everything(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="F16")
    tensors = {f"mm_projector.{n}": torch.full(s, 0.5) for n, s in MLP.items()}
    tensors["mm_projector.2.bias"][5] = 70000.0
    torch.save(tensors, tmp_path / "a.bin")
    before = files_of(base)
    with pytest.raises(CastError, match="cast-overflow"):
        apply_in_place(plan_merge_projector(base, tmp_path / "a.bin"))
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


@pytest.mark.parametrize("victim", ["config.json", "adapter"])
def test_an_input_that_changed_is_refused(base: Path, adapter: Path, victim: str) -> None:
    plan = merge(base, adapter)
    path = adapter if victim == "adapter" else base / victim
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    before = files_of(base)
    with pytest.raises(StaleInputError, match=path.name):
        apply_in_place(plan)
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


def test_an_adapter_that_changes_while_it_is_merged_is_refused(base: Path, adapter: Path) -> None:
    before = files_of(base)
    steps: list[int] = []

    def touch(count: int) -> None:
        if not steps:
            os.utime(adapter, ns=(1, adapter.stat().st_mtime_ns + 1))
        steps.append(count)

    with pytest.raises(StaleInputError, match=r"adapter\.safetensors"):
        apply_in_place(merge(base, adapter), on_progress=while_writing(touch))
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


LIMITED = """
import resource, sys
from vita_ckpt import apply_in_place, plan_merge_projector
plan = plan_merge_projector(*sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    apply_in_place(plan)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_disk_that_takes_no_more_leaves_everything(base: Path, adapter: Path) -> None:
    before = files_of(base)
    command = [sys.executable, "-c", LIMITED, str(base), str(adapter)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"OutputError write-failed: {base}: got file too large")
    assert "the checkpoint is as it was" in done.stdout
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


def test_what_the_check_finds_is_rolled_back(base: Path, adapter: Path) -> None:
    """Another program writes into the patched range before it is read again."""
    before = files_of(base)
    name = summarize(merge(base, adapter), in_place=True).patched[0].name
    ref = open_checkpoint(base).refs["model.mm_projector.0.bias"]

    def disturb(_count: int) -> None:
        if not (base / ".vita-ckpt" / "active").exists():
            return
        with open(base / name, "r+b") as file:
            file.seek(ref.offset)
            file.write(b"\xff")

    with pytest.raises(OutputError, match="check-failed"):
        apply_in_place(merge(base, adapter), on_progress=while_writing(disturb))
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()
    apply_in_place(
        merge(base, adapter), options=Options(check=False), on_progress=while_writing(disturb)
    )
    assert files_of(base) != before


def test_two_surgeons_one_winner(base: Path, adapter: Path) -> None:
    """One that comes while the other is at work is refused, and so is one that has been late."""
    done: list[str] = []
    refused: list[InputError] = []
    rival_plan = set_key(base, adapter)

    def rival(_count: int) -> None:
        if (base / ".vita-ckpt" / "active").exists():
            with pytest.raises(InputError, match="mid-surgery") as error:
                apply_in_place(rival_plan)
            refused.append(error.value)
        elif not done:
            done.append(apply_in_place(rival_plan))

    with pytest.raises(StaleInputError):  # what it has saved is no longer what is there
        apply_in_place(merge(base, adapter), on_progress=while_writing(rival))
    assert done
    assert not refused
    assert [o["operation"] for o in history(base).operations] == ["set"]
    apply_in_place(merge(base, adapter), on_progress=while_writing(rival))
    assert refused
    assert [o["operation"] for o in history(base).operations] == ["set", "merge-projector"]
    assert read_tensors(adapter).items() <= read_tensors(base).items()
