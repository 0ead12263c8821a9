"""Commands that only read, on the hub: what they say is what they say of a copy on the disk."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fixtures.builder import Spec, write_checkpoint
from fixtures.hub_server import TOKEN, Blob, Fault, HubServer, blob_of
from tests.conftest import GOLDEN, Cli, Result, assert_one_error
from tests.hub.conftest import Machine, header_of, heads_of
from vita_ckpt.core.address import Address
from vita_ckpt.core.checkpoint import RemoteFile
from vita_ckpt.errors import HubError, redacted
from vita_ckpt.storage.hub.repository import Repository
from vita_ckpt.storage.hub.session import Session
from vita_ckpt.storage.hub.store import HubStore
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.stores.base import Kind

BASE = GOLDEN / "A7" / "base"
RUN = GOLDEN / "A7" / "mm_projector_fp32"


def without_paths(report: str, *roots: str) -> Any:
    for root in roots:
        report = report.replace(root, "ROOT")
    return json.loads(report)


def test_inspect_moves_headers_only(machine: Machine, cli: Cli, tmp_path: Path) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    commit = machine.hub.add("org/vita", root)
    address = f"hf://org/vita@{commit}"
    far = machine.run("inspect", "hf://org/vita", "--json", "--tensors")
    assert far.code == 0, far.err
    assert machine.large_bytes == heads_of(root)
    small = sum((root / n).stat().st_size for n in ("config.json", "model.safetensors.index.json"))
    listing = next(seen.sent for seen in machine.hub.seen if "/api/" in seen.path)
    assert machine.hub.bytes_sent == machine.large_bytes + small + listing
    moved = f"{machine.hub.bytes_sent / 1000:.3g} kB moved from the hub"
    assert far.err.splitlines() == [moved]
    near = cli("inspect", root, "--json", "--tensors")
    assert without_paths(far.out, address) == without_paths(near.out, str(root))


@pytest.mark.parametrize("command", ["explain", "validate"])
def test_what_is_said_of_a_copy(
    machine: Machine, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A checkpoint with what loaders stumble over."""
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    shutil.copy(BASE / "model-00001-of-00004.safetensors", root / "stale.safetensors")
    (root / "training_args.bin").write_bytes(b"state")
    (root / "checkpoint-1").mkdir()
    (root / "checkpoint-1" / "config.json").write_text("{}")
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "mm_hidden_size": 5}))
    commit = machine.hub.add("org/vita", root)
    machine_readable = ["--json"] if command == "explain" else ["--format", "json"]
    far = machine.run(command, "org/vita", *machine_readable)
    monkeypatch.chdir(machine.work)
    near = cli(command, root, *machine_readable)
    assert far.code == near.code, far.err
    # Of two sets of weights the disk tells which is newer, and whether they differ.
    here = re.sub(r"; it is newer and [^\"]*", "", near.out)
    assert without_paths(far.out, f"hf://org/vita@{commit}") == without_paths(here, str(root))
    assert machine.large_bytes <= heads_of(root)


