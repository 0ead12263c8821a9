"""Whole files that come to the cache, and what is said of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from fixtures.hub_server import Fault
from tests.conftest import GOLDEN
from tests.hub.conftest import Machine, headers_of

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
    assert 0 < machine.large_bytes <= 2 * headers_of(root)
    assert f"{machine.hub.bytes_sent / 1000:.3g} kB moved from the hub" in done.err


def test_what_was_listed_is_downloaded_without_another_listing(machine: Machine) -> None:
    machine.hub.add("org/vita", BASE)
    near = machine.run("validate", BASE, "--deep", "--format", "json")
    machine.hub.faults.append(Fault("^/api/", "status", 503, 99, skip=1))
    far = machine.run("validate", "hf://org/vita", "--deep", "--format", "json")
    assert far.code == near.code, far.err
    assert sum(seen.path.startswith("/api/") for seen in machine.hub.seen) == 1


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
