"""What is printed, and what is saved, is the same whatever Python hashes texts to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import GOLDEN

ROOT = Path(__file__).parent.parent.parent
SEEDS = ("0", "1", "2")

# Every report in turn, in one process: what costs time is starting it.
RUN = """
import contextlib, json, sys
from vita_ckpt.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print(arguments, flush=True)
    with contextlib.suppress(SystemExit):
        main(arguments)
"""
REPORTS = ("json", "sarif", "junit", "text")


def printed(seed: str, folder: Path, *commands: list[str]) -> str:
    """What commands print in a process whose texts have the hashes of ``seed``."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "internal-error" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sound checkpoint, its tower and its manifest beside it."""
    shutil.copytree(GOLDEN / "A1" / "tower-internvit", tmp_path / "tower-internvit")
    made = ["set", str(GOLDEN / "A1" / "base"), "use_s2=false", "--out", "base", "--digest"]
    printed("0", tmp_path, made)
    return tmp_path / "base"


def holds_twice(base: Path) -> None:
    """A second shard with the tensors of the first: every one of them is a finding."""
    index = base / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = sorted(content["weight_map"].values())[0]
    shutil.copyfile(base / first, base / "again.safetensors")
    content["weight_map"]["ghost.weight"] = "again.safetensors"
    index.write_text(json.dumps(content))


def holds_more(base: Path) -> None:
    """Files that the manifest does not know: every one of them is a finding."""
    for name in ("merges", "notes", "special_tokens_map", "tokenizer", "trainer", "vocab"):
        (base / f"{name}.json").write_text("{}")


@pytest.mark.parametrize("broken", [None, holds_twice, holds_more])
def test_reports(base: Path, broken: object) -> None:
    if callable(broken):
        broken(base)
    commands = [
        ["explain", "base", "--json"],
        ["inspect", "base", "--json", "--tensors"],
        ["inspect", "base"],
        ["diff", str(GOLDEN / "A1" / "base"), "base", "--json", "--values"],
        *(["validate", "base", "--deep", "--format", name] for name in REPORTS),
    ]
    for one, other in pairwise(printed(seed, base.parent, *commands) for seed in SEEDS):
        assert one.splitlines() == other.splitlines()


def test_plans(base: Path) -> None:
    tower = str(GOLDEN / "A8" / "tower-siglip")
    swap = ["swap-tower", "--base", "base", "--tower", tower, "--projector", "reinit"]
    plans = []
    for seed in SEEDS:
        said = printed(
            seed,
            base.parent,
            [*swap, "--json", "--plan-out", f"{seed}.json"],
            [*swap, "--dry-run", "--in-place", "--json"],
        )
        plan = (base.parent / f"{seed}.json").read_text()
        plans.append((said.replace(f"{seed}.json", "plan.json"), plan))
    assert plans[0][1]
    for one, other in pairwise(plans):
        assert one == other
