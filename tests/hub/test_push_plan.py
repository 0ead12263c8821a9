"""Surgery on the hub: what a plan leaves as it is is copied there, and never comes here."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationCopy

from fixtures.builder import Spec, write_checkpoint
from fixtures.hub_server import TOKEN, Blob, Fault
from tests.conftest import GOLDEN, Result, assert_one_error
from tests.hub.conftest import Machine, heads_of

A7 = GOLDEN / "A7"
BASE, ADAPTER = A7 / "base", A7 / "mm_projector_fp32"
MERGE = ("merge-projector", "--base", "hf://org/vita", "--adapter", ADAPTER)
CHANGED = "model-00004-of-00004.safetensors"  # the one that holds the projector
# Older ones copy within one repository only, where nothing is duplicated.
BETWEEN = "src_repo_id" in {field.name for field in fields(CommitOperationCopy)}
TARGET = "org/new" if BETWEEN else "org/vita"
COPYING = "/lfs-files/duplicate$" if BETWEEN else "/paths-info/"


def run(machine: Machine, *arguments: object, **environment: str) -> Result:
    """Run a command with a token, its temporary files where they can be seen."""
    temporary = machine.root / "tmp"
    temporary.mkdir(exist_ok=True)
    return machine.run(*arguments, HF_TOKEN=TOKEN, TMPDIR=str(temporary), **environment)


def blobs_of(machine: Machine, name: str, revision: str = "main") -> dict[str, Blob]:
    repo = machine.hub.repos[name]
    return repo.commits[repo.refs[revision]]


def files_of(machine: Machine, name: str, revision: str = "main") -> dict[str, bytes]:
    blobs = blobs_of(machine, name, revision)
    return {path: b"".join(blob.read(0, blob.size)) for path, blob in blobs.items()}


def without_times(files: dict[str, bytes]) -> dict[str, bytes]:
    """Every file but the lineage and the card, which say when, and from where."""
    own = ("vita_ckpt.json", "README.md", ".gitattributes")
    return {name: content for name, content in files.items() if name not in own}


def assert_nothing_left(machine: Machine) -> None:
    assert list((machine.root / "tmp").iterdir()) == []
    assert list(machine.work.iterdir()) == []


@pytest.mark.parametrize("target", sorted({TARGET, "org/vita"}))
def test_only_what_changes_moves(machine: Machine, target: str) -> None:
    """Into another repository, and into that of the base itself."""
    commit = machine.hub.add("org/vita", BASE)
    done = run(machine, *MERGE, "--push", target)
    assert done.code == 0, done.err
    seen = list(machine.hub.seen)
    kept = sorted(p.name for p in BASE.glob("*.safetensors") if p.name != CHANGED)
    files = files_of(machine, target)
    count = len(files.keys() - {".gitattributes"})
    assert f"pushed {count} files, 3 of them copied on the hub: {machine.hub.url}/" in done.out
    assert run(machine, *MERGE, "--out", "near").code == 0
    near = {p.name: p.read_bytes() for p in (machine.work / "near").iterdir()}
    assert without_times(files) == without_times(near)
    # What is kept came down to its header, and never went up.
    assert machine.hub.uploads.keys() == {blobs_of(machine, target)[CHANGED].etag}
    moved = sum(s.sent for s in seen if s.large and any(name in s.path for name in kept))
    assert moved == heads_of(BASE) - (1 << 16)
    told = json.loads(files["vita_ckpt.json"])["operations"]
    assert told[-1]["inputs"]["base"]["name"] == f"hf://org/vita@{commit}"
    assert "merge-projector" in files["README.md"].decode()
    commits = machine.hub.repos[target].commits
    assert len(commits) == 2  # one, and what was there before
    shutil.rmtree(machine.work / "near")
    assert_nothing_left(machine)


def test_a_surgery_that_changes_no_weights_moves_none(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    done = run(
        machine, "set", "hf://org/vita", "image_aspect_ratio=pad", "--push", TARGET, "--json"
    )
    assert done.code == 0, done.err
    assert machine.large_bytes == heads_of(BASE)
    assert machine.hub.uploads == {}
    pushed = json.loads(done.out)["pushed"]
    assert pushed["copied"] == sorted(p.name for p in BASE.glob("*.safetensors"))
    assert pushed["url"].startswith(f"{machine.hub.url}/{TARGET}/commit/")
    assert json.loads(files_of(machine, TARGET)["config.json"])["image_aspect_ratio"] == "pad"
    assert machine.run("diff", TARGET, BASE, "--fetch", "--exit-code").code == 1
    assert_nothing_left(machine)


def test_a_base_of_torch_in_a_folder(machine: Machine, tmp_path: Path) -> None:
    """Its files go by other names there, and are read by their directories and pickles."""
    near = write_checkpoint(tmp_path / "near", Spec(), shards=2)
    root = tmp_path / "b" / "base"
    root.parent.mkdir()
    assert run(machine, "convert", near, "--format", "torch", "--out", root).code == 0
    machine.hub.add("org/vita", root, below="runs/one/")
    done = run(machine, "set", "hf://org/vita/runs/one", "image_aspect_ratio=pad", "--push", TARGET)
    assert done.code == 0, done.err
    files = files_of(machine, TARGET)
    for path in root.glob("*.bin"):
        assert files[path.name] == path.read_bytes()
    assert machine.hub.uploads == {}


def test_saved_plans_branches_and_pull_requests(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    assert run(machine, *MERGE, "--plan-out", "plan.json").code == 0
    done = run(machine, "apply", "plan.json", "--push", "org/new@next/one", "--private")
    assert done.code == 0, done.err
    assert machine.hub.repos["org/new"].private
    assert CHANGED in files_of(machine, "org/new", "next/one")
    assert CHANGED not in files_of(machine, "org/new")
    done = run(machine, "apply", "plan.json", "--push", "org/new", "--create-pr")
    assert done.code == 0, done.err
    assert f"{machine.hub.url}/org/new/discussions/1" in done.out
    assert without_times(files_of(machine, "org/new", "refs/pr/1")) == without_times(
        files_of(machine, "org/new", "next/one")
    )


def test_weights_of_before_go_and_what_is_copied_stays(machine: Machine, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("pytorch_model.bin", "notes.txt", CHANGED.replace("00004.", "00009.")):
        (old / name).write_bytes(b"old")
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/new", old)
    done = run(machine, *MERGE, "--push", "org/new")
    assert done.code == 0, done.err
    there = files_of(machine, "org/new")
    assert there.keys() >= {p.name for p in BASE.iterdir()} | {"notes.txt"}
    assert not there.keys() & ({p.name for p in old.iterdir()} - {"notes.txt"})
    assert done.err.count("removed from the repository: ") == 2


def test_digests_need_every_byte_once(machine: Machine) -> None:
    """What has a manifest keeps it, and is not read again for it."""
    machine.hub.add("org/vita", BASE)
    pad = ("image_aspect_ratio=pad", "--push", TARGET)
    done = run(machine, "set", "hf://org/vita", *pad, "--digest")
    assert done.code == 0, done.err
    assert machine.hub.uploads == {}
    assert machine.large_bytes > sum(p.stat().st_size for p in BASE.glob("*.safetensors"))
    deep = ("validate", f"hf://{TARGET}", "--deep", "--select", "*digest*")
    assert run(machine, *deep).code == 0
    shutil.rmtree(machine.home)
    done = run(machine, *MERGE[:2], f"hf://{TARGET}", *MERGE[3:], "--push", f"{TARGET}@next")
    assert done.code == 0, done.err
    size = (BASE / CHANGED).stat().st_size
    assert machine.large_bytes == heads_of(BASE) + size
    assert run(machine, deep[0], f"hf://{TARGET}@next", *deep[2:]).code == 0
    changed = blobs_of(machine, TARGET, "next")[CHANGED]
    assert changed.etag != blobs_of(machine, TARGET)[CHANGED].etag


def test_what_is_not_sound_is_not_pushed(machine: Machine, tmp_path: Path) -> None:
    """It is validated as a directory is, and named as what it was to become."""
    root = shutil.copytree(BASE, tmp_path / "b" / "base")
    (root / "tokenizer.json").write_text("{")
    machine.hub.add("org/vita", root)
    done = run(machine, *MERGE, "--push", "org/new")
    assert done.code == 1, done
    assert "tokenizer.json" in done.out
    assert "error: not-sound: nothing was uploaded (write it with --out" in done.err
    assert str(machine.root) not in done.out + done.err
    assert "org/new" not in machine.hub.repos
    assert_nothing_left(machine)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([*MERGE, "--push", "new"], "invalid-repository"),
        ([*MERGE, "--push", "org/new@"], "invalid-revision"),
        ([*MERGE, "--push", "org/new", "--out", "out"], "options-exclude-each-other"),
        ([*MERGE, "--push", "org/new", "--in-place"], "options-exclude-each-other"),
        ([*MERGE, "--push", "org/new", "--link", "copy"], "options-exclude-each-other"),
        ([*MERGE, "--push", "org/new", "--check"], "options-exclude-each-other"),
        ([*MERGE, "--private", "--out", "out"], "options-exclude-each-other"),
        (["set", BASE, "image_aspect_ratio=pad", "--push", "org/new"], "base-not-on-hub"),
    ],
)
def test_what_cannot_be_pushed(machine: Machine, arguments: list[object], code: str) -> None:
    machine.hub.add("org/vita", BASE)
    assert_one_error(run(machine, *arguments), 2, code)
    assert machine.hub.repos.keys() == {"org/vita"}
    assert_nothing_left(machine)


def test_a_dry_run_pushes_nothing(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    done = run(machine, *MERGE, "--push", "org/new", "--dry-run")
    assert done.code == 0, done.err
    assert machine.hub.repos.keys() == {"org/vita"}


# Where the hub does not copy.


@pytest.mark.parametrize("way", ["storage", "region", "endpoint"] if BETWEEN else ["version"])
def test_what_is_not_copied_is_downloaded_and_uploaded(machine: Machine, way: str) -> None:
    machine.hub.add("org/vita", BASE)
    if way == "storage":
        machine.hub.repos["org/vita"].in_xet = False
    elif way == "region":
        machine.hub.repos["org/vita"].region = "eu"
    elif way == "endpoint":
        machine.hub.faults.append(Fault(COPYING, "status", 404, 9))
    done = run(machine, *MERGE, "--push", "org/new")
    assert done.code == 0, done.err
    words = {
        "storage": "a storage that it does not",
        "region": "not in this region",
        "endpoint": "404",
        "version": "within one repository only",
    }
    said = [line for line in done.err.splitlines() if "not copied on the hub" in line]
    assert len(said) == 1
    assert said[0].startswith("org/new: 3 files are downloaded and uploaded, ")
    assert words[way] in said[0]
    assert "copied on the hub" not in done.out
    files = files_of(machine, "org/new")
    for path in BASE.glob("*.safetensors"):
        assert path.name == CHANGED or files[path.name] == path.read_bytes()
    assert len(machine.hub.uploads) == 4
    assert sum(seen.method == "PUT" for seen in machine.hub.seen) == 4
    assert len(machine.hub.repos["org/new"].commits) == 2
    assert_nothing_left(machine)


def test_what_passes_is_tried_again(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults += [
        Fault(COPYING, "status", 503, 2),
        Fault("paths-info", "status", 429, 1, {"Retry-After": "0"}),
        Fault("batch", "status", 502, 1),
    ]
    done = run(machine, *MERGE, "--push", TARGET)
    assert done.code == 0, done.err
    assert "3 of them copied on the hub" in done.out


def test_a_hub_that_fails_is_no_reason_to_move_everything(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault(COPYING, "status", 500, 99, {"Retry-After": "0"}))
    done = run(machine, *MERGE, "--push", TARGET)
    assert_one_error(done, 3, "hub-failed")
    assert len(machine.hub.repos[TARGET].commits) == 1
    assert len(machine.hub.uploads) == 1
    assert_nothing_left(machine)


# What goes wrong.


@pytest.mark.parametrize(
    "fault", [Fault("/commit/", "lost", 0, 9), Fault("/commit/", "status", 502, 9)]
)
def test_what_may_be_committed_is_not_committed_twice(machine: Machine, fault: Fault) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(replace(fault))
    done = run(machine, *MERGE, "--push", TARGET)
    code = "hub-unreachable" if fault.kind == "lost" else "hub-failed"
    assert_one_error(done, 3, code, "it may be committed all the same")
    assert machine.hub.faults[0].times == fault.times - 1
    machine.hub.faults.clear()
    assert run(machine, *MERGE, "--push", TARGET).code == 0
    assert_nothing_left(machine)


@pytest.mark.parametrize("status", [409, 412])
def test_a_branch_that_moved_meanwhile(machine: Machine, status: int) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("/commit/", "status", status, 9))
    done = run(machine, *MERGE, "--push", TARGET)
    assert_one_error(done, 3, "branch-moved", "somebody else pushed")
    assert_nothing_left(machine)


def test_an_interrupted_upload_goes_on_where_it_stopped(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("/commit/", "status", 400, 9))
    assert_one_error(run(machine, *MERGE, "--push", TARGET), 3, "hub-failed")
    assert len(machine.hub.uploads) == 1
    machine.hub.faults.clear()
    done = run(machine, *MERGE, "--push", TARGET)
    assert done.code == 0, done.err
    assert not any(seen.method == "PUT" for seen in machine.hub.seen)


def test_a_copy_of_something_else_is_said(machine: Machine, tmp_path: Path) -> None:
    """The base's commit is what it is; a hub that copies another one is not believed."""
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("/commit/", "other"))
    done = run(machine, *MERGE, "--push", TARGET)
    assert_one_error(done, 3, "hub-failed", "00001-of-00004", "digests of org/vita")


