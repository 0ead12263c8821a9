"""Models of VITA's relatives equal upstream's outputs, kept in memory or streamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DynamicCache

from tests.conftest import GOLDEN, golden_cases
from vita_ckpt import InputError, UsageError
from vita_ckpt.core.anatomy.language_tensors import expected_shapes
from vita_ckpt.model.load import load_model

NOTHING = {"cpu": 0}
LIMIT = 1e-5  # of the largest value
CASES = golden_cases(*(f"F{number}" for number in range(1, 18)))


def checkpoints(case: Path) -> list[tuple[str, str, str]]:
    """The checkpoints of a case, with the tower of each and the prefix of what it must give."""
    facts = json.loads((case / "case.json").read_text())
    tower = (case / "tower").read_text().strip()
    if (case / "swapped_by_upstream").is_dir():
        swapped = ("swapped_by_upstream", facts["new_tower"], "")
        return [("base", tower, "base_"), swapped]
    names = ("base", "merged_by_upstream")
    return [(name, tower, "") for name in names if (case / name).is_dir()]


MODELS = [(case, *one) for case in CASES for one in checkpoints(case)]
IDS = [f"{case.name}-{name}" for case, name, *_ in MODELS]


def options(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: inputs[name] for name in ("tiles_per_image", "image_sizes") if name in inputs}


def outputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    pixels, ids = inputs["pixel_values"], inputs["input_ids"]
    tiles = options(inputs)
    with torch.no_grad():
        found = {
            "tower_features": model.vision_tower(pixels),
            "image_features": model.encode_images(pixels),
            "inputs_embeds": model.embed_multimodal(ids, pixels, **tiles),
            "logits": model(input_ids=ids, pixel_values=pixels, **tiles).logits,
            "text_logits": model(input_ids=inputs["text_input_ids"]).logits,
        }
        if tiles:
            found["merged_features"] = torch.cat(model.image_tokens(pixels, **tiles))
    return found


@pytest.mark.parametrize(("case", "name", "tower", "prefix"), MODELS, ids=IDS)
@pytest.mark.parametrize("memory", [None, NOTHING], ids=["resident", "streamed"])
def test_goldens(case: Path, name: str, tower: str, prefix: str, memory: Any) -> None:
    """The tower wins that upstream's does: in each frozen case its directory's differs."""
    model = load_model(
        case / name, device="cpu", dtype="float32", tower=case / tower, max_memory=memory
    )
    assert model.streams == (memory is NOTHING)
    expected = load_file(case / "expected.safetensors")
    for what, found in outputs(model, load_file(case / "inputs.safetensors")).items():
        wanted = expected[prefix + what]
        assert found.shape == wanted.shape, what
        assert (found - wanted).abs().max() < LIMIT * wanted.abs().max(), what


@pytest.mark.parametrize("case", golden_cases("F17"), ids=lambda case: case.name)
def test_a_swap_on_the_live_model_is_upstreams(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case)
    live = load_model("base", device="cpu")
    swapped = load_model("swapped_by_upstream", device="cpu", tower="tower-clip48")
    arguments = {
        "vision_tower": "tower-clip48",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "pretrain_mm_mlp_adapter": next(Path("new_projector").glob("*.bin")),
    }
    live.initialize_vision_modules(arguments)
    expected = load_file("expected.safetensors")
    for what, found in outputs(live, load_file("inputs.safetensors")).items():
        assert (found - expected[what]).abs().max() < LIMIT * expected[what].abs().max(), what
    for key in ("mm_vision_tower", "mm_hidden_size", "mm_projector_type"):
        assert live.config[key] == swapped.config[key]
    assert set(live.stored_names().values()) == set(swapped.stored_names().values())


def as_family(root: Path, case: str, config: dict[str, Any], **tensors: Tensor) -> Path:
    """A VITA case under the names of another family, which has the same modules."""
    root.mkdir()
    weights: dict[str, Tensor] = {}
    for file in (GOLDEN / case / "base").glob("*.safetensors"):
        weights |= load_file(file)
    kept = {name: tensor for name, tensor in weights.items() if "audio" not in name}
    save_file({**kept, **tensors}, root / "model.safetensors", {"format": "pt"})
    own = json.loads((GOLDEN / case / "base" / "config.json").read_text())
    del own["architectures"]
    kept_keys = {key: value for key, value in own.items() if "audio" not in key}
    tower = str(GOLDEN / case / str(own["mm_vision_tower"]))
    text = json.dumps({**kept_keys, "mm_vision_tower": tower, **config})
    (root / "config.json").write_text(text)
    return root


BUNNY = {"model_type": "bunny-qwen2", "unfreeze_vision_tower": True}
NEXT = {
    "model_type": "llava_qwen",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_newline_position": "grid",
}


@pytest.mark.parametrize("config", [BUNNY, NEXT], ids=["bunny", "llava-next"])
def test_the_same_modules_give_the_same_logits(tmp_path: Path, config: dict[str, Any]) -> None:
    inputs = load_file(GOLDEN / "A3" / "inputs.safetensors")
    expected = load_file(GOLDEN / "A3" / "expected.safetensors")
    model = load_model(as_family(tmp_path / "c", "A3", config), device="cpu")
    for name, found in outputs(model, inputs).items():
        assert (found - expected[name]).abs().max() < LIMIT * expected[name].abs().max(), name


def test_a_frozen_tower_is_its_directorys(tmp_path: Path) -> None:
    """Bunny's directory wins, and is needed even though the checkpoint has a tower."""
    root = as_family(tmp_path / "c", "A1", {**BUNNY, "mm_vision_tower": "gone-clip"})
    config = json.loads((root / "config.json").read_text()) | {"unfreeze_vision_tower": False}
    (root / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tower-path-unreachable.*gone-clip.*--tower"):
        load_model(root, device="cpu")
    own = as_family(tmp_path / "d", "A3", {**BUNNY, "unfreeze_vision_tower": False})
    directory = tmp_path / "another-clip"
    shutil.copytree(GOLDEN / "A3" / "tower-clip", directory)
    file = directory / "model.safetensors"
    tensors = {name: tensor + 0.5 for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    model: Any = load_model(own, device="cpu", tower=directory)
    state = model.vision_tower.state_dict()
    name = "embeddings.class_embedding"
    stored = next(tensor for key, tensor in state.items() if key.endswith(name))
    assert torch.equal(stored, next(t for key, t in tensors.items() if key.endswith(name)))


def spliced(model: Any, ids: list[list[int]], images: int) -> Tensor:
    pixels = torch.randn(6, 3, 42, 42, generator=torch.Generator().manual_seed(0))[:images]
    embeds: Tensor = model.embed_multimodal(torch.tensor(ids), pixels)
    return embeds


@torch.inference_mode()
def test_too_many_and_too_few_images(tmp_path: Path) -> None:
    bunny, after = (
        load_model(as_family(tmp_path / name, "A3", config), device="cpu")
        for name, config in (("b", BUNNY), ("n", NEXT))
    )
    ids = [[1, -200, 2], [3, -200, -200]]
    for model in (bunny, after):
        exact = spliced(model, ids, 3)
        assert torch.equal(spliced(model, ids, 5), exact)
        with pytest.raises(UsageError, match="images-do-not-fit-placeholders"):
            spliced(model, ids, 1)
    with pytest.raises(UsageError, match="images-do-not-fit-placeholders"):
        spliced(bunny, ids, 2)
    # The last image stands for the one that is missing, unless a row without any takes it.
    tokens = (spliced(after, ids, 3).shape[1] - 1) // 2
    found, exact = spliced(after, ids, 2), spliced(after, ids, 3)
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[1, : 1 + tokens], exact[1, : 1 + tokens])
    assert torch.equal(found[1, 1 + tokens :], exact[1, 1 : 1 + tokens])
    with pytest.raises(UsageError, match="images-do-not-fit-placeholders"):
        spliced(after, [[1, -200, 2], [3, 4, 5]], 1)


@torch.inference_mode()
def test_tiles_and_videos_of_a_call(tmp_path: Path) -> None:
    newline = torch.arange(64) + 7.0
    pinpoints = [[42, 84], [84, 42]]
    config = {
        **NEXT,
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": pinpoints,
        "mm_spatial_pool_mode": "max",
    }
    root = as_family(tmp_path / "c", "A3", config, **{"model.image_newline": newline})
    resident = load_model(root, device="cpu")
    streamed = load_model(root, device="cpu", max_memory=NOTHING)
    pixels = torch.randn(5, 3, 42, 42, generator=torch.Generator().manual_seed(0))
    features = resident.encode_images(pixels)
    for model in (resident, streamed):
        # Two tiles below the whole image, a plain image of one tile; each row ends in a newline.
        tall, plain = model.image_tokens(pixels[:4], [3, 1], [[42, 84], [42, 42]])
        rows = features[1:3].reshape(6, 3, -1)
        lines = torch.cat([rows, newline.expand(6, 1, 64)], 1).flatten(0, 1)
        assert torch.equal(tall, torch.cat([features[0], lines]))
        assert torch.equal(plain, torch.cat([features[3], newline[None]]))
        listed = model.image_tokens([pixels[:3], pixels[3]], image_sizes=[(42, 84), (42, 42)])
        assert all(map(torch.equal, listed, (tall, plain)))

        (video,) = model.image_tokens(pixels, [5], modalities=["video"])
        pooled = features.reshape(5, 3, 3, 64)[:, :2, :2].amax((1, 2))
        assert torch.equal(video, torch.stack([pooled, newline.expand(5, 64)], 1).flatten(0, 1))

        ids = torch.tensor([[1, -200, 2, -200]])
        logits = model(
            input_ids=ids,
            pixel_values=pixels[:4],
            tiles_per_image=torch.tensor([3, 1]),
            image_sizes=torch.tensor([[42, 84], [42, 42]]),
        ).logits
        assert logits.shape[1] == 2 + len(tall) + len(plain)
    for counts, sizes in (([3, 3], None), ([5, 0], None), ([5], [[1, 2], [3, 4]]), ([5], [[0, 4]])):
        with pytest.raises(UsageError, match="tiles-do-not-fit-images"):
            resident.image_tokens(pixels, counts, sizes)


SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
EXPERTS = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "decoder_sparse_step": 2,
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "Llama": {"model_type": "llava_llama"},
    "Gemma": {"model_type": "llava_gemma", "head_dim": 16},
    "Qwen2Moe": {"model_type": "llava_qwen_moe", **EXPERTS},
    "Phi": {"model_type": "bunny-phi"},
    "Phi3": {"model_type": "bunny-phi3"},
    "StableLm": {"model_type": "bunny-stablelm"},
}


