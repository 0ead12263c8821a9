"""Permissions: an output is never more open than what it is made of, at any moment."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.builders import as_bins, while_writing
from vita_ckpt import (
    Options,
    OutputError,
    Plan,
    apply,
    apply_in_place,
    plan_extract_projector,
    plan_extract_tower,
    plan_merge_projector,
    plan_set,
    plan_swap_tower,
    save_plan,
    undo,
)
from vita_ckpt.api.reports import write_report
from vita_ckpt.storage.system import access

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)
LINEAR = mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture(autouse=True)
def umask() -> None:
    os.umask(0o022)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec(), seed=5)
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def close(root: Path, directory: int, file: int) -> None:
    for path in root.iterdir():
        path.chmod(file)
    root.chmod(directory)


def merge(base: Path, adapter: Path) -> Plan:
    return plan_merge_projector(base, adapter)


def other_type(base: Path, adapter: Path) -> Plan:
    linear = write_adapter(adapter.parent / "linear.safetensors", LINEAR, dtype="BF16", seed=4)
    return plan_merge_projector(base, linear)


def swap(base: Path, adapter: Path) -> Plan:
    clip = write_tower(adapter.parent / "tower-clip", TowerSpec("clip"))
    return plan_swap_tower(base, clip, projector="reinit")


def set_key(base: Path, adapter: Path) -> Plan:
    return plan_set(base, {"image_aspect_ratio": "pad"})


PLANS = (merge, other_type, swap, set_key)
Planned = Callable[[Path, Path], Plan]
LIST = "system.posix_acl_access"
EVERYTHING = Options(check=True, digest=True, model_card=True)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.__name__)
@pytest.mark.parametrize(("directory", "file"), [(0o700, 0o600), (0o750, 0o640), (0o755, 0o444)])
def test_an_output_is_as_closed_as_its_base(
    tmp_path: Path, base: Path, adapter: Path, plan: Planned, directory: int, file: int
) -> None:
    close(base, directory, file)
    planned = plan(base, adapter)
    seen: set[int] = set()

    def look(_count: int) -> None:
        for stage in tmp_path.glob(".vita-ckpt-*.tmp"):
            seen.update({mode(stage) & ~directory, *(mode(f) & ~file for f in stage.iterdir())})

    out = Path(
        apply(planned, tmp_path / "out", options=EVERYTHING, on_progress=while_writing(look))
    )
    assert seen == {0}
    assert mode(out) == directory
    assert {path.name: mode(path) for path in out.iterdir() if mode(path) & ~file} == {}
    assert mode(out / "vita_ckpt.json") == file
    assert mode(out / "tokenizer.json") == file


def test_an_open_base_makes_what_umask_says(tmp_path: Path, base: Path, adapter: Path) -> None:
    close(base, 0o777, 0o777)
    os.umask(0o027)
    out = Path(apply(merge(base, adapter), tmp_path / "out"))
    assert mode(out) == 0o750
    assert {mode(path) for path in out.iterdir()} == {0o640}


def test_new_files_are_as_closed_as_the_config(tmp_path: Path, base: Path, adapter: Path) -> None:
    (base / "config.json").chmod(0o640)
    (base / "tokenizer.json").chmod(0o600)
    out = Path(apply(merge(base, adapter), tmp_path / "out", options=Options(digest=True)))
    assert mode(out / "vita_ckpt.json") == mode(out / "vita_ckpt.manifest.json") == 0o640
    assert mode(out / "tokenizer.json") == 0o600
    assert mode(out / "model-00001-of-00003.safetensors") == 0o644


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize(("directory", "file"), [(0o755, 0o600), (0o700, 0o644)])
def test_an_extraction_is_as_closed_as_its_source(
    tmp_path: Path, base: Path, suffix: str, directory: int, file: int
) -> None:
    close(base, directory, file)
    out = apply(plan_extract_projector(base), tmp_path / f"p.{suffix}")
    assert mode(Path(out)) == 0o600
    tower = Path(
        apply(plan_extract_tower(base, tower_config=tmp_path / "tower-internvit"), tmp_path / "t")
    )
    assert mode(tower) == directory
    assert {mode(path) for path in tower.iterdir()} == {0o600}


def test_folders_are_as_closed_as_those_of_the_base(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    (base / "assets" / "more").mkdir(parents=True)
    (base / "assets" / "more" / "logo.txt").write_text("x")
    (base / "assets").chmod(0o700)
    (base / "assets" / "more" / "logo.txt").chmod(0o604)
    out = Path(apply(merge(base, adapter), tmp_path / "out"))
    assert mode(out) == 0o755
    assert mode(out / "assets") == 0o700
    assert mode(out / "assets" / "more") == 0o755
    assert mode(out / "assets" / "more" / "logo.txt") == 0o604


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("bins", [False, True])
def test_in_place_modes_stay(
    tmp_path: Path, base: Path, adapter: Path, plan: Planned, bins: bool
) -> None:
    if bins:
        base = as_bins(write_checkpoint(tmp_path / "bins", dtype="BF16"), shards=2)
    close(base, 0o700, 0o600)
    before = {path.name: mode(path) for path in base.iterdir()}
    seen: set[int] = set()

    def look(_count: int) -> None:
        seen.update(mode(path) & 0o077 for path in (base / ".vita-ckpt").rglob("*"))

    apply_in_place(plan(base, adapter), options=EVERYTHING, on_progress=while_writing(look))
    assert seen <= {0}
    files = [path for path in base.rglob("*") if path.is_file()]
    assert {mode(path) for path in files} == {0o600}
    assert {mode(path) for path in base.rglob("*") if path.is_dir()} == {0o700}
    undo(base)
    assert {path.name: mode(path) for path in base.iterdir()} == before


def test_the_journal_is_as_closed_as_what_it_has_digests_of(base: Path, adapter: Path) -> None:
    (base / "config.json").chmod(0o600)
    apply_in_place(merge(base, adapter))
    kept = base / ".vita-ckpt" / "undo-1"
    assert mode(kept / "journal.json") == mode(kept / "ranges") == 0o600
    assert mode(base / "config.json") == 0o600


def test_a_directory_of_journals_that_came_open_is_closed(base: Path, adapter: Path) -> None:
    (base / ".vita-ckpt" / "prepare-0123456789ab-unknown").mkdir(parents=True)
    (base / ".vita-ckpt").chmod(0o777)
    apply_in_place(merge(base, adapter))
    assert mode(base / ".vita-ckpt") == 0o755


@as_root
@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.__name__)
def test_in_place_root_leaves_files_to_their_owners(
    base: Path, adapter: Path, plan: Planned
) -> None:
    planned = plan(base, adapter)
    for path in (base, *base.iterdir()):
        os.chown(path, 12345, 23456)
    close(base, 0o700, 0o600)
    apply_in_place(planned, options=EVERYTHING)
    for path in (base, *base.rglob("*")):
        if not path.name.startswith("owner-"):
            assert (path.lstat().st_uid, path.lstat().st_gid) == (12345, 23456), path
            assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    undo(base)
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in base.iterdir()} == {(12345, 23456)}


@as_root
def test_what_another_group_reads_is_not_shown_to_ones_own(
    tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the group cannot be kept its rights are not given to another one."""

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    close(base, 0o750, 0o640)
    kept = Path(apply(merge(base, adapter), tmp_path / "kept"))
    for path in (base, *base.iterdir()):
        os.chown(path, -1, 23456)
    plan = merge(base, adapter)
    own = Path(apply(plan, tmp_path / "own"))
    monkeypatch.setattr(os, "fchown", refuse)
    lost = Path(apply(plan, tmp_path / "lost"))
    assert mode(kept) == mode(own) == 0o750
    assert own.stat().st_gid == 23456
    assert {mode(path) for path in own.iterdir()} == {0o640}
    assert mode(lost) == 0o700
    assert {mode(path) for path in lost.iterdir()} == {0o600}
    apply_in_place(set_key(base, adapter))  # the owner is the same: it goes on
    assert mode(base / "config.json") == 0o600
    assert mode(base / "vita_ckpt.json") == 0o600


