"""In place: what changes is written and nothing else, and what was there comes back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    read_tensors,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.storage.test_directory import as_bins
from vita_ckpt import (
    CastError,
    DropFile,
    InputError,
    MalformedFileError,
    Options,
    OutputError,
    Plan,
    Record,
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
    plan_swap_tower,
    recover,
    summarize,
    undo,
    validate,
)
from vita_ckpt.api.explain import explain
from vita_ckpt.core.checksummed_json import seal
from vita_ckpt.core.journal import Journal, PatchedFile, ReplacedFile, SavedRange
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.storage.in_place import rollback
from vita_ckpt.storage.system import owner

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)
LINEAR = mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec(), seed=5)
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


def files_of(root: Path) -> dict[str, bytes | str]:
    """Every file of a checkpoint but our own: its content, or where a link leads."""
    return {
        os.path.relpath(path, root): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if (path.is_file() or path.is_symlink()) and ".vita-ckpt" not in path.parts
    }


def timeless(files: dict[str, bytes | str]) -> dict[str, Any]:
    """The same without the time in the lineage."""
    found: dict[str, Any] = dict(files)
    if "vita_ckpt.json" in found:
        lineage = json.loads(found["vita_ckpt.json"])
        for entry in lineage["operations"]:
            assert entry.pop("time").endswith("Z")
        found["vita_ckpt.json"] = lineage
    return found


def merge(base: Path, adapter: Path) -> Plan:
    return plan_merge_projector(base, adapter)


def other_type(base: Path, adapter: Path) -> Plan:
    return plan_merge_projector(
        base, write_adapter(adapter.parent / "linear.safetensors", LINEAR, dtype="BF16", seed=4)
    )


def same_shapes(base: Path, adapter: Path) -> Plan:
    return plan_swap_tower(base, adapter.parent / "tower-internvit")


def other_tower(base: Path, adapter: Path) -> Plan:
    clip = adapter.parent / "tower-clip"
    if not clip.exists():
        write_tower(clip, TowerSpec("clip"))
    return plan_swap_tower(base, clip, projector="reinit")


def set_key(base: Path, adapter: Path) -> Plan:
    return plan_set(base, {"image_aspect_ratio": "pad"})


PLANS = (merge, other_type, same_shapes, other_tower, set_key)
Planned = Callable[[Path, Path], Plan]


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


def test_only_the_last_surgery_can_be_undone(base: Path, adapter: Path) -> None:
    states = [files_of(base)]
    for plan in (merge, other_type, set_key):
        apply_in_place(plan(base, adapter))
        states.append(files_of(base))
    assert os.listdir(base / ".vita-ckpt") == ["undo-3"]
    assert [o["operation"] for o in history(base).operations] == [
        "merge-projector",
        "merge-projector",
        "set",
    ]
    undo(base)
    assert files_of(base) == states[-2]
    with pytest.raises(InputError, match="nothing-to-undo"):
        undo(base)
    assert recover(base) is None


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
    tensors = {f"mm_projector.{n}": torch.zeros(s) for n, s in MLP.items()}
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
        apply_in_place(merge(base, adapter), progress=touch)
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
        apply_in_place(merge(base, adapter), progress=disturb)
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()
    apply_in_place(merge(base, adapter), options=Options(check=False), progress=disturb)
    assert files_of(base) != before


IN_PLACE = """
import signal, sys, time
from vita_ckpt import apply_in_place, plan_merge_projector
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
steps = 0
def step(count):
    global steps
    steps += 1
    if steps == int(sys.argv[3]):
        print("here", flush=True)
        time.sleep(60)
