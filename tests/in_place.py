"""Surgeries in place, whole or stopped in the middle, and what is in a checkpoint then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fixtures.builder import Spec, TowerSpec, mm_projector, write_adapter, write_tower
from vita_ckpt import (
    Plan,
    plan_convert,
    plan_merge_projector,
    plan_resize_embeddings,
    plan_set,
    plan_swap_tower,
)

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)
LINEAR = mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)


def files_of(root: Path) -> dict[str, bytes | str]:
    """Every file of a checkpoint but our own: its content, or where a link leads."""
    return {
        os.path.relpath(path, root): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if (path.is_file() or path.is_symlink()) and ".vita-ckpt" not in path.parts
    }


def timeless(files: dict[str, bytes | str]) -> dict[str, Any]:
    """The same without the time in the lineage."""
    found: dict[str, Any] = dict(files)
    if "vita_ckpt.json" in found:
        lineage = json.loads(found["vita_ckpt.json"])
        for entry in lineage["operations"]:
            assert entry.pop("time").endswith("Z")
        found["vita_ckpt.json"] = lineage
    return found


def merge(base: Path, adapter: Path) -> Plan:
    return plan_merge_projector(base, adapter)


def other_type(base: Path, adapter: Path) -> Plan:
    return plan_merge_projector(
        base, write_adapter(adapter.parent / "linear.safetensors", LINEAR, dtype="BF16", seed=4)
    )


def same_shapes(base: Path, adapter: Path) -> Plan:
    return plan_swap_tower(base, adapter.parent / "tower-internvit")


def other_tower(base: Path, adapter: Path) -> Plan:
    clip = adapter.parent / "tower-clip"
    if not clip.exists():
        write_tower(clip, TowerSpec("clip"))
    return plan_swap_tower(base, clip, projector="reinit")


def set_key(base: Path, adapter: Path) -> Plan:
    return plan_set(base, {"image_aspect_ratio": "pad"})


def convert(base: Path, adapter: Path) -> Plan:
    return plan_convert(base, names="upstream", dtype="f32", max_shard_size=8000)


def resize(base: Path, adapter: Path) -> Plan:
    return plan_resize_embeddings(base, tokens=40, init="normal")


PLANS = (resize, merge, other_type, same_shapes, other_tower, set_key, convert)
Planned = Callable[[Path, Path], Plan]


IN_PLACE = """
import signal, sys, time
from vita_ckpt import apply_in_place, plan_merge_projector
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
steps = 0
def step(what, done, total):
    global steps
    steps += what == "writing" and done > 0
    if steps == int(sys.argv[3]):
        print("here", flush=True)
        time.sleep(60)
apply_in_place(plan_merge_projector(sys.argv[1], sys.argv[2]), on_progress=step)
"""


def stopped_in_the_middle(base: Path, adapter: Path, step: int = 3) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", IN_PLACE, str(base), str(adapter), str(step)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def owner_file(directory: Path) -> Path:
    return next(directory.glob("owner-*"))