def without_vision(root: Path, name: str) -> Path:
    """A checkpoint of a language model alone, under a family's own model type."""
    config = SMALL | LANGUAGE_MODELS[name]
    generator = torch.Generator().manual_seed(1)
    shapes = expected_shapes(name, config)
    weights = {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}
    root.mkdir()
    save_file(weights, root / "model.safetensors", {"format": "pt"})
    (root / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("memory", [None, NOTHING], ids=["resident", "streamed"])
@torch.inference_mode()
def test_stages_and_steps_are_the_model_bit_for_bit(tmp_path: Path, name: str, memory: Any) -> None:
    root = without_vision(tmp_path / "c", name)
    whole = load_model(root, device="cpu")
    ids = torch.arange(14).reshape(2, 7) * 3 % 40
    expected = whole(input_ids=ids).logits
    assert expected.std() > 0.1
    models = [load_model(root, device="cpu", max_memory=memory, stage=(n, 2)) for n in (0, 1)]
    caches = [DynamicCache() for _ in models]

    def hand_on(hidden: Tensor, cache: Any) -> Tensor:
        last: Tensor = models[1].hidden_of(hidden, caches[1] if cache is not None else None)
        logits: Tensor = models[1].language_model.lm_head(last)
        return logits.float()

    models[0].later = hand_on  # type: ignore[assignment]
    assert torch.equal(models[0](input_ids=ids).logits, expected)
    # A token at a time, with the keys and values of those before.
    cache = DynamicCache()
    for place in range(3):
        token = ids[:, place : place + 1]
        step = whole.logits_of(whole.embed_tokens(token), cache)
        found = models[0].logits_of(models[0].embed_tokens(token), caches[0])
        assert torch.equal(found, step)
        assert torch.allclose(step[:, -1], expected[:, place], atol=1e-4)


def test_a_language_model_that_is_not_built(tmp_path: Path) -> None:
    root = without_vision(tmp_path / "c", "Llama")
    config = json.loads((root / "config.json").read_text()) | {"model_type": "bunny-minicpm"}
    (root / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"language-model-not-built.*MiniCPM.*but verify"):
        load_model(root, device="cpu")


@torch.inference_mode()
def test_features_and_newline_of_a_live_model(tmp_path: Path) -> None:
    live: Any = load_model(as_family(tmp_path / "c", "A3", NEXT), device="cpu")
    arguments = {
        "vision_tower": str(GOLDEN / "A3" / "tower-clip"),
        "mm_vision_select_feature": "cls_patch",
        "mm_patch_merge_type": "spatial_unpad",
    }
    live.initialize_vision_modules(arguments)
    # The default projector of this family is linear, as A3's is.
    assert live.config["mm_projector_type"] == "linear"
    assert live.config["mm_vision_select_feature"] == "cls_patch"
    (tokens,) = live.image_tokens(torch.randn(1, 3, 42, 42), [1])
    assert len(tokens) == 9 + 1 + 1
    assert 0 < live.image_newline.weight.std() < 1
    # Any path that exists is taken for CLIP.
    siglip = {"vision_tower": str(GOLDEN / "A2" / "tower-siglip")}
    with pytest.raises(InputError, match=r"tower-path-misleads.*CLIPVisionTower"):
        live.initialize_vision_modules(siglip)
    live.initialize_vision_modules({**arguments, "mm_patch_merge_type": "flat"})
    assert live.image_newline is None
