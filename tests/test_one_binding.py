"""validate, explain and verify judge by the same binding."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.mutants import CONFIG_MUTATIONS, DTYPE_MUTATIONS, MUTATIONS, holds, judge, mutant


@pytest.mark.parametrize("seed", range(len(MUTATIONS)))
@pytest.mark.parametrize("case", ["A2", "A4", "A6", "U2"])
def test_all_three_judge_alike(
    case: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds(case, seed, tmp_path / "case", monkeypatch)


@pytest.mark.parametrize("seed", range(len(CONFIG_MUTATIONS)))
@pytest.mark.parametrize("case", ["A3", "A5"])
def test_all_three_judge_a_config_alike(
    case: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds(case, seed, tmp_path / "case", monkeypatch, CONFIG_MUTATIONS)


@pytest.mark.parametrize("seed", range(len(MUTATIONS)))
@pytest.mark.parametrize("case", ["F12", "F13", "F16"])
def test_all_three_judge_a_relative_alike(
    case: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bunny and LLaVA with the directory's tower, LLaVA-NeXT with its own."""
    holds(case, seed, tmp_path / "case", monkeypatch)


@pytest.mark.parametrize("seed", range(len(DTYPE_MUTATIONS)))
def test_all_three_judge_dtypes_alike(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds("A1", seed, tmp_path / "case", monkeypatch, DTYPE_MUTATIONS)


def test_the_mutants_are_those_of_a_sound_checkpoint(tmp_path: Path) -> None:
    base = mutant("A1", 0, tmp_path / "case")
    assert json.loads((base / "config.json").read_text())["model_type"] == "vita-Qwen2"


def test_a_tower_without_its_table_of_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its image size is unknown then: the directory's config still decides."""
    holds("A1", 111, tmp_path / "case", monkeypatch)


def test_a_second_set_of_weights_beside_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader takes the single file, whole as it is: which one is meant is not known."""
    base = mutant("A3", 0, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    shard = "model-00001-of-00001.safetensors"
    names = dict.fromkeys(load_file(base / "model.safetensors"), shard)
    shutil.copy(base / "model.safetensors", base / shard)
    index = {"metadata": {}, "weight_map": names}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    judged = judge(base)
    assert judged["validate"] == {"ambiguous-weights", "stale-weights"}
    assert judged["explain"] == {"partial"}
    assert judged["verify"] == {"ambiguous-weights"}
