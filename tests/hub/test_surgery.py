"""Surgery with inputs on the hub: only the bytes that matter, and the result of local inputs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    read_tensors,
    snapshot,
    write_checkpoint,
    write_tower,
)
from fixtures.hub_server import TOKEN, Fault
from tests.conftest import GOLDEN, assert_one_error
from tests.hub.conftest import Machine, heads_of

A7, A8 = GOLDEN / "A7", GOLDEN / "A8"
BASE, RUN = A7 / "base", A7 / "mm_projector_fp32"
TOWER = TowerSpec("siglip", width=8, name="my-siglip")


@pytest.mark.parametrize("name", ["mm_projector.bin", "mm_projector.safetensors"])
def test_a_projector_is_extracted_from_its_ranges(machine: Machine, name: str) -> None:
    machine.hub.add("org/vita", BASE)
    done = machine.run("extract-projector", "--from", "hf://org/vita", "--out", name)
    assert done.code == 0, done.err
    near = machine.work / f"near-{name}"
    assert machine.large_bytes == heads_of(BASE) + 4 * (64 * 128 + 64 + 64 * 64 + 64)
    machine.run("extract-projector", "--from", BASE, "--out", near)
    assert (machine.work / name).read_bytes() == near.read_bytes()
    assert sorted(p.name for p in machine.work.iterdir()) == sorted([name, near.name])


def test_a_tower_is_extracted_from_its_ranges(machine: Machine, tmp_path: Path) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/tower-internvit", A7 / "tower-internvit")
    extract = ["extract-tower", "--tower-config", "hf://org/tower-internvit", "--from"]
    done = machine.run(*extract, "org/vita", "--out", "far")
    assert done.code == 0, done.err
    tower = sum(
        4 * _product(shape)
        for name, (_, shape, _) in read_tensors(BASE).items()
        if "vision_tower" in name
    )
    assert machine.large_bytes == heads_of(BASE) + tower
    local = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    near = machine.run(*extract, local, "--out", "near")
    assert near.code == 0, near.err
    assert contents(machine.work / "far") == contents(machine.work / "near")


def test_a_merge_of_remote_inputs_is_that_of_local_ones(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    commit = machine.hub.add("org/run", RUN)
    dry = machine.run(
        "merge-projector", "--base", "org/vita", "--adapter", "org/run", "--dry-run", "--json"
    )
    assert dry.code == 0, dry.err
    assert machine.large_bytes < heads_of(BASE) + 4000
    assert json.loads(dry.out)["donors"] == [f"hf://org/run@{commit}"]
    far = machine.run(
        "merge-projector", "--base", "org/vita", "--adapter", "org/run", "--out", "far"
    )
    assert far.code == 0, far.err
    near = machine.run("merge-projector", "--base", BASE, "--adapter", RUN, "--out", "near")
    assert near.code == 0, near.err
    assert contents(machine.work / "far") == contents(machine.work / "near")
    # The base lies in the cache now, as huggingface_hub lays it down.
    snapshots = machine.home / "hub" / "models--org--vita" / "snapshots"
    assert {p.name for p in next(snapshots.iterdir()).iterdir()} == {p.name for p in BASE.iterdir()}
    again = machine.run(
        "merge-projector", "--base", "org/vita", "--adapter", "org/run", "--out", "again"
    )
    assert again.code == 0, again.err
    paths = {seen.path for seen in machine.hub.seen if seen.large}
    assert all("/org/run/" in path for path in paths)
    assert sorted(p.name for p in machine.work.iterdir()) == ["again", "far", "near"]


def test_a_swap_fetches_the_tower_by_parts_and_says_where_from(
    machine: Machine, tmp_path: Path
) -> None:
    base = write_checkpoint(tmp_path / "base", Spec(), shards=3)
    tower = write_tower(tmp_path / "my-siglip", TOWER)
    commit = machine.hub.add("org/vita", base)
    tower_commit = machine.hub.add("org/my-siglip", tower)
    swap = ["swap-tower", "--projector", "reinit", "--base"]
    far = machine.run(*swap, "org/vita", "--tower", "org/my-siglip", "--out", "far")
    assert far.code == 0, far.err
    assert not (machine.home / "hub" / "models--org--my-siglip").exists()
    near = machine.run(
        *swap, base, "--tower", tower, "--out", "near", "--tower-path", "org/my-siglip"
    )
    assert near.code == 0, near.err
    one = contents(machine.work / "far")
    assert one == contents(machine.work / "near")
    assert json.loads(one["config.json"])["mm_vision_tower"] == "org/my-siglip"
    named = inputs_of(machine.work / "far")
    assert named == {
        "base": f"hf://org/vita@{commit}",
        "tower": f"hf://org/my-siglip@{tower_commit}",
    }
    assert set(inputs_of(machine.work / "near").values()) == {"base", "my-siglip"}


def test_what_is_dropped_is_not_downloaded(machine: Machine, tmp_path: Path) -> None:
    """A shard that holds nothing but the old tower."""
    base = write_checkpoint(tmp_path / "base", Spec())
    tower = write_tower(tmp_path / "my-siglip", TOWER)
    tensors = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    weight_map = {
        name: f"model-0000{2 if 'vision_tower' in name else 1}-of-00002.safetensors"
        for name in tensors
    }
    for shard in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        save_file(part, base / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    machine.hub.add("org/vita", base)
    swap = ["swap-tower", "--tower", tower, "--projector", "reinit", "--base"]
    done = machine.run(*swap, "org/vita", "--out", "far")
    assert done.code == 0, done.err
    shards = {path.name for path in (machine.home / "hub").rglob("snapshots/*/*.safetensors")}
    assert shards == {"model-00001-of-00002.safetensors"}
    assert machine.run(*swap, base, "--out", "near").code == 0
    assert read_tensors(machine.work / "far") == read_tensors(machine.work / "near")


def test_a_remote_adapter_into_a_local_base_is_fetched_by_parts(
    machine: Machine, tmp_path: Path
) -> None:
    """Another checkpoint is the adapter: of it the projector moves, and nothing else."""
    donor = write_checkpoint(tmp_path / "donor", Spec(), shards=2, seed=5)
    base = write_checkpoint(tmp_path / "base", Spec(), dtype="BF16")
    machine.hub.add("org/donor", donor)
    before = snapshot(base)
    merge = ["merge-projector", "--base", base, "--adapter"]
    dry = machine.run(*merge, "org/donor", "--dry-run")
    assert dry.code == 0, dry.err
    done = machine.run(*merge, "org/donor", "--out", "far")
    assert done.code == 0, done.err
    projector = 4 * (16 * 32 + 16 + 16 * 16 + 16)
    assert machine.large_bytes == heads_of(donor) + projector
    assert machine.run(*merge, donor, "--out", "near").code == 0
    assert contents(machine.work / "far") == contents(machine.work / "near")
    assert snapshot(base) == before


def test_a_saved_plan_is_of_one_commit(machine: Machine, tmp_path: Path) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/run", RUN)
    merge = ["merge-projector", "--base", "hf://org/vita", "--adapter", "hf://org/run"]
    done = machine.run(*merge, "--plan-out", "plan.json")
    assert done.code == 0, done.err
    plan = json.loads((machine.work / "plan.json").read_text())
    assert [entry["revision"] for entry in plan["inputs"]] == ["main", "main"]
    assert all("mtime_ns" not in f for entry in plan["inputs"] for f in entry["files"])
    done = machine.run("apply", "plan.json", "--out", "out")
    assert done.code == 0, done.err
    machine.run("merge-projector", "--base", BASE, "--adapter", RUN, "--out", "near")
    assert contents(machine.work / "out") == contents(machine.work / "near")

    other = shutil.copytree(RUN, tmp_path / "other")
    (other / "log.txt").write_text("it moved")
    machine.hub.add("org/run", other)
    done = machine.run("apply", "plan.json", "--out", "late")
    assert_one_error(done, 3, "input-changed", "org/run@main", "compute the plan again")
    # What was computed from a commit stays what it was.
    by_commit = [word.replace("hf://", "") for word in merge]
    by_commit[2], by_commit[4] = (entry["path"] for entry in plan["inputs"])
    assert machine.run(*by_commit, "--plan-out", "pinned.json").code == 0
    done = machine.run("apply", "pinned.json", "--out", "late")
    assert done.code == 0, done.err
    forged = json.loads((machine.work / "pinned.json").read_text())
    forged["inputs"][1]["files"][0]["etag"] = "0" * 64
    (machine.work / "forged.json").write_text(json.dumps(forged))
    assert_one_error(machine.run("apply", "forged.json", "--out", "no"), 3, "input-changed")
    del machine.hub.repos["org/run"].commits[plan["inputs"][1]["path"].rpartition("@")[2]]
    done = machine.run("apply", "pinned.json", "--out", "no")
    assert_one_error(done, 3, "revision-not-found")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(r"^/org/vita/[0-9a-f]{40}/", "whole", ranged=True), "no-range-support"),
        (Fault(r"^/org/vita/[0-9a-f]{40}/", "range"), "wrong-range"),
        (Fault(r"^/org/vita/[0-9a-f]{40}/", "short"), "wrong-range"),
        (Fault(r"^/org/vita/resolve/", "commit"), "input-changed"),
        (Fault(r"^/org/vita/resolve/", "etag"), "input-changed"),
    ],
)
def test_a_fault_leaves_nothing(machine: Machine, fault: Fault, code: str) -> None:
    machine.hub.add("org/vita", BASE)
    machine.run("extract-projector", "--from", "hf://org/vita", "--dry-run")
    requests = sum(1 for seen in machine.hub.seen if _matches(fault, seen.path))
    fault.skip = requests  # of the headers: what is left are the tensors'
    if fault.kind in ("commit", "etag"):  # the hub is asked again where an address has expired
        place = r"^/org/vita/[0-9a-f]{40}/"
        large = sum(seen.large for seen in machine.hub.seen)
        machine.hub.faults.append(Fault(place, "status", 403, skip=large))
    machine.hub.faults.append(fault)
    done = machine.run("extract-projector", "--from", "hf://org/vita", "--out", "p.bin")
    assert_one_error(done, 3, code)
    assert fault.times == 0
    assert list(machine.work.iterdir()) == []


def test_broken_connections_are_not_noticed(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults += [
        Fault(r"^/org/vita/[0-9a-f]{40}/", "drop", 500, times=4),
        Fault("resolve/", "status", 429, 2, {"Retry-After": "0"}),
    ]
    done = machine.run("extract-projector", "--from", "hf://org/vita", "--out", "far.bin")
    assert done.code == 0, done.err
    machine.run("extract-projector", "--from", BASE, "--out", "near.bin")
    far, near = (machine.work / f"{name}.bin" for name in ("far", "near"))
    assert far.read_bytes() == near.read_bytes()


def test_gated_and_private_bases_with_a_token(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE, gated=True, private=True)
    merge = ["merge-projector", "--base", "hf://org/vita", "--adapter", RUN, "--out", "out"]
    assert_one_error(machine.run(*merge), 3, "repository-not-found")
    machine.hub.repos["org/vita"].private = False
    assert_one_error(machine.run(*merge), 3, "repository-gated")
    done = machine.run(*merge, HF_TOKEN=TOKEN)
    assert done.code == 0, done.err


@pytest.mark.parametrize("status", [403, 404])
def test_a_download_that_fails_leaves_nothing(machine: Machine, status: int) -> None:
    machine.hub.add("org/vita", BASE)
    merge = ["merge-projector", "--base", "hf://org/vita", "--adapter", RUN]
    assert machine.run(*merge, "--dry-run").code == 0
    headers = sum(1 for seen in machine.hub.seen if seen.large)
    place = r"^/org/vita/[0-9a-f]{40}/"
    machine.hub.faults.append(Fault(place, "status", status, 99, skip=headers))
    done = machine.run(*merge, "--out", "out")
    assert_one_error(done, 3, "hub-forbids" if status == 403 else "repository-not-found")
    assert list(machine.work.iterdir()) == []
    machine.hub.faults.clear()
    done = machine.run(*merge, "--out", "out")
    assert done.code == 0, done.err


def test_offline_after_online(machine: Machine) -> None:
    """What was downloaded of a branch is found by its name again, by everybody."""
    machine.hub.add("org/vita", BASE)
    commit = machine.hub.add("org/vita", BASE, revision="next/one")
    for address in ("org/vita", "hf://org/vita@next%2Fone"):
        merge = ["merge-projector", "--base", address, "--adapter", RUN, "--out"]
        assert machine.run(*merge, "online").code == 0
        done = machine.run(*merge, "offline", HF_HUB_OFFLINE="1")
        assert done.code == 0, done.err
        assert machine.hub.seen == []
        assert contents(machine.work / "offline") == contents(machine.work / "online")
        for name in ("online", "offline"):
            shutil.rmtree(machine.work / name)
    refs = machine.home / "hub" / "models--org--vita" / "refs"
    assert (refs / "next" / "one").read_text() == commit


def test_in_place_is_for_directories_here(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/tower-siglip", GOLDEN / "A2" / "tower-siglip")
    for options in (["--in-place"], ["--in-place", "--dry-run"]):
        done = machine.run("set", "hf://org/vita", "use_s2=true", *options)
        assert_one_error(done, 2, "in-place-on-hub", "got an address on the hub", "--out")
    done = machine.run("set", "hf://org/vita", "use_s2=true", "--out", "out")
    assert done.code == 0, done.err
    assert json.loads((machine.work / "out" / "config.json").read_text())["use_s2"] is True
    base = shutil.copytree(BASE, machine.work / "base")
    before = contents(base)
    swap = ["swap-tower", "--base", base, "--tower", "org/tower-siglip", "--projector", "reinit"]
    done = machine.run(*swap, "--in-place")
    assert done.code == 0, done.err
    assert machine.run(*swap[:2], BASE, *swap[3:], "--out", "near").code == 0
    assert read_tensors(base) == read_tensors(machine.work / "near")
    assert machine.run("undo", base).code == 0
    assert {n: c for n, c in contents(base).items() if n in before} == before
    assert sorted(p.name for p in machine.work.iterdir()) == ["base", "near", "out"]


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "--names", "transformers", "--dtype", "bf16", "--max-shard-size", "200KB"),
        ("resize-embeddings", "--tokens", "200", "--init", "mean"),
    ],
)
def test_a_base_on_the_hub_is_changed_as_one_here(
    machine: Machine, command: tuple[str, ...]
) -> None:
    base = GOLDEN / "A4" / "base"
    machine.hub.add("org/mixtral", base)
    name, *options = command
    assert machine.run(name, "hf://org/mixtral", *options, "--dry-run").code == 0
    for where, out in (("hf://org/mixtral", "far"), (base, "near")):
        done = machine.run(name, where, *options, "--out", out)
        assert done.code == 0, done.err
    far, near = (contents(machine.work / out) for out in ("far", "near"))
    assert far.keys() == near.keys()
    assert {n: c for n, c in far.items() if n != "vita_ckpt.json"} == {
        n: c for n, c in near.items() if n != "vita_ckpt.json"
    }


def test_what_was_done_is_known_on_the_hub_too(machine: Machine) -> None:
    merge = ["merge-projector", "--base", BASE, "--adapter", RUN, "--out", "out", "--digest"]
    assert machine.run(*merge).code == 0
    machine.hub.add("org/out", machine.work / "out")
    done = machine.run("history", "org/out", "--json")
    assert [entry["operation"] for entry in json.loads(done.out)["operations"]] == [
        "merge-projector"
    ]
    assert machine.run("validate", "hf://org/out", "--deep", "--select", "*digest*").code == 0
    config = machine.work / "out" / "generation_config.json"
    config.write_text(config.read_text() + " ")
    machine.hub.add("org/out", machine.work / "out")
    done = machine.run("validate", "hf://org/out", "--deep")
    assert done.code == 1, done
    assert "generation_config.json" in done.out


@pytest.mark.torch
def test_verify_runs_what_it_downloads(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.add("org/run", RUN)
    machine.hub.add("org/tower-internvit", A7 / "tower-internvit")
    tower = ["--tower", "hf://org/tower-internvit"]
    done = machine.run("verify", "org/vita", "--json", "--device", "cpu", *tower, "--against", BASE)
    report = json.loads(done.out)
    assert done.code == 0, (done, report)
    assert report["path"].startswith("hf://org/vita@")
    assert report["ok"]
    # The tower that the config names lies in the repository: what lies here is not looked at.
    both = machine.work / "both"
    shutil.copytree(BASE, both)
    shutil.copytree(A7 / "tower-internvit", both / "tower-internvit")
    machine.hub.add("org/both", both)
    merge = ["merge-projector", "--base", "hf://org/both", "--adapter", "hf://org/run"]
    done = machine.run(*merge, "--verify", "--out", "out")
    assert done.code == 0, done.err
    assert "it works" in done.err


@pytest.mark.torch
def test_verify_runs_a_tower_that_is_on_the_hub(machine: Machine) -> None:
    """The loader of this family takes the tower of its directory, not the checkpoint's."""
    machine.hub.add("org/llava", GOLDEN / "F16" / "base")
    machine.hub.add("org/tower-clip", GOLDEN / "F16" / "tower-clip")
    tower = ["--tower", "org/tower-clip"]
    for base in (GOLDEN / "F16" / "base", "org/llava"):
        done = machine.run("verify", base, "--json", "--device", "cpu", *tower)
        report = json.loads(done.out)
        assert (done.code, report["findings"]) == (0, [])
        assert report["tokens_per_image"] == 16


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the lineage, which says when, and from where."""
    return {p.name: p.read_bytes() for p in root.iterdir() if p.name != "vita_ckpt.json"}


def inputs_of(root: Path) -> dict[str, str]:
    """The names of the inputs of the last operation, by their roles."""
    told = json.loads((root / "vita_ckpt.json").read_text())["operations"][-1]["inputs"]
    return {role: given["name"] for role, given in told.items()}


def _matches(fault: Fault, path: str) -> bool:
    return re.search(fault.path, path) is not None


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
