"""validate, explain and verify judge by the same binding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from fixtures.builder import write_tokenizer
from tests.mutants import (
    AROUND,
    CONFIG_MUTATIONS,
    DTYPE_MUTATIONS,
    MUTATIONS,
    edit_json,
    edit_tower,
    errors,
    holds,
    in_shards,
    judge,
    mutant,
    put_in_tower,
)
from vita_ckpt import open_checkpoint, verify


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


DIRECTORIES: dict[str, tuple[str, Callable[[Path, Path], object], bool]] = {
    "a tower without its config.json": (
        "A4",
        lambda _base, tower: (tower / "config.json").unlink(),
        False,
    ),
    "a tower whose config says no model_type": (
        "A2",
        lambda _base, tower: edit_json(tower / "config.json", lambda c: c.pop("model_type")),
        True,
    ),
    "a tower whose model_type is unknown": (
        "A2",
        lambda _base, tower: edit_json(tower / "config.json", lambda c: c.update(model_type="x")),
        True,
    ),
    "an index without metadata": (
        "A5",
        lambda base, _tower: in_shards(base, lambda index: index.pop("metadata")),
        False,
    ),
    "weights that do not say their format": (
        "A7",
        lambda base, _tower: save_file(
            load_file(base / "model.safetensors"), base / "model.safetensors"
        ),
        False,
    ),
    "more tokens than rows": ("A3", lambda base, _tower: write_tokenizer(base, 5000), False),
    "as many tokens as rows": ("A3", lambda base, _tower: write_tokenizer(base, 192), True),
}


@pytest.mark.parametrize("what", DIRECTORIES)
def test_all_three_judge_directories_alike(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, change, is_sound = DIRECTORIES[what]
    base = mutant(case, 0, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    (tower,) = (tmp_path / "case").glob("tower-*")
    change(base, tower)
    judged = judge(base)
    assert [not rules for rules in judged.values()] == [is_sound] * 3, judged


@pytest.mark.parametrize("what", AROUND)
def test_all_three_judge_what_lies_around_alike(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One change to the config, to the tower's directory, or to the files beside the weights."""
    assert_judged_alike("A2", *AROUND[what], tmp_path / "case", monkeypatch)


def assert_judged_alike(
    case: str,
    change: Callable[[Path, Path], object],
    is_sound: bool,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = mutant(case, 0, root)
    monkeypatch.chdir(root)
    (tower,) = root.glob("tower-*")
    change(base, tower)
    judged = judge(base)
    assert [not rules for rules in judged.values()] == [is_sound] * 3, judged


def test_verify_looks_around_what_is_opened_and_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = mutant("A2", 0, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    (tower,) = (tmp_path / "case").glob("tower-*")
    change, _ = AROUND["an index with another total_size"]
    change(base, tower)
    opened = open_checkpoint(base)
    assert errors(lambda: verify(opened, device="cpu")) == {"index-total-size"}
    shutil.copytree(tower, tmp_path / "given-siglip")
    change, _ = AROUND["cut weights of the tower"]
    change(base, tmp_path / "given-siglip")
    found = errors(lambda: verify(base, device="cpu", tower=tmp_path / "given-siglip"))
    assert "tower-directory-unreadable" in found


@pytest.mark.parametrize("what", ["cut weights of the tower", "no weights of the tower"])
@pytest.mark.parametrize("trained", [True, False])
def test_a_relative_reads_the_directory_of_its_tower_too(
    what: str, trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever tower wins in the end."""
    change, _ = AROUND[what]
    base = mutant("F12", 0, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    edit_json(base / "config.json", lambda c: c.update(unfreeze_vision_tower=trained))
    (tower,) = (tmp_path / "case").glob("tower-*")
    change(base, tower)
    judged = judge(base)
    assert all(judged.values()), judged


@pytest.mark.parametrize(
    ("change", "is_sound"),
    [
        (lambda _, tower: edit_tower(tower, lambda t, n: t.pop(n)), False),
        (put_in_tower(intermediate_size=7), False),
        (lambda base, _: empty_in_tower(base), True),
    ],
    ids=["a tensor less of the tower", "another size of the tower", "an empty one that is unread"],
)
def test_the_tower_of_a_relatives_directory(
    change: Callable[[Path, Path], object],
    is_sound: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the model's: what is stored is not read."""
    assert_judged_alike("F12", change, is_sound, tmp_path / "case", monkeypatch)


def empty_in_tower(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.startswith("model.vision_tower."))
    tensors[name] = tensors[name][:0]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("keys", "is_sound"),
    [({"mm_patch_merge_type": "x"}, False), ({"mm_audio_encoder": "audio"}, True)],
    ids=["no way to merge tiles", "audio that the family has not"],
)
def test_all_three_judge_the_keys_of_a_relative_alike(
    keys: dict[str, str], is_sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = mutant("F13", 0, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    edit_json(base / "config.json", lambda c: c.update(keys))
    judged = judge(base)
    assert [not rules for rules in judged.values()] == [is_sound] * 3, judged
