"""Towers, language models and training runs that go into a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    language_model,
    mm_projector,
    random_fill,
    vision_tower,
    write_checkpoint,
    write_safetensors,
    write_tower,
)
from tests.conftest import GOLDEN

FAMILIES = ("siglip", "clip", "internvit", "eva")
A8 = GOLDEN / "A8"


def tower_at(root: Path, family: str, name: str = "", **sizes: Any) -> Path:
    """A standalone tower as it is published: an EVA one is a file with its text half."""
    spec = TowerSpec(family, image_size=16, patch_size=4, **sizes)
    path = root / (name or f"new-tower-{family}")
    if family != "eva":
        write_tower(path, spec, seed=7)
        (path / "preprocessor_config.json").write_text('{"crop_size": 16}\n')
        return path
    path.mkdir()
    shapes = {f"visual.{n}": ("F32", s) for n, s in vision_tower(spec).items()}
    file = path / "eva_clip.safetensors"
    write_safetensors(file, {**shapes, "text.ln_final.weight": ("F32", (4,))}, random_fill("F32"))
    return file


def config_of(root: str | Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(root) / "config.json").read_text())
    return config


def plain_model(root: Path, model_type: str = "vita-Qwen2", **options: Any) -> Path:
    """Write a language model without a tower, as transformers names it."""
    spec = Spec(model_type=model_type, **options)
    write_checkpoint(root, spec)
    tensors = load_file(root / "model.safetensors")
    kept = language_model(spec).keys()
    save_file({n: t for n, t in tensors.items() if n in kept}, root / "model.safetensors")
    config = {k: v for k, v in config_of(root).items() if not k.startswith(("mm_", "use_"))}
    config.pop("unfreeze_vision_tower")
    plain_type = {"vita-Qwen2": "qwen2", "vita-mixtral": "mixtral", "vita-Mistral": "mistral"}
    config |= {"model_type": plain_type[model_type], "architectures": ["PlainForCausalLM"]}
    (root / "config.json").write_text(json.dumps(config))
    return root


def run_at(root: Path, **config: Any) -> Path:
    """Write what a training run of a projector alone leaves."""
    root.mkdir()
    shapes = {f"model.mm_projector.{n}": s for n, s in mm_projector("linear", 8, 16).items()}
    torch.save({n: torch.randn(s) for n, s in shapes.items()}, root / "mm_projector.bin")
    values = {
        "model_type": "vita-fo-Qwen2",
        "mm_projector_type": "linear",
        "mm_vision_tower": "/home/somebody/clip-vit",
        "mm_hidden_size": 8,
        "hidden_size": 16,
        "image_aspect_ratio": "pad",
        "continuous_training": True,
        "tokenizer_model_max_length": 77,
        "mm_audio_encoder": "audio",
        **config,
    }
    (root / "config.json").write_text(json.dumps(values))
    return root
