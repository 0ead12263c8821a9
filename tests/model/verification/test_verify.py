"""verify: every way not to work is found by its rule, on checkpoints made by one change."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tower
from tests.builders import Tensors, change, lively
from tests.conftest import BASES, GOLDEN, golden_cases
from vita_ckpt import InputError, UsageError, verify
from vita_ckpt.model import load as load_module
from vita_ckpt.model.verification import loads as loads_module
from vita_ckpt.model.vita import VitaModel

STREAM: Any = {"cpu": 0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return lively(write_checkpoint(tmp_path / "c"))


def rules(path: Path, **options: Any) -> set[str]:
    return {finding.rule for finding in verify(path, device="cpu", **options).findings}


@pytest.mark.parametrize("case", BASES)
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_goldens_work(case: str, memory: Any) -> None:
    verification = verify(GOLDEN / case / "base", device="cpu", max_memory=memory)
    assert verification.findings == ()
    assert verification.streamed == (memory is not None)
    assert verification.tokens_per_image in (4, 9, 16)
    assert verification.peak_memory > 0


RELATIVES = golden_cases(*(f"F{number}" for number in range(1, 18)))


@pytest.mark.parametrize("case", RELATIVES, ids=lambda case: case.name)
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_goldens_of_relatives_work(case: Path, memory: Any) -> None:
    root = next(place for name in ("base", "merged_by_upstream") if (place := case / name).is_dir())
    tower = case / (case / "tower").read_text().strip()
    verification = verify(root, device="cpu", tower=tower, max_memory=memory)
    assert verification.findings == ()
    assert verification.streamed == (memory is not None)
    # In tiles: the smallest grid is of two of them, each of whose 8 rows ends in a newline.
    tiled = {"F3": 16 + 40, "F13": 16 + 40}
    assert verification.tokens_per_image == tiled.get(case.name, 17 if case.name == "F2" else 16)


@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_a_newline_that_was_never_set_is_found(tmp_path: Path, memory: Any) -> None:
    (case,) = golden_cases("F13")
    shutil.copytree(case / "base", tmp_path / "base")
    for file in (tmp_path / "base").iterdir():
        file.chmod(0o644)

    def forget(tensors: Tensors) -> None:
        tensors["model.image_newline"].fill_(torch.nan)

    change(tmp_path / "base", forget)
    found = rules(tmp_path / "base", tower=case / "tower-siglip", max_memory=memory)
    assert found >= {"weight-not-finite", "activation-not-finite", "logits-not-finite"}


def fill(name: str, value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[name].fill_(value)


def zero_projector(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if "mm_projector" in name:
            tensor.zero_()


def dead_weights(tensors: Tensors) -> None:
    tensors["model.mm_projector.2.weight"].zero_()


def text_is_lost(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][:] = tensors["model.embed_tokens.weight"][0].clone()


def huge_weight(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = 70000.0


def huge_row(tensors: Tensors) -> None:
    tensors["model.embed_tokens.weight"][2] = 70000.0  # no input has this token


def huge_activation(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(60000.0)


BROKEN: dict[str, tuple[Callable[[Tensors], object], set[str], str]] = {
    "missing": (lambda t: t.pop("model.norm.weight"), {"missing-tensor"}, "model.norm.weight"),
    "unexpected": (lambda t: t.update(x=torch.zeros(1)), {"unexpected-tensor"}, "x"),
    "shape": (
        lambda t: t.update({"model.norm.weight": torch.zeros(3)}),
        {"shape-mismatch"},
        "model.norm.weight",
    ),
    "zero projector": (zero_projector, {"image-ignored"}, "logits"),
    "dead projector": (dead_weights, {"image-ignored"}, "logits"),
    "text": (text_is_lost, {"text-ignored"}, "logits"),
    "nan": (
        fill("model.norm.weight", float("nan")),
        {"logits-not-finite", "weight-not-finite", "activation-not-finite"},
        "model.norm.weight",
    ),
    "weight": (huge_weight, {"float16-weight"}, "model.layers.0.mlp.down_proj.weight"),
    "row": (huge_row, {"float16-weight"}, "model.embed_tokens.weight"),
    "activation": (huge_activation, {"float16-activation"}, "model.layers.0.mlp.up_proj"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_each_way_not_to_work_is_found(root: Path, name: str, memory: Any) -> None:
    edit, expected, subject = BROKEN[name]
    change(root, edit)
    findings = verify(root, device="cpu", max_memory=memory).findings
    assert expected <= {finding.rule for finding in findings}
    assert {f.rule for f in findings} <= expected | {"float16-activation"}
    assert any(finding.subject == subject for finding in findings)
    assert all(finding.severity == "error" for finding in findings)


def test_the_ends_of_the_model_are_looked_at(root: Path) -> None:
    def grow(tensors: Tensors) -> None:
        tensors["model.embed_tokens.weight"][11] = 70000.0  # the first token of every row
        tensors["lm_head.weight"].fill_(30000.0)

    change(root, grow)
    resident, streamed = (
        verify(root, device="cpu", max_memory=memory).findings for memory in (None, STREAM)
    )
    assert resident == streamed
    activations = {f.subject for f in streamed if f.rule == "float16-activation"}
    assert {"model.embed_tokens", "lm_head"} <= activations


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_no_pass_needs_are_looked_at_too(tmp_path: Path, tied: bool) -> None:
    """Streamed and resident find the same: rows of the table, experts, a tower's last layer."""
    write_tower(tmp_path / "tower-clip", tower := TowerSpec("clip", image_size=8))
    spec = Spec(model_type="vita-mixtral", experts=64, tower=tower, tied=tied, projector="linear")
    root = lively(write_checkpoint(tmp_path / "c", spec))
    subjects = {
        "model.embed_tokens.weight",
        "model.layers.0.block_sparse_moe.experts.63.w2.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
    }

    def grow(tensors: Tensors) -> None:
        tensors["model.layers.0.block_sparse_moe.gate.weight"][63] = 0.0  # chosen by no token
        for subject in subjects:
            tensors[subject][2] = 70000.0

    change(root, grow)
    resident, streamed = (
        verify(root, device="cpu", max_memory=memory).findings for memory in (None, STREAM)
    )
    assert resident == streamed
    assert {f.subject for f in streamed if f.rule == "float16-weight"} == subjects