apply_in_place(plan_merge_projector(sys.argv[1], sys.argv[2]), progress=step)
"""


def stopped_in_the_middle(base: Path, adapter: Path, step: int = 3) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IN_PLACE, str(base), str(adapter), str(step)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def torn(base: Path, adapter: Path) -> Path:
    """A checkpoint with one half of a new projector, whose surgeon is dead."""
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    assert files_of(base) != before
    return base


def test_every_reader_says_that_it_is_torn(torn: Path, adapter: Path) -> None:
    shard = next(torn.glob("*.safetensors"))
    for read in (
        open_checkpoint,
        inspect,
        explain,
        history,
        lambda p: plan_set(p, {"use_s2": False}),
        lambda p: plan_merge_projector(p, adapter),
    ):
        for path in (torn, shard):
            with pytest.raises(InputError, match=r"mid-surgery.*died.*vita-ckpt recover"):
                read(path)
    for path in (torn, shard):
        assert "mid-surgery" in {finding.rule for finding in validate(path).findings}


def test_recovering_brings_back_what_was_there(tmp_path: Path, base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    found = recover(base)
    assert found is not None
    assert (found.operation, found.recovered) == ("merge-projector", True)
    assert files_of(base) == before
    assert recover(base) is None
    assert not (base / ".vita-ckpt").exists()


def test_undo_of_a_torn_checkpoint_undoes_that_surgery_alone(base: Path, adapter: Path) -> None:
    apply_in_place(set_key(base, adapter))
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    assert undo(base).recovered
    assert files_of(base) == before
    assert undo(base).operation == "set"


def test_a_surgery_under_way_is_left_alone(base: Path, adapter: Path) -> None:
    plan = set_key(base, adapter)
    with stopped_in_the_middle(base, adapter) as process:
        for attempt in (recover, undo):
            with pytest.raises(InputError, match=r"surgery-under-way.*at work on it|mid-surgery"):
                attempt(base)
        with pytest.raises(InputError, match=r"mid-surgery.*is at work on it"):
            apply_in_place(plan)
        kill(process)
    assert recover(base) is not None


def test_asked_to_end_it_puts_back_what_was_there(base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert "KeyboardInterrupt: the checkpoint is as it was" in err
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()


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
        apply_in_place(merge(base, adapter), progress=rival)
    assert done
    assert not refused
    assert [o["operation"] for o in history(base).operations] == ["set"]
    apply_in_place(merge(base, adapter), progress=rival)
    assert refused
    assert [o["operation"] for o in history(base).operations] == ["set", "merge-projector"]
    assert read_tensors(adapter).items() <= read_tensors(base).items()


def owner_file(directory: Path) -> Path:
    return next(directory.glob("owner-*"))


def test_a_surgery_of_another_host_is_not_taken_over_unasked(torn: Path) -> None:
    active = torn / ".vita-ckpt" / "active"
    tag = owner.current().tag
    elsewhere = tag.rsplit("-", 2)[0] + "-00000000-otherhost"
    owner_file(active).rename(active / f"owner-{elsewhere}")
    with pytest.raises(InputError, match=r"owned-elsewhere.*otherhost"):
        recover(torn)
    assert recover(torn, force=True) is not None


def test_what_has_changed_since_is_not_overwritten_unasked(base: Path, adapter: Path) -> None:
    before = files_of(base)
    for name in ("vita_ckpt.json", "model-00003-of-00003.safetensors"):
        plan = merge(base, adapter)
        apply_in_place(plan)
        ref = open_checkpoint(base).refs["model.mm_projector.0.bias"]
        path = Path(ref.source.path) if name.endswith(".safetensors") else base / name
        with open(path, "r+b") as file:
            file.seek(ref.offset if path.suffix == ".safetensors" else 5)
            file.write(b"\xfe")
        with pytest.raises(InputError, match=f"changed-since.*{path.name}"):
            undo(base)
        done = undo(base, force=True)
        # A file that was new is not removed once its bytes are not those that were written.
        assert done.kept == (("vita_ckpt.json",) if name == "vita_ckpt.json" else ())
        (base / "vita_ckpt.json").unlink(missing_ok=True)
        assert files_of(base) == before


@pytest.mark.parametrize("what", ["shorter", "gone"])
def test_an_undo_that_cannot_be_is_not_begun(base: Path, adapter: Path, what: str) -> None:
    apply_in_place(merge(base, adapter))
    shard = base / "model-00003-of-00003.safetensors"
    sound = shard.read_bytes()
    if what == "shorter":
        shard.write_bytes(sound[:-8])
    else:
        shard.unlink()
    with pytest.raises(InputError, match=rf"not-the-same-file.*{shard.name}.*remove its"):
        undo(base, force=True)
    assert os.listdir(base / ".vita-ckpt") == ["undo-1"]
    shard.write_bytes(sound)
    undo(base)


@pytest.mark.parametrize("torn", [False, True])
def test_what_got_another_name_since_is_put_back_in_a_copy(
    base: Path, adapter: Path, torn: bool
) -> None:
    """As a backup of hard links makes it: the backup keeps what it has."""
    before = files_of(base)
    if torn:
        with stopped_in_the_middle(base, adapter) as process:
            kill(process)
    else:
        apply_in_place(merge(base, adapter))
    shard = base / "model-00003-of-00003.safetensors"
    os.link(shard, base.parent / "backup")
    shard.chmod(0o444)
    backed_up = shard.read_bytes()
    assert (recover if torn else undo)(base) is not None
    assert files_of(base) == before
    assert (base.parent / "backup").read_bytes() == backed_up
    assert shard.stat().st_nlink == 1
    assert shard.stat().st_mode & 0o777 == 0o444


def test_a_dead_surgery_that_held_second_names_is_in_nobodys_way(base: Path, adapter: Path) -> None:
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    dead = owner_file(base / ".vita-ckpt" / "active").name.removeprefix("owner-")
    for tag in (dead, "unknown"):
        left = base / ".vita-ckpt" / f"prepare-0123456789ab-{tag}" / "old"
        left.mkdir(parents=True)
        os.link(base / "model-00003-of-00003.safetensors", left / "0")
    assert recover(base) is not None
    assert files_of(base) == before


def test_an_undo_that_a_surgery_overtakes_gives_way(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The surgery ends after the undo has looked and before it takes the name."""
    apply_in_place(merge(base, adapter))
    real = rollback._check_fits

    def overtaken(*arguments: Any) -> None:
        real(*arguments)
        kept = base / ".vita-ckpt" / "undo-1"
        kept.rename(base / "aside")  # so that the surgery does not remove it, as if it were slow
        apply_in_place(set_key(base, adapter))
        (base / ".vita-ckpt" / "undo-1").rename(base / ".vita-ckpt" / "undo-2")
        (base / "aside").rename(kept)

    monkeypatch.setattr(rollback, "_check_fits", overtaken)
    with pytest.raises(InputError, match="surgery-under-way"):
        undo(base)
    monkeypatch.undo()
    assert [o["operation"] for o in history(base).operations] == ["merge-projector", "set"]
    assert undo(base).operation == "set"


