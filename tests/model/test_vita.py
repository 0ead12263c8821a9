"""The composed model equals upstream's outputs, kept in memory or streamed from its files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import Spec, TowerSpec, random_fill, write_checkpoint, write_safetensors
from tests.conftest import BASES, GOLDEN
from vita_ckpt import (
    InputError,
    UsageError,
    apply,
    load_model,
    open_checkpoint,
    plan_merge_projector,
)

NOTHING = {"cpu": 0}
LIMIT = 1e-5


def outputs(
    model: Any, inputs: dict[str, torch.Tensor], pixels: torch.Tensor
) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {
            "tower_features": model.vision_tower(pixels),
            "image_features": model.encode_images(pixels),
            "inputs_embeds": model.embed_multimodal(inputs["input_ids"], pixels),
            "logits": model(input_ids=inputs["input_ids"], pixel_values=pixels).logits,
            "text_logits": model(input_ids=inputs["text_input_ids"]).logits,
        }


def compare(case: str, model: Any, prefix: str = "", pixels: str = "pixel_values") -> None:
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    expected = load_file(GOLDEN / case / "expected.safetensors")
    for name, found in outputs(model, inputs, inputs[pixels]).items():
        wanted = expected[f"{prefix}{name}"]
        assert found.shape == wanted.shape, name
        assert found.dtype == torch.float32
        assert (found - wanted).abs().max() < LIMIT, name


@pytest.mark.parametrize("case", BASES[:6])
@pytest.mark.parametrize("memory", [None, NOTHING], ids=["resident", "streamed"])
def test_goldens(case: str, memory: Any) -> None:
    compare(case, load_model(GOLDEN / case / "base", device="cpu", max_memory=memory))


def test_a7_before_and_after_the_merge(tmp_path: Path) -> None:
    case = GOLDEN / "A7"
    compare("A7", load_model(case / "base", device="cpu"), "base_")
    plan = plan_merge_projector(case / "base", case / "mm_projector_fp32")
    compare("A7", load_model(plan.target(), device="cpu"))
    shutil.copytree(case / "tower-internvit", tmp_path / "tower-internvit")
    compare("A7", load_model(apply(plan, tmp_path / "merged"), device="cpu"))


def test_a8_before_and_after_the_swap() -> None:
    case = GOLDEN / "A8"
    compare("A8", load_model(case / "base", device="cpu"), "base_", "base_pixel_values")
    compare("A8", load_model(case / "swapped_by_upstream", device="cpu"))


@pytest.mark.parametrize("case", ["A1", "A4", "A5", "A6"])
@pytest.mark.parametrize("dtype", ["float32", torch.bfloat16])
def test_streamed_is_resident_bit_for_bit(case: str, dtype: Any) -> None:
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    base = GOLDEN / case / "base"
    resident = load_model(base, device="cpu", dtype=dtype)
    streamed = load_model(base, device="cpu", dtype=dtype, max_memory=NOTHING)
    assert (resident.streams, streamed.streams) == (False, True)
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    for _ in range(2):
        one, other = (
            model(input_ids=ids, pixel_values=pixels).logits for model in (resident, streamed)
        )
        assert torch.equal(one, other)
    assert all(parameter.is_meta for parameter in streamed.parameters())


@pytest.mark.parametrize(
    "model_type", ["vita-Qwen2", "vita-fo-Qwen2", "vita-mixtral", "vita-Mistral"]
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_backbone_builds_strictly_and_runs(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    tower = TowerSpec(image_size=8, patch_size=2)
    spec = Spec(model_type=model_type, tied=tied, tower=tower)
    root = write_checkpoint(tmp_path / "c", spec)
    write_tower_config(tmp_path / "tower-internvit", tower)
    logits = [
        load_model(root, device="cpu", max_memory=memory)(
            input_ids=torch.tensor([[1, 2, -200, 3]]), pixel_values=torch.ones(1, 3, 8, 8)
        ).logits
        for memory in (None, NOTHING)
    ]
    assert logits[0].shape == (1, 3 + 4, spec.vocab)
    assert torch.equal(*logits)
    # The state predictor of vita-fo-Qwen2 is built by no released loader.
    parameters = load_model(root, device="cpu").named_parameters()
    assert not [name for name, _ in parameters if "predictor" in name]


def write_tower_config(root: Path, tower: TowerSpec) -> None:
    from fixtures.builder import write_tower

    write_tower(root, tower)


def small(tmp_path: Path, **config: Any) -> Path:
    tower = TowerSpec()
    write_tower_config(tmp_path / "tower-internvit", tower)
    return write_checkpoint(tmp_path / "c", Spec(config=config))


def test_splicing_rows_tiles_padding_and_truncation(tmp_path: Path) -> None:
    root = small(tmp_path)
    model = load_model(root, device="cpu")
    images = torch.randn(4, 3, 8, 8)
    ids = torch.tensor([[1, -200, 2, -200], [3, 4, 5, 6], [-200, 7, 8, 9]])
    embeds = model.embed_multimodal(ids, images)
    features = model.encode_images(images)
    assert embeds.shape == (3, 2 + 8, 16)
    text = model.embed_tokens(torch.arange(10))
    assert torch.equal(embeds[0], torch.cat([text[1:2], features[0], text[2:3], features[1]]))
    assert torch.equal(embeds[1], torch.cat([text[3:7], torch.zeros(6, 16)]))
    assert torch.equal(embeds[2], torch.cat([features[3], text[7:10], torch.zeros(3, 16)]))

    model.config["tokenizer_padding_side"] = "left"
    assert torch.equal(model.embed_multimodal(ids, images)[1, 6:], text[3:7])
    model.config["tokenizer_model_max_length"] = 5
    cut = model.embed_multimodal(ids, images)
    assert cut.shape == (3, 5, 16)
    assert torch.equal(cut[0], embeds[0, :5])

    for wrong in (images[:3], torch.randn(5, 3, 8, 8)):
        with pytest.raises(UsageError, match="images-do-not-fit-placeholders"):
            model.embed_multimodal(ids, wrong)
    for bad in (-200, -500, 32):
        with pytest.raises(UsageError, match="token-out-of-range"):
            model(input_ids=torch.tensor([[1, bad]]))


def test_the_towers_config_is_found_in_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small(tmp_path)
    assert load_model(root, device="cpu").vision_tower is not None  # beside the checkpoint
    os.rename(tmp_path / "tower-internvit", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"tower-config-unknown.*--tower"):
        load_model(root, device="cpu")
    assert load_model(root, device="cpu", tower=tmp_path / "elsewhere").vision_tower is not None
    shutil.copy(tmp_path / "elsewhere" / "config.json", root / "vision_tower_config.json")
    assert load_model(root, device="cpu").vision_tower is not None  # carried along
    (root / "vision_tower_config.json").unlink()
    (tmp_path / "here").mkdir()
    os.rename(tmp_path / "elsewhere", tmp_path / "here" / "tower-internvit")
    monkeypatch.chdir(tmp_path / "here")
    assert load_model(root, device="cpu").vision_tower is not None  # where the command runs


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = small(tmp_path)
    good = load_file(root / "model.safetensors")
    for change, words in (
        ({"model.norm.weight": None}, "model.norm.weight is missing"),
        ({"model.extra": torch.zeros(1)}, "model.extra is unexpected"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.norm.weight is \[3\], not \[16\]"),
    ):
        tensors = {n: t for n, t in {**good, **change}.items() if t is not None}
        save_file(tensors, root / "model.safetensors")
        with pytest.raises(InputError, match=f"weights-do-not-fit.*{words}"):
            load_model(root, device="cpu")


def test_wrong_calls(tmp_path: Path) -> None:
    root = small(tmp_path, model_type="llava")
    with pytest.raises(InputError, match=r"unknown-model-type.*llava.*vita-Qwen2"):
        load_model(root, device="cpu")
    root = write_checkpoint(tmp_path / "d", Spec(config={"mm_projector_type": "spp"}))
    with pytest.raises(InputError, match=r"unknown-projector-type.*spp"):
        load_model(root, device="cpu")
    root = write_checkpoint(tmp_path / "e", Spec())
    with pytest.raises(UsageError, match="unknown-dtype"):
        load_model(root, device="cpu", dtype="int8")
    with pytest.raises(UsageError, match="unknown-device"):
        load_model(root, device="tpux")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no-such-device"):
            load_model(root, device="cuda")


def test_a_checkpoint_without_its_tower_is_refused(tmp_path: Path) -> None:
    root = small(tmp_path)
    tensors = {
        name: (ref.dtype, ref.shape)
        for name, ref in open_checkpoint(root).refs.items()
        if "vision_tower" not in name
    }
    write_safetensors(root / "model.safetensors", tensors, random_fill("F32"))
    with pytest.raises(InputError, match="tower-absent"):
        load_model(root, device="cpu")
