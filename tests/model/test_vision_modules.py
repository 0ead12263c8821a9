"""initialize_vision_modules on a live model: right where upstream keeps what it should replace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    random_fill,
    vision_tower,
    write_checkpoint,
    write_safetensors,
    write_tower,
)
from tests.conftest import GOLDEN
from vita_ckpt import AdapterError, InputError, load_model
from vita_ckpt.core.anatomy.projectors import Projector, expected_shapes

TYPES = ("linear", "mlp2x_gelu", "sppv1", "ldp", "vanilla", "minigpt", "identity")
FAMILIES = ("siglip", "clip", "internvit", "eva")


def arguments(
    tower: object, kind: str = "mlp2x_gelu", adapter: Any = None, **more: Any
) -> SimpleNamespace:
    return SimpleNamespace(
        vision_tower=str(tower), mm_projector_type=kind, pretrain_mm_mlp_adapter=adapter, **more
    )


def tower_at(root: Path, family: str) -> Path:
    spec = TowerSpec(family, image_size=16, patch_size=4)
    path = root / f"new-tower-{family}"
    if family != "eva":
        return write_tower(path, spec)
    path.mkdir()
    shapes = {f"visual.{n}": ("F32", s) for n, s in vision_tower(spec).items()}
    file = path / "eva_clip.safetensors"
    write_safetensors(file, {**shapes, "text.ln_final.weight": ("F32", (4,))}, random_fill("F32"))
    return file


@pytest.fixture
def model(tmp_path: Path) -> Any:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return load_model(write_checkpoint(tmp_path / "c"), device="cpu")


def test_a8_on_the_live_model_is_upstreams_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream itself keeps the old tower here (case.json records it)."""
    case = GOLDEN / "A8"
    monkeypatch.chdir(case)
    live = load_model("base", device="cpu")
    live.initialize_vision_modules(
        arguments("tower-internvit", adapter="new_projector/mm_projector.bin", use_s2=False)
    )
    inputs, expected = load_file("inputs.safetensors"), load_file("expected.safetensors")
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        assert live.vision_tower is not None
        assert (live.vision_tower(pixels) - expected["tower_features"]).abs().max() < 1e-5
        logits = live(input_ids=inputs["input_ids"], pixel_values=pixels).logits
    assert (logits - expected["logits"]).abs().max() < 1e-5
    swapped = load_model("swapped_by_upstream", device="cpu")
    assert set(live.stored_names().values()) == set(swapped.stored_names().values())
    for key in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "use_mm_proj", "use_s2"):
        assert live.config[key] == swapped.config[key]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TYPES)
def test_every_family_and_type(model: Any, tmp_path: Path, family: str, kind: str) -> None:
    model.initialize_vision_modules(arguments(tower_at(tmp_path, family), kind))
    config = model.config
    assert config["mm_hidden_size"] == model.vision_tower.hidden_size
    assert config["mm_projector_type"] == kind
    shapes = {n: tuple(t.shape) for n, t in model.mm_projector.state_dict().items()}
    assert shapes == expected_shapes(Projector(kind, config["mm_hidden_size"], 16))
    assert not any(p.requires_grad for p in model.vision_tower.parameters())
    assert all(p.requires_grad for p in model.mm_projector.parameters())
    if kind != "identity":  # of another width it leads nowhere, upstream as here
        assert model.encode_images(torch.zeros(1, 3, 16, 16)).shape[-1] == 16


def test_what_does_not_change_is_kept(model: Any) -> None:
    tower, projector = model.vision_tower, model.mm_projector
    model.initialize_vision_modules(arguments("tower-internvit"))
    assert (model.vision_tower, model.mm_projector) == (tower, projector)
    model.initialize_vision_modules(arguments("tower-internvit", "linear"))
    assert model.vision_tower is tower
    assert model.mm_projector is not projector


def test_types_with_the_same_tensors_are_rebuilt_all_the_same(model: Any) -> None:
    model.initialize_vision_modules(arguments("tower-internvit", "sppv1"))
    first = model.mm_projector
    model.initialize_vision_modules(arguments("tower-internvit", "sppv2"))
    assert model.mm_projector is not first


def test_delay_load_builds_the_config_only(model: Any, tmp_path: Path) -> None:
    model.initialize_vision_modules(arguments(tower_at(tmp_path, "siglip")), delay_load=True)
    assert all(p.is_meta for p in model.vision_tower.parameters())
    assert model.config["mm_hidden_size"] == 8


def test_s2(model: Any, tmp_path: Path) -> None:
    tower = tower_at(tmp_path, "siglip")
    model.initialize_vision_modules(arguments(tower, use_s2=True, s2_scales="16,32"))
    assert (model.config["mm_hidden_size"], model.config["s2_scales"]) == (16, "16,32")
    with pytest.raises(InputError):
        model.initialize_vision_modules(arguments(tower_at(tmp_path, "clip"), use_s2=True))


def test_an_adapter_takes_the_models_dtype(model: Any, tmp_path: Path) -> None:
    values = {n: torch.randn(s).bfloat16() for n, s in mm_projector("mlp2x_gelu", 32, 16).items()}
    file = tmp_path / "mm_projector.bin"
    torch.save({f"model.mm_projector.{n}": t for n, t in values.items()}, file)
    model.initialize_vision_modules(arguments("tower-internvit", adapter=file))
    for name, tensor in model.mm_projector.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, values[name].float())


def test_what_does_not_fit_leaves_the_model_as_it_was(model: Any, tmp_path: Path) -> None:
    before = (model.vision_tower, model.mm_projector, dict(model.config))
    wrong = tmp_path / "mm_projector.bin"
    torch.save({"mm_projector.0.weight": torch.zeros(3, 3)}, wrong)
    misleading = write_tower(tmp_path / "design" / "InternViT", TowerSpec())
    odd = tower_at(tmp_path, "siglip")
    tensors = load_file(odd / "model.safetensors")
    tensors.pop("vision_model.post_layernorm.weight")
    save_file(tensors, odd / "model.safetensors")
    for given, error, code in (
        (arguments("tower-internvit", adapter=wrong), AdapterError, "projector-shape-mismatch"),
        (arguments(misleading), InputError, "tower-path-misleads"),
        (arguments(odd), InputError, "weights-do-not-fit"),
        (arguments(tmp_path / "nowhere"), InputError, "not-found"),
        (arguments("tower-internvit", "mlp"), InputError, "unknown-projector-type"),
    ):
        with pytest.raises(error) as raised:
            model.initialize_vision_modules(given)
        assert raised.value.code == code
        assert (model.vision_tower, model.mm_projector, model.config) == before


def test_a_streamed_model_gets_modules_that_can_be_trained(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    root = write_checkpoint(tmp_path / "c", Spec())
    streamed = load_model(root, device="cpu", max_memory={"cpu": 0})
    streamed.initialize_vision_modules(arguments(tower_at(tmp_path, "clip"), "linear"))
    ids = torch.tensor([[1, -200, 2]])
    assert streamed(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape[1] == 2 + 16
