"""Journals that came with a checkpoint: nobody is obeyed who did not sign here."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.builder import Spec, mm_projector, write_adapter, write_checkpoint
from tests.conftest import Cli, assert_one_error
from tests.in_place import files_of, stopped_in_the_middle
from vita_ckpt import (
    DropFile,
    InputError,
    MalformedFileError,
    OutputError,
    Plan,
    PutFile,
    Record,
    UsageError,
    apply_in_place,
    history,
    inspect,
    open_checkpoint,
    plan_merge_projector,
    plan_set,
    recover,
    undo,
    validate,
)
from vita_ckpt.api.lifecycle import drop_foreign
from vita_ckpt.core.filenames import may_change_in_place
from vita_ckpt.core.journal import Journal, PatchedFile, ReplacedFile, SavedRange, decode
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.storage.system import state

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)
PAYLOAD = b"#!/bin/sh\ntouch /tmp/run-by-a-journal\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


def digest_of(data: bytes) -> FileDigest:
    return FileDigest(len(data), hashlib.sha256(data).hexdigest())


def plant(
    root: Path, place: str, replaced: tuple[ReplacedFile, ...], old: dict[int, bytes]
) -> Path:
    """Put a well-formed journal into a checkpoint, as a download may hold it."""
    journal = root / ".vita-ckpt" / place
    for folder in ("old", "new"):
        (journal / folder).mkdir(parents=True)
    (journal / "ranges").write_bytes(b"")
    for number, data in old.items():
        (journal / "old" / str(number)).write_bytes(data)
    (journal / "journal.json").write_bytes(Journal("set", "", (), replaced).encode())
    (journal / "owner-nobody").touch()
    return journal


def harmless(root: Path) -> tuple[ReplacedFile, ...]:
    """A replacement of a file that a surgery does change."""
    now = digest_of((root / "config.json").read_bytes())
    return (ReplacedFile("config.json", digest_of(PAYLOAD), now),)


@pytest.mark.parametrize("place", ["active", "undo-1"])
@pytest.mark.parametrize(
    "name",
    [
        ".git/hooks/post-checkout",
        ".git/config",
        ".gitattributes",
        ".github/workflows/ci.yml",
        ".vita-ckpt/active/journal.json",
        "hooks/run",
        "sub/config.json",
        "modeling_vita.py",
        "setup.py",
        "Makefile",
        "run.sh",
        "tool",
        "../config.json",
        "/etc/passwd",
        "",
    ],
)
def test_no_journal_touches_what_no_surgery_does(base: Path, place: str, name: str) -> None:
    """Whether or not it is asked for with force."""
    (base / ".git" / "hooks").mkdir(parents=True)
    (base / ".git" / "config").write_text("[core]\n")
    now = None if name in ("", "../config.json", "/etc/passwd") else digest_of(b"")
    plant(base, place, (ReplacedFile(name, digest_of(PAYLOAD), now),), {0: PAYLOAD})
    before = files_of(base)
    for force in (False, True):
        for attempt in (recover, undo) if place == "active" else (undo,):
            with pytest.raises(MalformedFileError, match="path-outside-checkpoint"):
                attempt(base, force=force)
    assert files_of(base) == before


def test_the_names_that_a_surgery_changes() -> None:
    for name in ("config.json", "README.md", "vita_ckpt.json", "model-00001-of-00003.safetensors"):
        assert may_change_in_place(name), name
    for name in (
        "a/model.safetensors",
        ".config.json",
        ".safetensors",
        "x.py",
        "a\0.bin",
        "\ud800.bin",
    ):
        assert not may_change_in_place(name), name


@pytest.mark.parametrize("place", ["active", "undo-1"])
def test_a_stranger_is_not_obeyed_unasked(cli: Cli, base: Path, place: str) -> None:
    plant(base, place, harmless(base), {0: PAYLOAD})
    before = files_of(base)
    assert_one_error(cli("undo", base), 3, "foreign-journal", "would write config.json")
    command: tuple[object, ...]
    if place == "active":
        for command in (
            ("recover", base),
            ("set", base, "image_aspect_ratio=pad", "--in-place"),
        ):
            assert_one_error(cli(*command), 3, "foreign-journal", "would write config.json")
        for command in (
            ("inspect", base),
            ("set", base, "use_s2=true", "--out", base.parent / "o"),
        ):
            result = cli(*command)
            assert_one_error(result, 3, "mid-surgery", "foreign", "would write config.json")
            assert "clean --foreign-journal" in result.err
        assert "mid-surgery" in {finding.rule for finding in validate(base).findings}
    else:
        undoable = history(base).undoable
        assert undoable is not None and undoable.foreign
        assert "not signed by you" in cli("history", base).out
    assert files_of(base) == before
    assert "would remove" in cli("clean", base, "--foreign-journal", "--dry-run").out
    assert (base / ".vita-ckpt" / place).exists()
    assert "removed" in cli("clean", base, "--foreign-journal").out
    assert not (base / ".vita-ckpt").exists()
    assert files_of(base) == before
    assert cli("clean", base, "--foreign-journal").out == ""
    assert inspect(base)


def test_with_force_it_writes_what_a_surgery_could_have_written(base: Path) -> None:
    plant(base, "active", harmless(base), {0: PAYLOAD})
    assert recover(base, force=True) is not None
    assert (base / "config.json").read_bytes() == PAYLOAD


def test_one_that_names_an_owner_of_this_machine_is_foreign_all_the_same(base: Path) -> None:
    journal = plant(base, "active", harmless(base), {0: PAYLOAD})
    program = "from vita_ckpt.storage.system.owner import current; print(current().tag)"
    dead = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.strip()
    (journal / "owner-nobody").rename(journal / f"owner-{dead}")
    with pytest.raises(InputError, match="foreign-journal"):
        recover(base)


def test_a_file_that_is_not_what_was_written_is_not_deleted(base: Path) -> None:
    """A journal may say that any file of the checkpoint was added by a surgery."""
    names = ("config.json", "model-00001-of-00003.safetensors")
    plant(base, "active", tuple(ReplacedFile(n, None, FileDigest(1, "")) for n in names), {})
    before = files_of(base)
    found = recover(base, force=True)
    assert found is not None
    assert found.kept == names
    assert files_of(base) == before


def own_undo(base: Path) -> Path:
    apply_in_place(plan_set(base, {"image_aspect_ratio": "pad"}))
    return base / ".vita-ckpt" / "undo-1"


def moved_away(base: Path) -> Path:
    copy = base.parent / "copy"
    shutil.copytree(base, copy, symlinks=True)
    return copy


def without_key(base: Path) -> Path:
    (Path(state.state_directory()) / "journal-key").unlink()
    return base


def of_an_earlier_version(base: Path) -> Path:
    path = base / ".vita-ckpt" / "undo-1" / "journal.json"
    journal = decode(path.read_bytes())
    path.write_bytes(Journal(*(getattr(journal, n) for n in FIRST)).encode())
    return base


FIRST = ("operation", "time", "patched", "replaced")


@pytest.mark.parametrize("change", [moved_away, without_key, of_an_earlier_version])
def test_what_cannot_be_known_to_be_ones_own_is_foreign(
    base: Path, change: Callable[[Path], Path]
) -> None:
    before = files_of(base)
    own_undo(base)
    root = change(base)
    with pytest.raises(InputError, match="foreign-journal"):
        undo(root)
    undo(root, force=True)
    assert files_of(root) == before


def test_a_directory_that_was_renamed_is_still_ones_own(base: Path) -> None:
    before = files_of(base)
    own_undo(base)
    undo(base.rename(base.parent / "renamed"))
    assert files_of(base.parent / "renamed") == before


def test_a_copy_in_the_middle_of_a_surgery_is_recovered_with_force(base: Path) -> None:
    before = files_of(base)
    own_undo(base).rename(base / ".vita-ckpt" / "active")
    copy = moved_away(base)
    with pytest.raises(InputError, match=r"mid-surgery.*foreign"):
        inspect(copy)
    with pytest.raises(InputError, match="foreign-journal"):
        recover(copy)
    assert recover(copy, force=True) is not None
    assert files_of(copy) == before
    assert recover(base) is not None
    assert files_of(base) == before


def test_every_part_of_a_journal_is_signed(base: Path) -> None:
    path = own_undo(base) / "journal.json"
    journal = decode(path.read_bytes())
    key = state.known_key()
    assert key is not None
    assert journal.is_signed(key, base.stat().st_ino)
    assert not journal.is_signed(key, base.stat().st_ino + 1)
    assert not journal.is_signed(b"k" * 32, base.stat().st_ino)
    for change in (
        {"operation": "x"},
        {"time": "x"},
        {"directory": 1},
        {"replaced": ()},
        {"patched": (PatchedFile("a.safetensors", 1, (SavedRange(0, 1, 0, "", ""),)),)},
        {"signature": ""},
        {"signature": "é"},
    ):
        other = Journal(
            **{n: getattr(journal, n) for n in (*FIRST, "directory", "signature")} | change
        )
        assert not other.is_signed(key, other.directory)
        path.write_bytes(other.encode())
        with pytest.raises(InputError, match=r"foreign-journal|damaged-journal"):
            undo(base)


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_an_odd_directory_of_journals(cli: Cli, base: Path, tmp_path: Path, kind: str) -> None:
    home = base / ".vita-ckpt"
    outside = tmp_path / "outside"
    plant(outside, "active", harmless(base), {0: PAYLOAD})
    if kind == "link":
        home.symlink_to(outside / ".vita-ckpt")
    elif kind == "file":
        home.write_text("x")
    else:
        os.mkfifo(home)
    before, beyond = files_of(base), sorted(outside.rglob("*"))
    assert recover(base) is None
    assert_one_error(cli("undo", base), 3, "nothing-to-undo")
    result = cli("set", base, "image_aspect_ratio=pad", "--in-place")
    assert_one_error(result, 3, "not-a-directory", "clean --foreign-journal")
    assert files_of(base) == before
    assert cli("clean", base, "--foreign-journal").code == 0
    assert not os.path.lexists(home)
    assert sorted(outside.rglob("*")) == beyond
    assert cli("set", base, "image_aspect_ratio=pad", "--in-place").code == 0


@pytest.mark.parametrize("member", [".", "journal.json", "ranges", "old", "new"])
def test_members_that_are_links(cli: Cli, base: Path, tmp_path: Path, member: str) -> None:
    journal = plant(base, "active", harmless(base), {0: PAYLOAD})
    path = journal if member == "." else journal / member
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    before = files_of(base)
    assert_one_error(cli("recover", base, "--force"), 3, "link")
    assert files_of(base) == before
    assert cli("clean", base, "--foreign-journal").code == 0
    assert (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_saved_files_that_are_none(cli: Cli, base: Path, kind: str) -> None:
    journal = plant(base, "active", harmless(base), {})
    saved = journal / "old" / "0"
    if kind == "pipe":
        os.mkfifo(saved)
    else:
        saved.mkdir()
    before = files_of(base)
    assert_one_error(cli("recover", base, "--force"), 3, "damaged-journal", "no file")
    assert files_of(base) == before


def test_nothing_is_written_through_a_hard_link(base: Path, tmp_path: Path) -> None:
    """A patched file that is another name for one outside gets a copy."""
    shard = base / "model-00001-of-00003.safetensors"
    journal = plant(base, "active", (), {})
    (journal / "ranges").write_bytes(b"evil")
    digest = hashlib.sha256(b"evil").hexdigest()
    patched = (PatchedFile(shard.name, shard.stat().st_size, (SavedRange(0, 4, 0, digest, ""),)),)
    (journal / "journal.json").write_bytes(Journal("x", "", patched, ()).encode())
    os.link(shard, tmp_path / "outside")
    content = shard.read_bytes()
    recover(base, force=True)
    assert (tmp_path / "outside").read_bytes() == content
    assert shard.read_bytes()[:4] == b"evil"


@pytest.mark.parametrize("name", ["modeling_vita.py", "sub/config.json", ".gitattributes"])
def test_a_plan_that_changes_other_files_is_not_run_in_place(base: Path, name: str) -> None:
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).write_text("x")
    before = files_of(base)
    for edit in (DropFile(name, ""), PutFile(name, "y", "")):
        plan = Plan("set", open_checkpoint(base), (edit,), record=Record())
        with pytest.raises(UsageError, match="not-in-place"):
            apply_in_place(plan)
    assert files_of(base) == before


def test_the_key_is_private_and_outside(base: Path) -> None:
    own_undo(base)
    folder = Path(state.state_directory())
    key = folder / "journal-key"
    assert (folder.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o700, 0o600)
    assert key.stat().st_size == 32
    assert os.listdir(folder) == ["journal-key"]
    assert key.read_bytes() not in b"".join(
        path.read_bytes() for path in base.rglob("*") if path.is_file()
    )


def make_key(home: str, queue: multiprocessing.Queue[bytes]) -> None:
    os.environ["XDG_STATE_HOME"] = home
    queue.put(state.signing_key())


def test_processes_that_make_the_key_at_once_have_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    home = tmp_path / "not" / "yet"
    processes = [context.Process(target=make_key, args=(str(home), queue)) for _ in range(8)]
    for process in processes:
        process.start()
    keys = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(keys) == 1
    assert os.listdir(home / "vita-ckpt") == ["journal-key"]


@pytest.mark.parametrize("kind", ["file", "open", "short", "link"])
def test_without_a_place_for_the_key_nothing_is_begun(
    cli: Cli, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    if kind == "file":
        home.write_text("")
    else:
        (home / "vita-ckpt").mkdir(parents=True)
        key = home / "vita-ckpt" / "journal-key"
        key.write_bytes(b"x" * (5 if kind == "short" else 32))
        key.chmod(0o644 if kind == "open" else 0o600)
        if kind == "link":
            key.rename(tmp_path / "elsewhere")
            key.symlink_to(tmp_path / "elsewhere")
    before = files_of(base)
    result = cli("set", base, "image_aspect_ratio=pad", "--in-place")
    assert_one_error(result, 3, "no-state-directory", "XDG_STATE_HOME", "--out")
    assert files_of(base) == before
    assert not (base / ".vita-ckpt").exists()
    with pytest.raises(OutputError):
        state.signing_key()
    assert state.known_key() is None


def test_a_relative_state_home_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XDG specification says so; it could lie in the checkpoint."""
    monkeypatch.setenv("XDG_STATE_HOME", "base")
    monkeypatch.setenv("HOME", "/nowhere")
    assert state.state_directory() == "/nowhere/.local/state/vita-ckpt"


def test_undo_of_a_foreign_surgery_under_way_is_not_forced(base: Path) -> None:
    """Another user's surgery is foreign too: while its process lives nobody touches it."""
    adapter = write_adapter(base.parent / "adapter.safetensors", MLP, dtype="BF16", seed=9)
    with stopped_in_the_middle(base, adapter) as process:
        without_key(base)
        for force in (False, True):
            with pytest.raises(InputError, match="surgery-under-way"):
                recover(base, force=force)
        with pytest.raises(InputError, match="surgery-under-way"):
            drop_foreign(base)
        process.send_signal(signal.SIGKILL)
    with pytest.raises(InputError, match="foreign-journal"):
        recover(base)
    assert recover(base, force=True) is not None
    assert plan_merge_projector(base, adapter)
