"""Pushing, with the real client, to a server that speaks what it speaks."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from fixtures.builder import Spec, snapshot, write_checkpoint
from fixtures.hub_server import TOKEN, Fault
from tests.conftest import GOLDEN, Result, assert_one_error
from tests.hub.conftest import Machine
from vita_ckpt.core.hub_card import hub_card

BASE = GOLDEN / "A7" / "base"


def push(machine: Machine, *arguments: object, **environment: str) -> Result:
    return machine.run("push", *arguments, **{"HF_TOKEN": TOKEN, **environment})


def files_of(machine: Machine, name: str, revision: str = "main") -> dict[str, bytes]:
    repo = machine.hub.repos[name]
    blobs = repo.commits[repo.refs[revision]]
    return {path: b"".join(blob.read(0, blob.size)) for path, blob in blobs.items()}


@pytest.fixture
def checkpoint(machine: Machine) -> Path:
    """A sound checkpoint, with what must not travel beside it."""
    root = shutil.copytree(BASE, machine.work / "mine")
    shutil.copytree(GOLDEN / "A7" / "tower-internvit", machine.work / "tower-internvit")
    for hidden in (".git/config", ".vita-ckpt/undo/0.json", ".vita-ckpt-0a.tmp/x.part", ".env"):
        (root / hidden).parent.mkdir(parents=True, exist_ok=True)
        (root / hidden).write_text("{}")
    (root / "training_args.bin").write_bytes(b"state")
    (root / "checkpoint-7").mkdir()
    (root / "checkpoint-7" / "config.json").write_text("{}")
    (root / "examples").mkdir()
    (root / "examples" / "one.txt").write_text("what it can do")
    (root / "examples" / ".secret").write_text("no")
    return root


def test_what_goes_up_and_what_does_not(machine: Machine, checkpoint: Path) -> None:
    before = snapshot(checkpoint)
    done = push(machine, "mine", "org/new")
    assert done.code == 0, done.err
    files = files_of(machine, "org/new")
    own = {p.name: p.read_bytes() for p in BASE.iterdir()}
    own["examples/one.txt"] = b"what it can do"
    card = files.pop("README.md").decode()
    del files[".gitattributes"]
    assert files == own
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# org/new" in card
    assert snapshot(checkpoint) == before
    assert len(machine.hub.repos["org/new"].commits) == 2
    assert f"pushed {len(own) + 1} files: {machine.hub.url}/org/new/commit/" in done.out
    for name in (".git", ".vita-ckpt", ".env", "checkpoint-7", "training_args.bin"):
        assert f"not uploaded: {name}: " in done.err
    assert "not uploaded: examples/.secret: hidden" in done.err
    assert not machine.hub.repos["org/new"].private


def test_what_was_pushed_is_the_checkpoint(machine: Machine, checkpoint: Path) -> None:
    pushed = push(machine, "mine", "org/new", "--json")
    assert pushed.code == 0
    told = json.loads(pushed.out)
    schema = resources.files("vita_ckpt.schemas").joinpath("push-v1.json")
    jsonschema.validate(told, json.loads(schema.read_text()))
    assert told["url"].startswith(f"{machine.hub.url}/org/new/commit/")
    done = machine.run("diff", "org/new", BASE, "--json")
    report = json.loads(done.out)
    assert (report["tensors"], report["config"], report["unread"]) == ([], [], [])


def test_a_manifest_knows_the_card_that_goes_up(machine: Machine, checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("# mine\n")
    pad = ("set", "mine", "image_aspect_ratio=pad", "--digest", "--out", "padded")
    assert machine.run(*pad).code == 0
    assert push(machine, "padded", "org/new").code == 0
    card = files_of(machine, "org/new")["README.md"].decode()
    assert "# mine\n" in card
    assert "image_aspect_ratio" in card
    done = machine.run("validate", "hf://org/new", "--deep", "--select", "*digest*")
    assert done.code == 0, done.out


def test_what_is_broken_stays_here(machine: Machine, checkpoint: Path) -> None:
    shard = checkpoint / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    done = push(machine, "mine", "org/new")
    assert done.code == 1
    assert "truncated-file" in done.out
    assert "error: not-sound: nothing was uploaded" in done.err
    assert machine.hub.seen == []
    refused = push(machine, "mine", "org/new", "--json")
    assert (refused.code, json.loads(refused.out)["url"]) == (1, None)
    assert "error: not-sound: nothing was uploaded" in refused.err
    done = push(machine, "mine", "org/new", "--force")
    assert done.code == 0, done.err
    assert files_of(machine, "org/new")[shard.name] == shard.read_bytes()


def test_branches_pull_requests_and_private_ones(machine: Machine, checkpoint: Path) -> None:
    done = push(machine, "mine", "org/new", "--private")
    assert done.code == 0, done.err
    assert machine.hub.repos["org/new"].private
    (checkpoint / "generation_config.json").write_text('{"do_sample": true}')
    done = push(machine, "mine", "org/new", "--create-pr", "--message", "Better")
    assert f"{machine.hub.url}/org/new/discussions/1" in done.out
    done = push(machine, "mine", "org/new", "--revision", "next")
    assert done.code == 0, done.err
    for revision in ("refs/pr/1", "next"):
        files = files_of(machine, "org/new", revision)
        assert files["generation_config.json"] == b'{"do_sample": true}'
    old = files_of(machine, "org/new")["generation_config.json"]
    assert old == (BASE / "generation_config.json").read_bytes()
    machine.hub.repos["org/new"].private = False
    done = push(machine, "mine", "org/new", "--private")
    assert_one_error(done, 2, "repository-is-public", "leave --private out")


@pytest.mark.parametrize(("earlier", "later"), [(1, 3), (2, 3), (3, 1)])
def test_the_weights_of_an_earlier_push_go(machine: Machine, earlier: int, later: int) -> None:
    spec = Spec(hidden=64, mlp=128, heads=2)
    for shards in (earlier, later):
        shutil.rmtree(machine.work / "mine", ignore_errors=True)
        write_checkpoint(machine.work / "mine", spec, shards=shards)
        if shards == earlier:
            (machine.work / "mine" / "sub").mkdir()
            (machine.work / "mine" / "sub" / "kept.bin").write_bytes(b"kept")
            before = {p.name for p in (machine.work / "mine").iterdir()}
        done = push(machine, "mine", "org/new", "--force")
        assert done.code == 0, done.err
    own = {p.name for p in (machine.work / "mine").iterdir()}
    there = files_of(machine, "org/new").keys()
    assert there - {".gitattributes", "README.md"} == own | {"sub/kept.bin"}
    gone = {name for name in before - own if name != "sub"}
    assert gone
    for name in gone:
        assert f"removed from the repository: {name}" in done.err
    assert done.err.count("removed from") == len(gone)
    assert len(machine.hub.repos["org/new"].commits) == 3


def test_weights_of_other_kinds_go_too(machine: Machine, checkpoint: Path) -> None:
    old = machine.work / "old"
    old.mkdir()
    kept = ("training_args.bin", "notes.txt")
    gone = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.gguf")
    for name in (*kept, *gone):
        (old / name).write_bytes(b"old")
    machine.hub.add("org/new", old)
    done = push(machine, "mine", "org/new")
    assert done.code == 0, done.err
    there = files_of(machine, "org/new")
    assert not there.keys() & set(gone)
    assert there.keys() >= set(kept)
    assert done.err.count("removed from the repository: ") == len(gone)


def test_an_interrupted_upload_goes_on_where_it_stopped(machine: Machine) -> None:
    write_checkpoint(machine.work / "mine", Spec(hidden=256, mlp=512, heads=8), shards=3)
    machine.hub.faults.append(Fault("^/upload/", "status", 400, 9, skip=1))
    done = push(machine, "mine", "org/new", "--force")
    assert_one_error(done, 3, "hub-failed")
    assert len(machine.hub.uploads) == 1
    assert len(machine.hub.repos["org/new"].commits) == 1
    machine.hub.faults.clear()
    done = push(machine, "mine", "org/new", "--force")
    assert done.code == 0, done.err
    puts = [seen for seen in machine.hub.seen if seen.method == "PUT"]
    large = list((machine.work / "mine").glob("*.safetensors"))
    assert len(puts) == len(large) - 1 == len(machine.hub.uploads) - 1
    assert len(machine.hub.repos["org/new"].commits) == 2


def test_what_changes_meanwhile_is_not_committed(machine: Machine, checkpoint: Path) -> None:
    shard = checkpoint / "model-00002-of-00004.safetensors"
    machine.hub.faults.append(Fault("/tree/", "stall", 1))

    def change() -> None:
        while not any(seen.path.endswith("/repos/create") for seen in machine.hub.seen):
            time.sleep(0.01)
        shard.write_bytes(shard.read_bytes()[:-8])

    changing = threading.Thread(target=change)
    changing.start()
    done = push(machine, "mine", "org/new")
    changing.join()
    assert_one_error(done, 3, "input-changed", shard.name)
    assert len(machine.hub.repos["org/new"].commits) == 1


def test_the_middle_of_a_surgery_is_not_pushed(machine: Machine, checkpoint: Path) -> None:
    (checkpoint / ".vita-ckpt" / "active").mkdir()
    assert push(machine, "mine", "org/new").code == 1
    assert_one_error(push(machine, "mine", "org/new", "--force"), 3, "mid-surgery")
    assert machine.hub.seen == []


def test_nothing_that_is_no_part_of_it_goes_up(machine: Machine, checkpoint: Path) -> None:
    """Neither what could not be read, nor what came halfway, nor what a link leads out to."""
    (machine.work / "secret").write_text("secret")
    (checkpoint / "notes.txt").symlink_to("../secret")
    (checkpoint / "examples" / "notes.txt").symlink_to("../../secret")
    (checkpoint / "env.txt").symlink_to(".env")
    (checkpoint / "README.md").symlink_to("../secret")
    (checkpoint / "two.txt").symlink_to("examples/one.txt")
    (checkpoint / "old.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    (checkpoint / "old.safetensors").write_bytes(b"none")
    (checkpoint / "model.safetensors.incomplete").write_bytes(b"half")
    (checkpoint / "examples" / "two.txt.part").write_bytes(b"half")
    os.close(os.open(os.fsencode(checkpoint) + b"/\xff.txt", os.O_CREAT | os.O_WRONLY))
    shard = checkpoint / "model-00002-of-00004.safetensors"
    shard.rename(machine.work / "elsewhere.safetensors")
    shard.symlink_to("../elsewhere.safetensors")
    done = push(machine, "mine", "org/new", "--force")
    assert done.code == 0, done.err
    there = files_of(machine, "org/new")
    own = {p.name for p in BASE.iterdir()} | {"examples/one.txt", "two.txt"}
    assert there.keys() == own | {"README.md", ".gitattributes"}
    assert there["two.txt"] == b"what it can do"
    assert not any(b"secret" in content for content in there.values())
    for name in ("notes.txt", "examples/notes.txt", "env.txt", "README.md"):
        assert f"not uploaded: {name}: a link out of the directory" in done.err
    partial = ("model.safetensors.incomplete", "examples/two.txt.part")
    for name in ("old.bin", "old.safetensors", *partial, r"\udcff.txt"):
        assert f"not uploaded: {name}: " in done.err


def test_what_lies_in_the_cache_can_be_pushed(machine: Machine) -> None:
    home = machine.work / "models--org--old"
    (home / "blobs").mkdir(parents=True)
    snapshot_folder = home / "snapshots" / ("0" * 40)
    snapshot_folder.mkdir(parents=True)
    for path in BASE.iterdir():
        shutil.copy(path, home / "blobs" / f"of-{path.name}")
        (snapshot_folder / path.name).symlink_to(f"../../blobs/of-{path.name}")
    done = push(machine, snapshot_folder, "org/new", "--force")
    assert done.code == 0, done.err
    assert files_of(machine, "org/new").keys() >= {p.name for p in BASE.iterdir()}


def test_weights_that_would_be_left_out(machine: Machine) -> None:
    step = machine.work / "run" / "checkpoint-7"
    step.mkdir(parents=True)
    for path in (GOLDEN / "A7" / "base").glob("*00001*"):
        shutil.copy(path, step / "mm_projector.safetensors")
    done = push(machine, "run", "org/new", "--force")
    assert_one_error(done, 2, "weights-left-out", "checkpoint-7")
    assert machine.hub.seen == []


def test_only_what_may_pass_is_tried_again(machine: Machine, checkpoint: Path) -> None:
    machine.hub.faults.append(Fault("/commit/", "status", 400, 9))
    assert_one_error(push(machine, "mine", "org/new"), 3, "hub-failed")
    assert sum("/commit/" in seen.path for seen in machine.hub.seen) == 1


@pytest.mark.parametrize(
    "fault", [Fault("/commit/", "lost", 0, 9), Fault("/commit/", "status", 502, 9)]
)
def test_what_may_be_committed_is_not_committed_twice(
    machine: Machine, checkpoint: Path, fault: Fault
) -> None:
    old = machine.work / "old"
    old.mkdir()
    (old / "pytorch_model.bin").write_bytes(b"old")
    machine.hub.add("org/new", old)
    machine.hub.faults.append(replace(fault))
    done = push(machine, "mine", "org/new")
    code = "hub-unreachable" if fault.kind == "lost" else "hub-failed"
    assert_one_error(done, 3, code, "it may be committed all the same")
    assert machine.hub.faults[0].times == fault.times - 1
    machine.hub.faults.clear()
    assert push(machine, "mine", "org/new").code == 0
    assert "pytorch_model.bin" not in files_of(machine, "org/new")


def test_what_the_repository_ignores_is_missed(machine: Machine, checkpoint: Path) -> None:
    old = machine.work / "old"
    old.mkdir()
    (old / ".gitignore").write_text("*.txt\n*-00002-*\n")
    machine.hub.add("org/new", old)
    done = push(machine, "mine", "org/new")
    assert_one_error(done, 3, "hub-failed", "model-00002-of-00004.safetensors", ".gitignore")
    (old / ".gitignore").write_text("*.log\n")
    machine.hub.add("org/new", old)
    assert push(machine, "mine", "org/new").code == 0


def test_answers_that_make_no_sense(machine: Machine, checkpoint: Path) -> None:
    for path in ("repos/create", "preupload", "batch"):
        machine.hub.faults[:] = [Fault(path, "status", 200, 9)]
        assert_one_error(push(machine, "mine", "org/new"), 3, "hub-failed", "huggingface_hub")


def test_more_for_a_pull_request(machine: Machine, checkpoint: Path) -> None:
    assert push(machine, "mine", "org/new", "--create-pr").code == 0
    (checkpoint / "notes.txt").write_text("more")
    done = push(machine, "mine", "org/new", "--revision", "refs/pr/1")
    assert done.code == 0, done.err
    assert files_of(machine, "org/new", "refs/pr/1")["notes.txt"] == b"more"
    done = push(machine, "mine", "org/new", "--revision", "refs/pr/2")
    assert_one_error(done, 3, "revision-not-found")


@pytest.mark.parametrize("status", [409, 412])
def test_a_branch_that_moved_meanwhile(machine: Machine, checkpoint: Path, status: int) -> None:
    machine.hub.faults.append(Fault("/commit/", "status", status, 9))
    assert_one_error(push(machine, "mine", "org/new"), 3, "branch-moved", "somebody else pushed")


def test_branches_that_cannot_be(machine: Machine, checkpoint: Path) -> None:
    for name in ("", "..", "a//b", "\udcff"):
        done = push(machine, "mine", "org/new", "--revision", name)
        assert_one_error(done, 2, "invalid-revision", "--revision")
    assert machine.hub.seen == []
    assert push(machine, "mine", "org/new").code == 0
    done = push(machine, "mine", "org/new", "--create-pr", "--revision", "nothing")
    assert_one_error(done, 3, "revision-not-found")
    assert not any("/commit/" in seen.path for seen in machine.hub.seen)
    # Nothing is made for a pull request that cannot be.
    done = push(machine, "mine", "org/none", "--create-pr", "--revision", "nothing")
    assert_one_error(done, 3, "repository-not-found")
    assert "org/none" not in machine.hub.repos


def test_a_busy_hub_is_waited_for(machine: Machine, checkpoint: Path) -> None:
    machine.hub.faults += [
        Fault("preupload", "status", 429, 1, {"Retry-After": "0"}),
        Fault("batch", "status", 503, 1),
    ]
    assert push(machine, "mine", "org/new").code == 0


def test_as_long_as_the_hub_asks(machine: Machine, checkpoint: Path) -> None:
    machine.hub.faults.append(Fault("/commit/", "status", 429, 1, {"Retry-After": "2"}))
    began = time.monotonic()
    done = push(machine, "mine", "org/new")
    assert done.code == 0, done.err
    assert time.monotonic() - began > 2
    machine.hub.faults.append(Fault("/commit/", "status", 429, 1, {"Retry-After": "900"}))
    done = push(machine, "mine", "org/other")
    assert_one_error(done, 3, "rate-limited", "wait some minutes")


@pytest.mark.parametrize("size", [100, 3 << 20])
def test_what_is_committed_is_what_was_looked_at_last(
    machine: Machine, checkpoint: Path, size: int
) -> None:
    """What is no large file to the hub goes up as it was when it changes during the commit."""
    before = b"a" * size
    (checkpoint / "notes.txt").write_bytes(before)
    machine.hub.faults.append(Fault("/api/validate-yaml", "stall", 2))

    def change() -> None:
        while machine.hub.faults[0].times:
            time.sleep(0.01)
        (checkpoint / "notes.txt").write_bytes(b"b" * size)

    changing = threading.Thread(target=change)
    changing.start()
    done = push(machine, "mine", "org/new")
    changing.join()
    assert done.code == 0, done.err
    assert files_of(machine, "org/new")["notes.txt"] == before


def test_refusals_say_what_to_do(machine: Machine, checkpoint: Path) -> None:
    for arguments, environment, code, words in (
        (("mine", "org/new"), {"HF_TOKEN": ""}, 3, ("token-refused", "hf auth login")),
        (("mine", "org/new"), {"HF_TOKEN": "hf_wrong"}, 3, ("token-refused", "HF_TOKEN")),
        (("mine", "org/new"), {"HF_TOKEN": "hf_é"}, 3, ("token-refused", "other characters")),
        (("mine", "others/new"), {}, 3, ("hub-forbids", "rights")),
        (("mine", "org/new"), {"HF_HUB_OFFLINE": "1"}, 3, ("hub-offline", "HF_HUB_OFFLINE")),
        (("mine", "org"), {}, 2, ("invalid-repository", "org/name")),
        (("nothing", "org/new"), {}, 3, ("not-found",)),
        (("mine/config.json", "org/new"), {}, 2, ("not-a-directory",)),
        (("hf://org/other", "org/new"), {}, 2, ("path-on-hub", "on this machine")),
    ):
        done = push(machine, *arguments, **environment)
        assert_one_error(done, code, *words)
    assert machine.hub.repos == {}


def test_the_card_says_where_it_comes_from(machine: Machine) -> None:
    base_commit = machine.hub.add("org/vita", BASE)
    tower = shutil.copytree(GOLDEN / "A2" / "tower-siglip", machine.work / "tower-siglip")
    swap = ["swap-tower", "--base", "org/vita", "--tower", tower, "--projector", "reinit"]
    done = machine.run(*swap, "--out", "out", "--tower-path", "tower-siglip")
    assert done.code == 0, done.err
    readme = "---\nlicense: mit\n---\n\n# Mine\n"
    (machine.work / "out" / "README.md").write_text(readme)
    done = push(machine, "out", "org/new", "--force")
    assert done.code == 0, done.err
    card = files_of(machine, "org/new")["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: transformers\n")
    assert f"base_model:\n- org/vita # commit {base_commit}\n---\n\n# Mine\n" in card
    assert card.count("## Lineage") == 1
    assert f"hf://org/vita@{base_commit}" in card
    assert (machine.work / "out" / "README.md").read_text() == readme


def test_a_card_of_whatever_a_lineage_says() -> None:
    operations = [
        {"operation": "swap-tower", "inputs": {"base": {"name": "hf://org/vita@" + "0" * 40}}},
        {"operation": "merge-projector", "inputs": {"adapter": {"name": "hf://x\n- evil"}, "b": 5}},
        {"inputs": ["what"]},
        "what is this",
    ]
    card = hub_card("org/new", {"model_type": "vita-Qwen2`\n"}, operations)
    assert f"base_model:\n- org/vita # commit {'0' * 40}\n---" in card
    assert "model_type `vita-Qwen2'\\x0a`" in card
    assert "base_model" not in hub_card("org/new", {}, [])