def test_a_saved_file_that_is_gone_is_missed(base: Path, adapter: Path) -> None:
    apply_in_place(other_type(base, adapter))
    now = files_of(base)
    (base / ".vita-ckpt" / "undo-1" / "old" / "0").unlink()
    with pytest.raises(MalformedFileError, match=r"damaged-journal.*is gone"):
        undo(base)
    assert files_of(base) == now


def test_a_file_whose_digest_in_the_manifest_is_old_is_kept_as_it_is(
    base: Path, adapter: Path
) -> None:
    (base / "README.md").write_text("v1")
    card = Options(check=True, digest=True, model_card=True)
    apply_in_place(merge(base, adapter), options=card)
    readme = base / "README.md"
    readme.write_text(readme.read_text().replace("v1", "v2"))
    before = files_of(base)
    apply_in_place(set_key(base, adapter), options=card)
    undo(base)
    assert files_of(base) == before


@pytest.mark.parametrize("missing", [True, False])
def test_a_journal_without_an_owner_is_nobodys(base: Path, adapter: Path, missing: bool) -> None:
    before = files_of(base)
    apply_in_place(merge(base, adapter))
    kept = base / ".vita-ckpt" / "undo-1"
    assert (kept / "ranges").stat().st_mode & 0o777 == 0o600
    if missing:
        owner_file(kept).unlink()
    undo(base)
    assert files_of(base) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"size": ', '"size": 1e999, "x": '),
        ('"operation": "', '"operation": 3, "x": "'),
        ('"ranges": [', '"ranges": [[0, 8, 5, "", ""], '),
        ('"name": "', '"name": "../'),
        ('"name": "', '"name": ".vita-ckpt/'),
    ],
)
def test_a_journal_that_somebody_made_up(base: Path, adapter: Path, old: str, new: str) -> None:
    """Its digest of itself is right, and nothing else."""
    apply_in_place(merge(base, adapter))
    path = base / ".vita-ckpt" / "undo-1" / "journal.json"
    body = json.loads(path.read_text().replace(old, new))["body"]
    path.write_bytes(seal("vita-ckpt-journal", body))
    now = files_of(base)
    for read in (undo, history):
        with pytest.raises(MalformedFileError, match=r"damaged-journal|path-outside-checkpoint"):
            read(base)
    assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}
    assert files_of(base) == now
    with pytest.raises(MalformedFileError):
        undo(base, force=True)
    assert os.listdir(base / ".vita-ckpt") == ["undo-1"]


