"""Whole files that come to the cache, and what is said of them."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.hub_server import Fault
from tests.conftest import GOLDEN, assert_one_error
from tests.hub.conftest import Machine, heads_of

BASE = GOLDEN / "A7" / "base"


def test_what_the_cache_has_of_another_commit_is_not_moved(
    machine: Machine, tmp_path: Path
) -> None:
    root = shutil.copytree(BASE, tmp_path / "elsewhere" / "base")
    machine.hub.add("org/vita", root)
    machine.run("validate", "hf://org/vita", "--deep")
    whole = sum(path.stat().st_size for path in root.glob("*.safetensors"))
    assert machine.large_bytes > whole
    (root / "notes.txt").write_text("more")
    machine.hub.add("org/vita", root)
    done = machine.run("validate", "hf://org/vita", "--deep")
    assert 0 < machine.large_bytes <= 2 * heads_of(root)
    assert f"{machine.hub.bytes_sent / 1000:.3g} kB moved from the hub" in done.err


def test_what_was_listed_is_downloaded_without_another_listing(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    near = machine.run("validate", BASE, "--deep", "--format", "json")
    machine.hub.faults.append(Fault("^/api/", "status", 503, 99, skip=1))
    far = machine.run("validate", "hf://org/vita", "--deep", "--format", "json")
    assert far.code == near.code, far.err
    assert sum(seen.path.startswith("/api/") for seen in machine.hub.seen) == 1


def test_what_several_processes_moved_is_counted(machine: Machine) -> None:
    names = ("hf://org/one", "hf://org/two")
    for name in names:
        machine.hub.add(name.removeprefix("hf://"), BASE)
    done = machine.run("validate", *names, "--jobs", "2")
    assert machine.large_bytes > heads_of(BASE)
    assert f"{machine.hub.bytes_sent / 1000:.3g} kB moved from the hub" in done.err


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("resolve/.*00002", "status", 403, 9), "hub-forbids"),
        (Fault("resolve/.*00002", "status", 429, 3, {"Retry-After": "0"}), ""),
        (Fault("resolve/.*00002", "mute", 0, 3), ""),
    ],
)
def test_a_download_that_is_refused_at_first(machine: Machine, fault: Fault, code: str) -> None:
    """The hub says no, not now, or nothing of use, when it is asked where a file is."""
    machine.hub.add("org/vita", BASE)
    change = ["set", "hf://org/vita", "use_s2=true"]
    assert machine.run(*change, "--dry-run").code == 0
    asked = sum("00002" in seen.path and "resolve" in seen.path for seen in machine.hub.seen)
    machine.hub.faults.append(replace(fault, skip=asked))
    done = machine.run(*change, "--out", "out")
    if code:
        assert_one_error(done, 3, code)
        assert list(machine.work.iterdir()) == []
    else:
        assert done.code == 0, done.err


def test_a_disk_that_refuses_what_is_fetched(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    extract = ["extract-projector", "--from", "hf://org/vita", "--out"]
    done = machine.run(*extract, "/proc/p.bin")
    assert_one_error(done, 3, "write-failed", "/proc/")


def test_what_a_killed_check_fetched_is_found(machine: Machine, tmp_path: Path) -> None:
    machine.hub.add("org/vita", BASE)
    machine.hub.faults.append(Fault(r"^/org/vita/[0-9a-f]{40}/", "stall", 30, 9, skip=4))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = machine.start("validate", "hf://org/vita", "--values", TMPDIR=str(temporary))
    while not list(temporary.glob(".vita-ckpt-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.result()
    (left,) = temporary.iterdir()
    done = machine.run("clean", TMPDIR=str(temporary))
    assert f"removed {left}" in done.out
    assert list(temporary.iterdir()) == []


def test_quiet_with_several_at_a_time(machine: Machine) -> None:
    for name in ("org/one", "org/two"):
        machine.hub.add(name, BASE)
    names = ("org/one", "org/none", "org/two")
    loud = machine.run("validate", *names, "--jobs", "2")
    assert loud.err.count("Looking on the hub") == len(names)
    done = machine.run("-q", "validate", *names, "--jobs", "2")
    assert "Looking on the hub" not in done.err
    assert "repository-not-found" in done.err + done.out
    assert (done.out, done.code) == (loud.out, loud.code)
