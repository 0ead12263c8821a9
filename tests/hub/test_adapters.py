"""Adapters of every kind on the hub: what is taken of them is looked at once it is here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fixtures.builder import snapshot
from fixtures.hub_server import TOKEN
from tests.conftest import GOLDEN, assert_one_error
from tests.hub.conftest import Machine

A7, L4, U1 = GOLDEN / "A7", GOLDEN / "L4", GOLDEN / "U1"


def lora_with(root: Path, value: float) -> Path:
    """The LoRA run with one of its values replaced."""
    run = shutil.copytree(L4 / "lora", root)
    path = run / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "lora_B" in name)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = value
    save_file(tensors, path, {"format": "pt"})
    return run


def projector_of(root: Path, value: float) -> Path:
    """A projector for A7 with one value all over."""
    root.mkdir()
    names = {"0.weight": (64, 128), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    tensors = {f"model.mm_projector.{n}": np.full(s, value, np.float32) for n, s in names.items()}
    save_file(tensors, root / "mm_projector.safetensors")
    return root


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_bad_values_are_refused_once_they_are_here(
    machine: Machine, tmp_path: Path, value: float
) -> None:
    machine.hub.add("org/vita", A7 / "base")
    machine.hub.add("org/run", projector_of(tmp_path / "run", value))
    base = shutil.copytree(A7 / "base", machine.work / "base")
    before = snapshot(base)
    merge = ["merge-projector", "--adapter", "hf://org/run", "--base"]
    assert machine.run(*merge, base, "--plan-out", "plan.json").code == 0
    for command in (
        [*merge, base, "--out", "out"],
        [*merge, "hf://org/vita", "--out", "out"],
        [*merge, base, "--in-place"],
        ["apply", "plan.json", "--out", "out"],
        [*merge, "hf://org/vita", "--push", "org/new"],
    ):
        done = machine.run(*command, HF_TOKEN=TOKEN)
        assert_one_error(done, 3, "bad-adapter-values: hf://org/run@", "--allow-bad-values")
    assert sorted(p.name for p in machine.work.iterdir()) == ["base", "plan.json"]
    assert snapshot(base) == before
    assert "org/new" not in machine.hub.repos
    done = machine.run(*merge, base, "--out", "out", "--allow-bad-values")
    assert done.code == 0, done.err


def test_a_lora_run_and_its_base(machine: Machine, tmp_path: Path) -> None:
    machine.hub.add("org/vita", L4 / "base")
    machine.hub.add("org/lora", L4 / "lora")
    machine.hub.add("org/bad", lora_with(tmp_path / "bad", np.inf))
    for base, adapter, out in (
        ("hf://org/vita", "hf://org/lora", "far"),
        (L4 / "base", "hf://org/lora", "half"),
        (L4 / "base", L4 / "lora", "near"),
    ):
        done = machine.run("merge-lora", "--base", base, "--adapter", adapter, "--out", out)
        assert done.code == 0, done.err
    assert contents(machine.work / "far") == contents(machine.work / "near")
    assert contents(machine.work / "half") == contents(machine.work / "near")
    merge = ["merge-lora", "--base", "hf://org/vita", "--adapter", "hf://org/bad"]
    done = machine.run(*merge, "--out", "bad")
    assert_one_error(done, 3, "bad-adapter-values: hf://org/bad@", "lora_B")


def test_an_audio_adapter_and_an_audio_encoder(machine: Machine) -> None:
    """Into a base on the hub that has its encoder's directory in the repository."""
    machine.hub.add("org/vita", U1 / "base")
    machine.hub.add("org/run", U1 / "audio_run")
    machine.hub.add("org/encoder", U1 / "audio-encoder")
    for name, option, here, there in (
        ("merge-audio-adapter", "--adapter", U1 / "audio_run", "hf://org/run"),
        ("swap-audio-encoder", "--audio-encoder", U1 / "audio-encoder", "hf://org/encoder"),
    ):
        far, near = f"{name}-far", f"{name}-near"
        path = ["--audio-path", "audio-encoder"] if name.startswith("swap") else []
        done = machine.run(name, "--base", "org/vita", option, there, *path, "--out", far)
        assert done.code == 0, done.err
        done = machine.run(name, "--base", U1 / "base", option, here, *path, "--out", near)
        assert done.code == 0, done.err
        assert contents(machine.work / far) == contents(machine.work / near)
        inputs = json.loads((machine.work / far / "vita_ckpt.json").read_text())["operations"][-1]
        assert all(given["name"].startswith("hf://") for given in inputs["inputs"].values())


def contents(root: Path) -> dict[str, bytes]:
    """Every file but the lineage, which says when, and from where."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "vita_ckpt.json"
    }
