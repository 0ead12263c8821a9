"""Training state on the hub: what is written from there is what is written from the disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from tests.hub.conftest import Machine

BASE = GOLDEN / "A1" / "base"
STATES = {
    "zero": GOLDEN / "T12" / "run",
    "dcp": GOLDEN / "T9" / "run" / "pytorch_model_fsdp_0",
    "shards": GOLDEN / "T6" / "run",
}


@pytest.mark.parametrize("kind", STATES)
def test_a_file_of_a_remote_state(machine: Machine, kind: str) -> None:
    machine.hub.add("org/run", STATES[kind])
    far = machine.run("consolidate", "org/run", "--out", "far.safetensors", "--check")
    assert far.code == 0, far.err
    near = machine.run("consolidate", STATES[kind], "--out", "near.safetensors")
    assert near.code == 0, near.err
    files = [(machine.work / f"{side}.safetensors").read_bytes() for side in ("far", "near")]
    assert files[0] == files[1]
    assert {path.name for path in machine.work.iterdir()} == {
        "far.safetensors",
        "near.safetensors",
    }


def test_a_directory_of_a_remote_state(machine: Machine, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(STATES["dcp"], run / "checkpoint-7" / "pytorch_model_fsdp_0")
    shutil.copy(BASE / "config.json", run / "checkpoint-7")
    (run / "checkpoint-7" / "merges.txt").write_text("a b\n")
    machine.hub.add("org/run", run)
    for side, state in (("far", "hf://org/run"), ("near", run)):
        done = machine.run("consolidate", state, "--out", side)
        assert done.code == 0, done.err
    for path in (machine.work / "near").iterdir():
        if path.name != "vita_ckpt.json":
            assert (machine.work / "far" / path.name).read_bytes() == path.read_bytes()
    assert (machine.work / "far" / "merges.txt").exists()


def test_a_remote_projector(machine: Machine) -> None:
    machine.hub.add("org/run", GOLDEN / "T5" / "run")
    done = machine.run("extract-projector", "--from", "org/run", "--out", "far.safetensors")
    assert done.code == 0, done.err
    assert (
        machine.run(
            "extract-projector", "--from", GOLDEN / "T5" / "run", "--out", "near.safetensors"
        ).code
        == 0
    )
    files = [(machine.work / f"{side}.safetensors").read_bytes() for side in ("far", "near")]
    assert files[0] == files[1]