def test_pickles_are_looked_through_by_range(machine: Machine, tmp_path: Path) -> None:
    """A small one whole, of a large one a megabyte; and inspect does not look at all."""
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    (root / "vocab.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (root / "large.pkl").write_bytes(pickle.dumps([str(n) for n in range(300_000)]))
    machine.hub.add("org/vita", root)
    done = machine.run("validate", "org/vita", "--format", "json")
    found = {(f["rule"], f["subject"]) for f in json.loads(done.out)["reports"][0]["findings"]}
    assert {("pickle-runs-code", "vocab.pkl"), ("pickle-not-read", "large.pkl")} <= found
    assert machine.hub.bytes_sent < (2 << 20) < (root / "large.pkl").stat().st_size
    assert machine.run("inspect", "org/vita").code == 0
    assert not [seen for seen in machine.hub.seen if ".pkl" in seen.path]


def test_broken_shards_are_findings(machine: Machine, tmp_path: Path) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    shard = root / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    (root / "model-00003-of-00004.safetensors").unlink()
    machine.hub.add("org/vita", root)
    done = machine.run("validate", "org/vita")
    assert done.code == 1
    assert "truncated-file" in done.out
    assert "missing-shard" in done.out
    done = machine.run("inspect", "org/vita")
    assert done.code == 3
    assert "truncated-file: hf://org/vita@" in done.err


def test_the_word_is_said_before_a_bare_name_goes_online(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    done = machine.run("inspect", "org/vita")
    assert done.err.splitlines()[0] == "Looking on the hub for org/vita …"
    assert machine.run("--quiet", "inspect", "org/vita").err == ""
    assert machine.run("inspect", "hf://org/vita").err.count("\n") == 1


def test_a_path_that_exists_wins(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    (machine.work / "org").mkdir()
    shutil.copytree(RUN, machine.work / "org" / "vita")
    done = machine.run("inspect", "org/vita")
    assert "projector adapter" in done.out
    assert machine.hub.seen == []
    assert "VITA checkpoint" in machine.run("inspect", "hf://org/vita").out


@pytest.mark.parametrize(
    "path", ["./org/vita", "/no/vita", "a/b/c", "org/vita.safetensors", "work", "taken/vita"]
)
def test_a_mistyped_path_is_answered_without_going_online(machine: Machine, path: str) -> None:
    (machine.work / "taken").mkdir()
    done = machine.run("inspect", path)
    assert_one_error(done, 3, "not-found", path)
    assert machine.hub.seen == []


def test_revisions_and_folders(machine: Machine, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(RUN, both / "runs" / "one")
    shutil.copytree(BASE, both / "base")
    old = machine.hub.add("org/many", RUN)
    machine.hub.add("org/many", both)
    machine.hub.add("org/many", BASE, revision="feature/x")
    machine.hub.add("org/many", RUN, revision="refs/pr/3")
    for address, kind in {
        "hf://org/many/base": "VITA checkpoint",
        "hf://org/many/runs/one": "projector adapter",
        "hf://org/many/runs/one/mm_projector.bin": "projector adapter",
        "hf://org/many/base/model-00004-of-00004.safetensors": "in 1 safetensors file",
        f"hf://org/many@{old}": "projector adapter",
        "hf://org/many@feature%2Fx": "VITA checkpoint",
        "hf://org/many@refs/pr/3": "projector adapter",
    }.items():
        done = machine.run("inspect", address)
        assert kind in done.out, (address, done)
    for address, code in {
        "hf://org/many/nothing": "not-found",
        "hf://org/many@nothing": "revision-not-found",
        "hf://org/many@0123456789012345678901234567890123456789": "revision-not-found",
        "hf://org/many": "not-a-checkpoint",
        "hf://org/many/base/config.json": "not-a-weight-file",
        "hf://org": "invalid-hub-address",
    }.items():
        assert_one_error(machine.run("inspect", address), 2 if address == "hf://org" else 3, code)


def test_files_of_torch_are_read_by_range(machine: Machine, tmp_path: Path, cli: Cli) -> None:
    """A large .bin, of which only the directory, the pickle and the local headers are needed."""
    import torch

    tensors = {f"model.mm_projector.{n}.weight": torch.ones(200, 300) for n in (0, 2)}
    for name, options in {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(tensors, folder / "mm_projector.bin", **options)
        machine.hub.add(f"org/{name}", folder)
        far = machine.run("inspect", f"org/{name}", "--json")
        near = cli("inspect", folder, "--json")
        assert far.code == 0, far.err
        root = json.loads(far.out)["path"]
        assert without_paths(far.out, root) == without_paths(near.out, str(folder))
        assert machine.large_bytes < 40_000 < (folder / "mm_projector.bin").stat().st_size / 4


def test_the_token_goes_to_the_hub_alone(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE, private=True)
    done = machine.run("inspect", "org/vita", HF_TOKEN=TOKEN)
    assert done.code == 0, done.err
    tokens = {seen.large: seen.token for seen in machine.hub.seen}
    assert tokens == {False: f"Bearer {TOKEN}", True: ""}
    saved = machine.home / "token"
    saved.parent.mkdir(exist_ok=True)
    saved.write_text(TOKEN)
    assert machine.run("inspect", "org/vita").code == 0


def test_refusals_say_what_to_do(machine: Machine) -> None:
    machine.hub.add("org/private", BASE, private=True)
    machine.hub.add("org/gated", BASE, gated=True)
    for name, environment, words in (
        ("org/private", {}, ("repository-not-found", "private", "HF_TOKEN")),
        ("org/nothing", {"HF_TOKEN": TOKEN}, ("repository-not-found", "check the name")),
        ("org/private", {"HF_TOKEN": "hf_wrong"}, ("token-refused", "HF_TOKEN")),
        ("org/private", {"HF_TOKEN": "hf_copied…"}, ("token-refused", "other characters")),
        ("org/private", {"HF_TOKEN": "hf_ two"}, ("token-refused", "other characters")),
        ("org/gated", {}, ("repository-gated", "accept its conditions")),
    ):
        done = machine.run("inspect", f"hf://{name}", **environment)
        assert_one_error(done, 3, *words)
    bare = machine.run("inspect", "org/nothing")
    assert bare.err.splitlines()[0].startswith("Looking on the hub")
    assert "expected a path that exists, or a repository" in bare.err.splitlines()[1]
    assert "Traceback" not in bare.err


def test_no_network_and_rate_limits(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    done = machine.run("inspect", "hf://org/vita", HF_ENDPOINT="http://127.0.0.1:9")
    assert_one_error(done, 3, "hub-unreachable", "HF_ENDPOINT", "HF_HUB_OFFLINE=1")
    machine.hub.faults.append(Fault("/api/", "status", 429, 9, {"Retry-After": "300"}))
    done = machine.run("inspect", "hf://org/vita")
    assert_one_error(done, 3, "rate-limited", "wait")
    machine.hub.faults[:] = [Fault("/api/", "status", 500, 2), Fault("resolve", "status", 503, 2)]
    assert machine.run("inspect", "hf://org/vita").code == 0


def test_the_cache_is_read_first_and_offline_alone(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    offline = {"HF_HUB_OFFLINE": "1"}
    done = machine.run("inspect", "org/vita", **offline)
    assert_one_error_after_the_word(done.err, "hub-offline", "unset HF_HUB_OFFLINE")
    download = "from huggingface_hub import snapshot_download; snapshot_download('org/vita')"
    assert machine.run(program=download).code == 0
    online = machine.run("inspect", "org/vita", "--json")
    assert machine.large_bytes == 0
    assert len(machine.hub.seen) == 1
    done = machine.run("inspect", "org/vita", "--json", **offline)
    assert machine.hub.seen == []
    assert done.out == online.out
    # Without HF_HUB_OFFLINE a hub that cannot be reached is not passed over in silence.
    done = machine.run("inspect", "hf://org/vita", HF_ENDPOINT="http://127.0.0.1:9")
    assert_one_error(done, 3, "hub-unreachable", "HF_HUB_OFFLINE=1 reads the cache")
    cached = next((machine.home / "hub").rglob("model-00001-of-00004.safetensors"))
    cached.resolve().write_bytes(b"cut off")
    done = machine.run("inspect", "hf://org/vita")
    assert_one_error(done, 3, "cache-damaged", "remove it")


def assert_one_error_after_the_word(err: str, *words: str) -> None:
    lines = err.splitlines()
    assert lines[0].startswith("Looking on the hub")
    assert len(lines) == 2
    assert all(word in lines[1] for word in words), lines


def test_a_hostile_listing_is_refused(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    repo = machine.hub.repos["org/vita"]
    for name in ("../../escape.json", "/etc/passwd", "a/../b", "a\0b", "a/" * 50_000 + "a"):
        repo.commit({**repo.commits[repo.refs["main"]], name: blob_of(name, b"{}")}, "hostile")
        done = machine.run("inspect", "hf://org/vita@hostile")
        assert_one_error(done, 3, "path-outside-checkpoint", "nothing was read")


def test_unusual_names_are_names(machine: Machine) -> None:
    """What git allows is read, carried and downloaded; a terminal sees it escaped."""
    machine.hub.add("org/vita", BASE)
    repo = machine.hub.repos["org/vita"]
    odd = ["a\u3000b.txt", "c\u00a0d/e\u200bf.txt", "back\\slash", "new\nline", "\x1b[0m", "%2e?#"]
    files = {**repo.commits[repo.refs["main"]], **{n: blob_of(n, n.encode()) for n in odd}}
    repo.commit(files)
    done = machine.run("inspect", "hf://org/vita")
    assert done.code == 0, done.err
    merge = ["merge-projector", "--base", "hf://org/vita", "--adapter", RUN, "--out", "out"]
    done = machine.run(*merge)
    assert done.code == 0, done.err
    for name in odd:
        assert (machine.work / "out" / name).read_bytes() == name.encode()
    assert "\x1b" not in done.out + done.err


def test_what_was_uploaded_in_the_middle_of_a_surgery(machine: Machine, tmp_path: Path) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    (root / ".vita-ckpt" / "active").mkdir(parents=True)
    (root / ".vita-ckpt" / "active" / "journal.json").write_text("{}")
    machine.hub.add("org/vita", root)
    shard = "hf://org/vita/model-00001-of-00004.safetensors"
    for command in (
        ["inspect", "hf://org/vita"],
        ["inspect", shard],
        ["explain", "hf://org/vita"],
        ["merge-projector", "--base", "hf://org/vita", "--adapter", RUN, "--out", "out"],
    ):
        assert_one_error(machine.run(*command), 3, "mid-surgery", "push it again")
    done = machine.run("validate", "hf://org/vita")
    assert done.code == 1
    assert "mid-surgery" in done.out


def test_each_file_is_asked_for_five_times_and_no_more(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("00002-of-00004", "status", 503, 99, {"Retry-After": "0"}))
    assert_one_error(machine.run("inspect", "hf://org/vita"), 3, "hub-failed", "00002-of-00004")
    assert sum("00002-of-00004" in seen.path for seen in machine.hub.seen) == 5


def test_a_revision_is_no_step_in_a_path(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    for revision in (".", "..", "%2e%2e", "a%2F..%2Fb", "%2Fa", "a%2F%2Fb", "\udcff", "a%00"):
        done = machine.run("inspect", f"hf://org/vita@{revision}")
        assert_one_error(done, 2, "invalid-hub-address")
    assert machine.hub.seen == []


@pytest.mark.parametrize("command", ["inspect", "validate", "explain"])
def test_offline_nobody_knows_what_the_cache_lacks(machine: Machine, command: str) -> None:
    """Neither that it is no checkpoint, nor that a shard is missing, can be said then."""
    machine.hub.add("org/vita", BASE)
    download = "from huggingface_hub import hf_hub_download as get; get('org/vita', {!r})"
    index = "model.safetensors.index.json"
    for name in ("config.json", index, "model-00001-of-00004.safetensors"):
        assert machine.run(program=download.format(name)).code == 0
        done = machine.run(command, "hf://org/vita", HF_HUB_OFFLINE="1")
        assert (done.code, done.out) == (3, ""), done
        word, error = done.err.splitlines()
        assert word.startswith("HF_HUB_OFFLINE is set: of org/vita")
        assert error.startswith("error: hub-offline: hf://org/vita@")
        assert "unset HF_HUB_OFFLINE" in error
    done = machine.run("inspect", "hf://org/vita/tokenizer.json", HF_HUB_OFFLINE="1")
    assert "hub-offline" in done.err


def test_offline_is_said_once(machine: Machine) -> None:
    names = ("org/one", "org/two")
    for name in names:
        machine.hub.add(name, BASE)
        download = f"from huggingface_hub import snapshot_download; snapshot_download({name!r})"
        assert machine.run(program=download).code == 0
    done = machine.run("validate", *names, "--jobs", "2", HF_HUB_OFFLINE="1")
    assert done.code == 0, done.err
    assert done.err.count("HF_HUB_OFFLINE is set") == 2


@given(
    st.sets(
        st.lists(st.sampled_from(["a", "a-", "a0", "b", "."]), min_size=1, max_size=4).map("/".join)
    )
)
def test_the_folders_of_a_repository(paths: set[str]) -> None:
    """Names that sort before and after the slash among them."""
    files = {path: RemoteFile("org/name", "0" * 40, path, 1, "") for path in paths}
    commit = Repository(Session("http://127.0.0.1:9"), "org/name", "0" * 40, files)
    for folder in {"", *paths, *(path.rpartition("/")[0] for path in paths), "a/b", "-"}:
        start = f"{folder}/" if folder else ""
        inside = {p.removeprefix(start).split("/")[0] for p in paths if p.startswith(start)}
        assert commit.listing(folder) == sorted(inside)
        entry = commit.look(folder)
        expected = Kind.FILE if folder in files else Kind.DIRECTORY if inside else None
        assert (entry and entry.kind) == expected


@pytest.mark.parametrize(
    "name", ["../../other/model.safetensors", "/etc/hostname", "", ".", "a//b", "a\0b", "\ud800"]
)
def test_an_index_that_leads_out_is_refused(machine: Machine, tmp_path: Path, name: str) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    index = json.loads((root / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
    machine.hub.add("org/vita", root)
    done = machine.run("inspect", "hf://org/vita")
    assert_one_error(done, 3, "path-outside-checkpoint")
    done = machine.run("validate", "hf://org/vita")
    assert (done.code, "path-outside-checkpoint" in done.out) == (1, True), done


def test_what_failed_is_asked_for_again() -> None:
    """With one session: what failed, and was not opened then, does not fail the next time too."""
    with HubServer() as server:
        server.add("org/vita", BASE)
        way = HubStore(Session(server.url, lambda _seconds: None))
        stores = Stores(way)
        root = str(way.pin(Address("org/vita")))
        server.faults.append(Fault("safetensors$", "status", 403, 99))
        with pytest.raises(HubError, match="hub-forbids"):
            open_checkpoint(root, stores)
        server.faults.clear()
        assert len(open_checkpoint(root, stores).shards) == 4


def test_an_answer_that_is_no_listing(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("/api/", "status", 200))
    assert_one_error(machine.run("inspect", "hf://org/vita"), 3, "hub-failed", "commit None")
    repo = machine.hub.repos["org/vita"]
    files = repo.commits[repo.refs["main"]]
    for size in (-1, 1 << 63):
        repo.commit({**files, "odd.bin": Blob(b"", size, "x", True)})
        assert_one_error(machine.run("inspect", "hf://org/vita"), 3, "hub-failed", "odd.bin")


def test_values_are_fetched_only_when_asked_for(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    done = machine.run("validate", "org/vita", "--select", "value-*")
    assert done.code == 0
    assert machine.large_bytes < heads_of(BASE) + 200
    done = machine.run("validate", "org/vita", "--values", "--select", "value-*")
    assert done.code == 0, done.err
    tensors = sum(p.stat().st_size - header_of(p) for p in BASE.glob("*.safetensors"))
    assert machine.large_bytes == tensors + heads_of(BASE)
    assert list(machine.work.iterdir()) == []


def test_diff_by_headers_and_digests(machine: Machine, tmp_path: Path) -> None:
    other = shutil.copytree(BASE, tmp_path / "elsewhere" / "other")
    shard = other / "model-00004-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0x40
    shard.write_bytes(data)
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/other", other)
    same = machine.run("diff", "org/vita", BASE, "--exit-code")
    assert (same.code, same.out.splitlines()[-1]) == (0, "no difference")
    assert machine.large_bytes < heads_of(BASE) + 200
    for a, b in (("org/vita", "org/other"), ("org/vita", other), (BASE, "org/other")):
        found = machine.run("diff", a, b, "--json")
        assert found.code == 0, found.err
        report = json.loads(found.out)
        assert not report["identical"]
        assert report["tensors"] == []
        assert len(report["unread"]) == 5
        assert [part["unchanged"] for part in report["parts"]] == [26, 0, 46]
        assert machine.large_bytes < 2 * heads_of(BASE) + 400
    assert "5 tensors and files" in machine.run("diff", "org/vita", "org/other").out
    for options in (["--fetch"], ["--values"]):
        fetched = machine.run("diff", "org/vita", "org/other", "--json", *options)
        local = machine.run("diff", BASE, other, "--json", *options[1:], *options[:1])
        far, near = json.loads(fetched.out), json.loads(local.out)
        for report in (far, near):
            del report["a"], report["b"]
        assert far == near
        assert len(far["tensors"]) == 1
        assert far["unread"] == []
    done = machine.run("diff", "org/vita", "org/other", "--only", "model.mm_projector.*")
    assert done.code == 0, done


def test_diff_of_files_beside_the_weights(machine: Machine, tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "first", Spec())
    second = write_checkpoint(tmp_path / "second", Spec())
    (second / "tokenizer.json").write_text('{"version": "2.0"}\n')
    (second / "config.json").write_text((second / "config.json").read_text().replace("16", "17"))
    machine.hub.add("org/first", first)
    machine.hub.add("org/second", second)
    near = json.loads(machine.run("diff", first, second, "--json").out)
    for a, b in (("org/first", "org/second"), (first, "org/second")):
        far = json.loads(machine.run("diff", a, b, "--json").out)
        assert (far["files"], far["config"]) == (near["files"], near["config"])
        assert far["unread"] == []


LIGHT = """
import sys
from vita_ckpt.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as exit_:
    assert exit_.code in (0, 3), exit_.code
heavy = {name for name in sys.modules if name.split(".")[0] == "huggingface_hub"}
assert not heavy, heavy
assert not {n for n in sys.modules if n.startswith("vita_ckpt.storage.hub.") and "content" not in n}
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["inspect", BASE],
        ["inspect", "./nothing/here"],
        ["validate", BASE],
        ["explain", BASE],
        ["diff", BASE, BASE],
        ["merge-projector", "--base", BASE, "--adapter", RUN, "--dry-run"],
        ["extract-projector", "--from", BASE, "--out", "OUT.bin"],
    ],
)
def test_the_hub_stays_out_of_local_commands(tmp_path: Path, arguments: list[object]) -> None:
    words = [str(a).replace("OUT", str(tmp_path / "out")) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["validate", "explain", "inspect"])
@pytest.mark.parametrize(
    ("place", "status", "code"),
    [
        ("00002-of-00004", 403, "hub-forbids"),
        ("config.json", 429, "rate-limited"),
        ("index.json", 503, "hub-failed"),
        ("tower/config.json", 403, "hub-forbids"),
    ],
)
def test_what_the_hub_refuses_is_no_finding(
    machine: Machine, tmp_path: Path, command: str, place: str, status: int, code: str
) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    (root / "tower").mkdir()
    (root / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "tower"}))
    machine.hub.add("org/vita", root)
    machine.hub.faults.append(Fault(place, "status", status, 99, {"Retry-After": "300"}))
    done = machine.run(command, "hf://org/vita")
    assert_refused(done, code)


def assert_refused(done: Result, code: str) -> None:
    """The error alone, and no findings; validate says beside it what was moved."""
    error, *moved = done.err.splitlines()
    assert (done.code, done.out) == (3, ""), done
    assert error.startswith(f"error: {code}: "), error
    assert len(moved) < 2


def test_what_was_rewritten_meanwhile_is_no_finding(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault("00002-of-00004", "etag", 0, 99))
    assert_refused(machine.run("validate", "hf://org/vita"), "input-changed")
    machine.hub.faults[:] = [Fault("config.json", "commit", 0, 99)]
    assert_refused(machine.run("validate", "hf://org/vita"), "input-changed")


OTHER = "other@0123456789012345678901234567890123456789"


@pytest.mark.parametrize(
    "named", ["google/siglip", OTHER, "../../org/tower", "/etc", "a\0b", "..", "hf://org/tower"]
)
@pytest.mark.parametrize("lone", [False, True])
def test_a_config_leads_out_of_no_repository(
    machine: Machine, tmp_path: Path, named: str, lone: bool
) -> None:
    """Not to another one, and not to this machine: also where there is only one file of weights."""
    root = tmp_path / "elsewhere" / "base"
    root.mkdir(parents=True)
    shard = "model-00004-of-00004.safetensors"
    shutil.copy(BASE / shard, root / "weights.safetensors")
    config = json.loads((BASE / "config.json").read_text())
    told = {**config, "mm_vision_tower": named, "mm_audio_encoder": named}
    (root / "config.json").write_text(json.dumps(told))
    machine.hub.add("org/vita", root)
    machine.hub.add("org/tower", BASE)
    for place in (machine.work / "google" / "siglip", machine.work / OTHER):
        place.mkdir(parents=True)
        (place / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    address = "hf://org/vita" + ("/weights.safetensors" if lone else "")
    done = machine.run("inspect", address, "--json")
    assert done.code == 0, done.err
    assert "siglip_vision_model" not in done.out
    assert machine.run("validate", address).code in (0, 1)
    assert {seen.path.split("/")[3] for seen in machine.hub.seen if "/api/" in seen.path} == {"org"}
    assert not [seen for seen in machine.hub.seen if "tower" in seen.path or "other" in seen.path]


def test_a_tower_in_the_repository_is_found(machine: Machine, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    shutil.copytree(BASE, root / "base")
    (root / "tower").mkdir()
    (root / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    config = json.loads((root / "base" / "config.json").read_text())
    for named in ("tower", "./tower/", "../tower"):
        (root / "base" / "config.json").write_text(json.dumps({**config, "mm_vision_tower": named}))
        commit = machine.hub.add("org/vita", root)
        far = machine.run("inspect", "hf://org/vita/base", "--json")
        near = machine.run("inspect", root / "base", "--json")
        place = f"hf://org/vita@{commit}"
        assert without_paths(far.out, place) == without_paths(near.out, str(root)), named
        assert f"{place}/tower" in far.out


def test_what_is_almost_an_address_is_looked_for_here_alone(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    for text, address in {
        "https://huggingface.co/org/vita": "hf://org/vita",
        "https://hf.co/org/vita/tree/main/": "hf://org/vita@main",
        "https://huggingface.co/org/vita/resolve/v1/a/x.bin?download=true": "hf://org/vita@v1/a/x.bin",
        f"{machine.hub.url}/org/vita": "hf://org/vita",
        "org/vita@main": "hf://org/vita@main",
        "org/vita@main/sub": "hf://org/vita@main/sub",
        "org/vita/": "hf://org/vita",
    }.items():
        done = machine.run("inspect", text)
        assert_one_error(done, 3, f"not-found: {redacted(text)}: ", f"{address} looks on the hub")
        assert machine.hub.seen == []
    assert_one_error(machine.run("inspect", "org/vita/sub"), 3, "not-found", "(check the path)")
    assert machine.hub.seen == []


def test_a_path_like_one_wins(machine: Machine) -> None:
    for name in ("org/vita@main", "https:/huggingface.co/org/vita"):
        shutil.copytree(BASE, machine.work / name)
    for path in ("org/vita@main", "org/vita@main/", "https://huggingface.co/org/vita"):
        assert machine.run("inspect", path).code == 0
    file = next(BASE.glob("*.safetensors"))
    (machine.work / "run").mkdir()
    shutil.copyfile(file, machine.work / "run" / "weights")
    shutil.copyfile(file, machine.work / "run" / "weights.safetensors")
    assert machine.run("inspect", "run/weights.safetensors/").code == 0
    assert machine.run("inspect", "run/weights/").err == machine.run("inspect", "run/weights").err
    assert machine.hub.seen == []


@pytest.mark.parametrize(("shards", "rounds"), [(4, 3), (400, 12)])
def test_rounds_of_requests(machine: Machine, tmp_path: Path, shards: int, rounds: int) -> None:
    """The listing, the hub's answers on all files and what they redirect to: nothing waits more.

    What a config leads to comes meanwhile. Only so many requests are made at a time.
    """
    root = sharded(tmp_path / "base", shards)
    machine.hub.add("org/vita", root)
    machine.hub.quiet = 0.2
    done = machine.run("inspect", "hf://org/vita", "--json")
    assert done.code == 0, done.err
    assert machine.hub.rounds <= rounds
    asked = Counter(
        seen.path.partition("/resolve/")[2].partition("/")[2] for seen in machine.hub.seen
    )
    for name in ("config.json", "audio/train.yaml", "audio/global_cmvn", "tower/config.json"):
        assert asked[name] == 1
    assert machine.large_bytes == heads_of(root)
    assert len([seen for seen in machine.hub.seen if seen.large]) == shards


@pytest.mark.parametrize("command", ["inspect", "explain", "validate"])
def test_a_whole_checkpoint_takes_three_rounds(machine: Machine, command: str) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.quiet = 0.2
    assert machine.run(command, "hf://org/vita").code == 0
    assert machine.hub.rounds <= 3
    assert len({seen.path for seen in machine.hub.seen}) == len(machine.hub.seen)


def test_a_long_header_takes_one_round_more(machine: Machine, tmp_path: Path) -> None:
    """Of it the rest is fetched, from where the hub had redirected to."""
    root = sharded(tmp_path / "base", 4, tensors=2000)
    assert all(header_of(path) > 1 << 16 for path in root.glob("*.safetensors"))
    machine.hub.add("org/vita", root)
    machine.hub.quiet = 0.2
    done = machine.run("inspect", "hf://org/vita")
    assert done.code == 0, done.err
    assert machine.hub.rounds <= 4
    assert machine.large_bytes == heads_of(root)
    assert sum("safetensors" in s.path and s.status == 302 for s in machine.hub.seen) == 4


def test_shards_of_other_names_take_the_index_first(machine: Machine, tmp_path: Path) -> None:
    root = sharded(tmp_path / "base", 4)
    index = root / "model.safetensors.index.json"
    text = index.read_text()
    for path in root.glob("*.safetensors"):
        path.rename(root / f"part-{path.name}")
        text = text.replace(path.name, f"part-{path.name}")
    index.write_text(text)
    machine.hub.add("org/vita", root)
    machine.hub.quiet = 0.2
    done = machine.run("inspect", "hf://org/vita")
    assert done.code == 0, done.err
    assert machine.hub.rounds <= 4
    assert machine.large_bytes == heads_of(root)


def sharded(root: Path, shards: int, tensors: int = 1) -> Path:
    """A directory with so many weight files, an index, and a config that leads to an encoder."""
    root.mkdir()
    weight_map: dict[str, str] = {}
    for shard in range(1, shards + 1):
        name = f"model-{shard:05}-of-{shards:05}.safetensors"
        held = {f"model.layers.{shard}.t{n}": np.zeros(1, np.float32) for n in range(tensors)}
        save_file(
            {**held, f"model.layers.{shard}.large": np.zeros(20_000, np.float32)}, root / name
        )
        weight_map |= dict.fromkeys((*held, f"model.layers.{shard}.large"), name)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {"model_type": "vita-Qwen2", "mm_audio_encoder": "audio", "mm_vision_tower": "tower"}
    (root / "config.json").write_text(json.dumps(config))
    (root / "audio").mkdir()
    (root / "audio" / "train.yaml").write_text("is_json_cmvn: true\n")
    (root / "audio" / "global_cmvn").write_text("{}")
    (root / "tower").mkdir()
    (root / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    return root