@pytest.mark.parametrize(
    ("number", "place"),
    [(signal.SIGTERM, "^/upload/"), (signal.SIGKILL, COPYING), (signal.SIGKILL, "/commit/")],
)
def test_it_ends_whatever_hangs(machine: Machine, place: str, number: int) -> None:
    machine.hub.add("org/vita", BASE)
    temporary = machine.root / "tmp"
    temporary.mkdir()
    fault = Fault(place, "stall", 30, times=9)
    machine.hub.faults.append(fault)
    process = machine.start(*MERGE, "--push", TARGET, HF_TOKEN=TOKEN, TMPDIR=str(temporary))
    while fault.times == 9 and process.poll() is None:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(number)
    ended = process.result(60)
    assert time.monotonic() - began < 8
    assert len(machine.hub.repos[TARGET].commits) == 1
    if number == signal.SIGTERM:
        assert ended.code == 130, ended
        assert list(temporary.iterdir()) == []
        return
    (left,) = temporary.iterdir()
    done = machine.run("clean", temporary)
    assert done.code == 0, done.err
    assert not left.exists()
    machine.hub.faults.clear()
    assert run(machine, *MERGE, "--push", TARGET).code == 0
    assert without_times(files_of(machine, TARGET)).keys() == {p.name for p in BASE.iterdir()}