def test_a_small_difference_between_images_is_enough(root: Path) -> None:
    """A projector that has just begun to learn matters: what counts is more than noise."""
    change(root, lambda t: t["model.mm_projector.2.weight"].mul_(1e-3))
    assert rules(root) == set()


@pytest.mark.parametrize("case", ["A1", "A4"])
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_a_checkpoint_has_its_own_text(case: str, memory: Any) -> None:
    base = GOLDEN / case / "base"
    assert rules(base, against=base, max_memory=memory) == set()


def test_against_a_base(root: Path, tmp_path: Path) -> None:
    other = lively(write_checkpoint(tmp_path / "other"))
    change(other, lambda t: t["model.mm_projector.0.weight"].mul_(2))
    assert rules(other, against=root) == set()
    change(other, lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    assert rules(other, against=root) == {"language-changed"}
    assert rules(write_checkpoint(tmp_path / "wide", Spec(vocab=40)), against=root) == {
        "language-changed"
    }


@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_two_models_are_never_held_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    """A GPU that holds one model need not hold the base as well, or a float16 copy."""
    held: list[int] = []
    load = load_module.load_bound

    def counted(*arguments: Any, **options: Any) -> Any:
        held.append(sum(type(one) is VitaModel for one in gc.get_objects()))
        return load(*arguments, **options)

    gc.collect()
    for module in (load_module, loads_module):
        monkeypatch.setattr(module, "load_bound", counted)
    assert rules(root, against=root, max_memory=memory) == set()
    assert len(held) == 2
    assert held[0] == held[1]


def test_goldens_of_our_own(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    (root / "config.json").chmod(0o600)
    assert rules(root, save_golden=file) == set()
    assert file.stat().st_mode & 0o077 == 0
    assert rules(root, golden=file) == set()
    assert rules(root, golden=file, max_memory=STREAM) == set()
    change(root, lambda t: t["model.mm_projector.0.weight"].mul_(1.5))
    assert rules(root, golden=file) == {"golden-mismatch"}
    with pytest.raises(UsageError, match="output-exists"):
        verify(root, device="cpu", save_golden=file)
    good = json.loads(file.read_text())
    del good["rows"]["image"]
    file.write_text(json.dumps(good))
    assert rules(root, golden=file) == {"golden-mismatch"}
    bad: Any
    for bad in (
        [],
        {},
        {**good, "rows": {"text": {"ids": [[1], [2, 3]], "values": [[1.0], [2.0]]}}},
        {**good, "rows": {"text": {"ids": [[-1]], "values": [[1.0]]}}},
    ):
        file.write_text(json.dumps(bad))
        with pytest.raises(InputError, match=r"invalid-golden|invalid-json"):
            verify(root, device="cpu", golden=file)


def test_bf16_and_sizes_of_memory(root: Path) -> None:
    assert rules(root, dtype="bfloat16") == set()
    assert rules(root, max_memory={"cpu": "1GB"}) == set()
    with pytest.raises(UsageError, match="invalid-max-memory"):
        verify(root, device="cpu", max_memory={"cpu": "much"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", BASES)
def test_goldens_work_on_a_gpu(case: str) -> None:
    verification = verify(GOLDEN / case / "base", device="cuda")
    assert verification.findings == ()
