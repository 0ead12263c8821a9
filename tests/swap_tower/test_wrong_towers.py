"""Towers that do not go in, refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.builder import TowerSpec, write_checkpoint, write_tower
from tests.swap_tower.inputs import FAMILIES, config_of, plain_model, tower_at
from vita_ckpt import InputError, plan_swap_tower


class TestWrongTowers:
    @pytest.fixture
    def refused(self, base: Path, tmp_path: Path) -> Any:
        def refuse(tower: Path, code: str, **options: Any) -> InputError:
            with pytest.raises(InputError) as raised:
                plan_swap_tower(base, tower, projector="reinit", **options)
            assert raised.value.code == code, raised.value
            return raised.value

        return refuse

    def test_a_text_model(self, tmp_path: Path, refused: Any) -> None:
        error = refused(plain_model(tmp_path / "qwen"), "unknown-tower")
        assert "qwen2" in error.got

    def test_a_truncated_file(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        data = (tower / "model.safetensors").read_bytes()
        (tower / "model.safetensors").write_bytes(data[:-10])
        refused(tower, "truncated-file")

    def test_without_a_config(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        config = (tower / "config.json").rename(tmp_path / "elsewhere.json")
        refused(tower, "tower-config-unknown")
        refused(tower, "tower-config-mismatch", tower_config=tmp_path / "tower-internvit")
        assert plan_swap_tower(
            tmp_path / "base", tower, projector="reinit", tower_config=config
        ).edits

    def test_with_tensors_missing_or_too_many(self, tmp_path: Path, refused: Any) -> None:
        for family in FAMILIES:
            path = tower_at(tmp_path, family)
            file = path if family == "eva" else path / "model.safetensors"
            tensors = load_file(file)
            name = next(n for n in sorted(tensors) if "norm2.bias" in n)
            gone = tensors.pop(name)
            save_file(tensors, file)
            refused(path, "weights-do-not-fit")
            save_file(tensors | {name: gone[:2].clone()}, file)
            refused(path, "weights-do-not-fit")

    def test_a_path_that_misleads(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "internvit", "design-of-internvit")
        error = refused(tower, "tower-path-misleads")
        assert "--tower-path" in error.hint
        refused(tower, "tower-path-misleads", tower_path="/somewhere/clip")
        refused(tower_at(tmp_path, "clip", "vision"), "tower-path-misleads")
        plan = plan_swap_tower(
            tmp_path / "base", tower, projector="reinit", tower_path="/data/InternViT-300M"
        )
        assert (plan.target().config or {})["mm_vision_tower"] == "/data/InternViT-300M"

    def test_eva_without_its_rotary_buffers(self, tmp_path: Path, refused: Any) -> None:
        file = tower_at(tmp_path, "eva")
        save_file({n: t for n, t in load_file(file).items() if "rope" not in n}, file)
        assert "rope" in refused(file, "weights-do-not-fit").expected

    def test_a_checkpoint_whose_tower_is_out_of_reach(self, tmp_path: Path, refused: Any) -> None:
        donor = write_checkpoint(tmp_path / "elsewhere" / "donor")
        assert "--tower-config" in refused(donor, "tower-config-unknown").hint

    def test_an_odd_grid(self, tmp_path: Path, refused: Any) -> None:
        spec = TowerSpec("internvit", image_size=12, patch_size=4)
        refused(write_tower(tmp_path / "odd-internvit", spec), "odd-patch-grid")

    def test_a_config_that_asks_for_too_much(self, tmp_path: Path, refused: Any) -> None:
        tower = tower_at(tmp_path, "clip")
        config = config_of(tower)
        for key, value, code in (
            ("num_hidden_layers", 1_000_000, "tower-config-mismatch"),
            ("intermediate_size", "16", "unsupported-tower-config"),
            ("intermediate_size", 17, "weights-do-not-fit"),
            ("image_size", 3, "unsupported-tower-config"),
            ("num_attention_heads", 3, "unsupported-tower-config"),
        ):
            (tower / "config.json").write_text(json.dumps(config | {key: value}))
            refused(tower, code)

    def test_eva_tensors_that_ask_for_too_much(self, tmp_path: Path, refused: Any) -> None:
        """EVA's sizes are read from its tensors, so those are what is not believed."""
        file = tower_at(tmp_path, "eva")
        tensors = load_file(file)
        kernel = "visual.patch_embed.proj.weight"
        for name, shape, code in (
            ("visual.blocks.999999.x", (1,), "unsupported-tower-config"),
            (kernel, (8, 3, 0, 0), "unknown-tower"),
            (kernel, (0, 3, 4, 4), "unknown-tower"),
        ):
            save_file(tensors | {name: torch.zeros(shape)}, file)
            refused(file, code)