@as_root
def test_an_owner_that_cannot_be_kept(
    base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(base / "config.json", 12345, -1)
    before = {path.name: path.read_bytes() for path in base.iterdir()}

    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    plan = set_key(base, adapter)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(OutputError, match=r"owner-not-kept.*config\.json.*--out"):
        apply_in_place(plan)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_saved_plan_is_as_closed_as_its_inputs(tmp_path: Path, base: Path, adapter: Path) -> None:
    saved = tmp_path / "plan.json"
    for path, file in ((base / "tokenizer.json", 0o600), (adapter, 0o640)):
        save_plan(merge(base, adapter), saved)
        assert mode(saved) == 0o644
        saved.unlink()
        path.chmod(file)
        save_plan(merge(base, adapter), saved)
        assert mode(saved) == file
        saved.unlink()
        path.chmod(0o644)


def test_a_report_over_an_older_one_is_as_open_as_that(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    write_report(str(report), "first")
    assert mode(report) == 0o644
    for file in (0o600, 0o664):
        report.chmod(file)
        write_report(str(report), "second")
        assert mode(report) == file
    assert report.read_text() == "second"


@as_root
def test_a_report_over_an_older_one_keeps_its_owner(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("first")
    os.chown(report, 12345, 23456)
    write_report(str(report), "second")
    assert (report.stat().st_uid, report.stat().st_gid) == (12345, 23456)


def control_list(mask: int, *, group: int = 0, named: int = 4) -> bytes:
    """A list as the kernel encodes it, with rights for the user 12345."""
    nobody = 0xFFFFFFFF
    entries = [(1, 6, nobody), (2, named, 12345), (4, group, nobody), (16, mask, nobody)]
    packed = (struct.pack("<HHI", *entry) for entry in (*entries, (32, 0, nobody)))
    return struct.pack("<I", 2) + b"".join(packed)


def takes_lists(root: Path) -> bool:
    probe = root / "probe"
    probe.write_bytes(b"")
    try:
        os.setxattr(probe, LIST, control_list(4))
    except (OSError, AttributeError):
        return False
    finally:
        probe.unlink()
    return True


@pytest.mark.parametrize("plan", [merge, set_key], ids=lambda p: p.__name__)
def test_rights_that_a_list_gives_to_others_are_not_the_groups(
    tmp_path: Path, base: Path, adapter: Path, plan: Planned
) -> None:
    """Where there is a list, stat shows what it gives to anybody as the rights of the group."""
    if not takes_lists(tmp_path):
        pytest.skip("the file system has no access control lists")
    before = {path.name for path in base.iterdir()}
    for name in before:
        os.setxattr(base / name, LIST, control_list(4))
    os.setxattr(base, LIST, control_list(5, named=5))
    assert mode(base / "config.json") == 0o640
    # The directory of the output would pass its own list on.
    for kind in (LIST, "system.posix_acl_default"):
        os.setxattr(tmp_path, kind, control_list(7, group=7, named=7))
    out = Path(apply(plan(base, adapter), tmp_path / "out"))
    for path in (out, *out.iterdir()):
        assert mode(path) & 0o077 == 0
        assert not os.listxattr(path)
    apply_in_place(plan(base, adapter), options=EVERYTHING)
    for path in base.iterdir():
        if path.name in before:
            assert os.getxattr(path, LIST) == control_list(4), path
        else:
            assert mode(path) & 0o077 == 0, path
    assert mode(base / ".vita-ckpt" / "undo-1" / "journal.json") == 0o600


def test_what_is_common_to_several() -> None:
    first, second = access.Access(0o664, 1, 1), access.Access(0o640, 2, 1)
    assert access.narrowest([first, second]) == access.Access(0o640, 1, 1)
    assert access.narrowest([first, access.Access(0o664, 1, 2)]) == access.Access(0o644, 1, 1)
    assert access.narrowest([]) is None
    assert access.Access(0o644, 1, 1).within(access.Access(0o700, 1, 1)).mode == 0o600
    assert access.Access(0o646, 1, 1).within(access.Access(0o751, 1, 1)).mode == 0o646


def test_umask_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise FileNotFoundError

    os.umask(0o037)
    assert access._umask() == 0o037
    monkeypatch.setattr("builtins.open", refuse)
    assert access._umask() == 0o037
    assert os.umask(0o022) == 0o037