def test_numbers_do_not_run_out_in_silence(base: Path, adapter: Path) -> None:
    apply_in_place(merge(base, adapter))
    (base / ".vita-ckpt" / "undo-1").rename(base / ".vita-ckpt" / "undo-999999999")
    before = files_of(base)
    with pytest.raises(MalformedFileError, match="damaged-journal"):
        apply_in_place(set_key(base, adapter))
    assert files_of(base) == before
    assert undo(base).operation == "merge-projector"


def test_names_that_lines_cannot_hold(tmp_path: Path, base: Path) -> None:
    """What can be written into a journal can be read from it."""
    name = b"a\nb\\c\xff.bin.index.json"
    path = os.fsencode(base) + b"/" + name
    with open(path, "wb") as file:
        file.write(b"x")
    opened = open_checkpoint(base)
    plan = Plan("set", opened, (DropFile(os.fsdecode(name), "odd"),), record=Record())
    before = files_of(base)
    apply_in_place(plan)
    assert not os.path.exists(path)
    undo(base)
    assert files_of(base) == before


def test_a_flipped_bit_of_what_was_saved_is_found(base: Path, adapter: Path) -> None:
    """Nothing is put back then: the present bytes are all that is left."""
    apply_in_place(merge(base, adapter))
    now = files_of(base)
    kept = base / ".vita-ckpt" / "undo-1"
    assert not [f for f in validate(base, deep=True).findings if f.rule == "undo-damaged"]
    random = np.random.default_rng(1)
    for path in (kept / "journal.json", kept / "ranges"):
        sound = path.read_bytes()
        for place in random.integers(0, len(sound), 40):
            torn = bytearray(sound)
            torn[place] ^= 1 << int(random.integers(0, 8))
            path.write_bytes(torn)
            with pytest.raises(MalformedFileError, match="damaged-journal"):
                undo(base)
            assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}
        path.write_bytes(sound)
    assert files_of(base) == now
    undo(base)


def test_a_flipped_bit_of_a_file_that_was_replaced_is_found(base: Path, adapter: Path) -> None:
    """Of old weights the header is always known, the tensors where there is a manifest."""
    apply_in_place(set_key(base, adapter), options=Options(check=False, digest=True))
    apply_in_place(other_type(base, adapter))
    kept = base / ".vita-ckpt" / "undo-2"
    victims = [path for path in sorted((kept / "old").iterdir()) if path.stat().st_size]
    assert len(victims) >= 4
    for path in victims:
        sound = path.read_bytes()
        for place in (9, len(sound) // 2, len(sound) - 2):
            torn = bytearray(sound)
            torn[place] ^= 1
            path.write_bytes(torn)
            assert "undo-damaged" in {f.rule for f in validate(base, deep=True).findings}, path
        path.write_bytes(sound)
    assert not [f for f in validate(base, deep=True).findings if f.rule == "undo-damaged"]


def test_a_journal_does_not_lead_out_of_the_directory(torn: Path, tmp_path: Path) -> None:
    """One that was put there by somebody else can write into this checkpoint at most."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 8)
    active = torn / ".vita-ckpt" / "active"
    (active / "ranges").write_bytes(b"y" * 8)
    digest = hashlib.sha256(b"y" * 8).hexdigest()
    for name in ("../outside", str(outside), "a/../../outside"):
        for journal in (
            Journal("x", "", (PatchedFile(name, 8, (SavedRange(0, 8, 0, digest, digest),)),), ()),
            Journal("x", "", (), (ReplacedFile(name, None, FileDigest(1, "")),)),
        ):
            (active / "journal.json").write_bytes(journal.encode())
            with pytest.raises(MalformedFileError, match="path-outside-checkpoint"):
                recover(torn)
    assert outside.read_bytes() == b"x" * 8
    (active / "old").rename(tmp_path / "moved")
    (active / "old").symlink_to(tmp_path / "moved")
    with pytest.raises(MalformedFileError, match="damaged-journal"):
        recover(torn)


def test_what_a_dead_surgery_left_is_swept_by_the_next(base: Path, adapter: Path) -> None:
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    active = base / ".vita-ckpt" / "active"
    dead = owner_file(active).name.removeprefix("owner-")
    recover(base)
    left = base / ".vita-ckpt" / f"prepare-0123456789ab-{dead}"
    foreign = base / ".vita-ckpt" / "prepare-0123456789ab-unknown"
    for path in (left, foreign):
        (path / "old").mkdir(parents=True)
    os.link(base / "model-00001-of-00003.safetensors", left / "old" / "0")
    apply_in_place(merge(base, adapter))
    assert not left.exists()
    assert foreign.exists()
