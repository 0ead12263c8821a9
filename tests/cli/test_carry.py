"""Pickles that are no weight files: left out of what a surgery writes, unless asked for."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from fixtures.builder import write_checkpoint
from tests.conftest import Cli, assert_one_error
from vita_ckpt.api.apply import apply
from vita_ckpt.api.plans.config import plan_set
from vita_ckpt.core.options import Options

SET = "mm_projector_type=linear"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    root = write_checkpoint(tmp_path / "c")
    for name in ("vocab.pkl", "sub/rng_state_0.pth", "a/b/scaler.joblib"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(pickle.dumps({"a": 1}))
    (root / "notes.dat").write_bytes(pickle.dumps({"a": 1}))  # only its content tells
    (root / "tokenizer.model").write_bytes(b"\nbytes")
    return root


def pickles(root: Path) -> set[str]:
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return {name for name in found if name.endswith((".pkl", ".pth", ".joblib", ".dat"))}


def test_pickles_are_left_out_and_said(cli: Cli, base: Path, tmp_path: Path) -> None:
    done = cli("set", base, SET, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert pickles(tmp_path / "out") == set()
    assert (tmp_path / "out" / "tokenizer.model").exists()
    assert "vocab.pkl is a pickle that is no weight file" in done.err
    assert "--carry vocab.pkl" in done.err
    assert "not carried: a/b/scaler.joblib: a pickle that is no weight file" in done.out


def test_the_content_tells_too(cli: Cli, base: Path, tmp_path: Path) -> None:
    numbers, objects = np.arange(3), np.array([{"a": 1}], dtype=object)
    np.save(base / "numbers.npy", numbers)
    np.savez_compressed(base / "numbers.npz", numbers)
    np.save(base / "objects.npy", objects, allow_pickle=True)
    np.savez(base / "objects.npz", objects)
    (base / "more.pkl.tar").write_bytes(b"")
    (base / "sub" / "weights.pt").write_bytes(pickle.dumps({"a": 1}))
    (base / "sub" / "code.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    done = cli("set", base, SET, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    carried = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {"numbers.npy", "numbers.npz", "weights.pt"} <= carried
    for name in ("objects.npy", "objects.npz", "more.pkl.tar", "code.pt"):
        assert name not in carried
        assert f"{name} is a pickle that is no weight file" in done.err


@pytest.mark.parametrize(
    ("globs", "carried"),
    [
        (["vocab.pkl"], {"vocab.pkl"}),
        (["*.dat"], {"notes.dat"}),
        (["*.pth", "a/*"], {"sub/rng_state_0.pth", "a/b/scaler.joblib"}),
        (["*"], {"vocab.pkl", "notes.dat", "sub/rng_state_0.pth", "a/b/scaler.joblib"}),
        (["nothing"], set()),
    ],
)
def test_pickles_that_are_asked_for(
    cli: Cli, base: Path, tmp_path: Path, globs: list[str], carried: set[str]
) -> None:
    options = [word for glob in globs for word in ("--carry", glob)]
    done = cli("set", base, SET, "--out", tmp_path / "out", "--digest", "--json", *options)
    assert done.code == 0, done.err
    assert pickles(tmp_path / "out") == carried
    summary = json.loads(done.out)
    assert carried <= {file["name"] for file in summary["carried"]}
    assert pickles(base) - carried == {file["name"] for file in summary["left_out"]}
    apply(
        plan_set(base, {"mm_projector_type": "linear"}),
        tmp_path / "python",
        options=Options(carry=tuple(globs)),
    )
    assert pickles(tmp_path / "python") == carried


def test_in_place_they_stay(cli: Cli, base: Path) -> None:
    before = pickles(base)
    done = cli("set", base, SET, "--in-place")
    assert done.code == 0, done.err
    assert pickles(base) == before
    assert_one_error(
        cli("set", base, SET, "--in-place", "--carry", "*"), 2, "options-exclude-each-other"
    )
