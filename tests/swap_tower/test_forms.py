"""Every form in which a tower comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fixtures.builder import (
    Spec,
    TowerSpec,
    language_model,
    random_fill,
    read_tensors,
    vision_tower,
    write_checkpoint,
    write_processor,
    write_safetensors,
    write_tower,
)
from tests.swap_tower.inputs import tower_at
from vita_ckpt import InputError, apply, plan_swap_tower, verify
from vita_ckpt.core.report import has_errors


class TestForms:
    """Every form in which a tower comes."""

    def swapped(self, base: Path, tower: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
        target = plan_swap_tower(base, tower, projector="reinit", **options).target()
        assert not has_errors(verify(target, device="cpu").findings)
        out = apply(
            plan_swap_tower(base, tower, projector="reinit", **options), tmp_path / "swapped"
        )
        found = read_tensors(Path(out))
        prefix = "model.vision_tower.vision_tower."
        return {n.removeprefix(prefix): v for n, v in found.items() if n.startswith(prefix)}

    def test_bin_and_sharded(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        want = read_tensors(tower / "model.safetensors")
        tensors = load_file(tower / "model.safetensors")
        (tower / "model.safetensors").unlink()
        torch.save(tensors, tower / "pytorch_model.bin")
        assert self.swapped(base, tower, tmp_path) == want
        (tower / "pytorch_model.bin").unlink()
        names = sorted(tensors)
        half = len(names) // 2
        files = {"model-00001-of-00002.safetensors": names[:half]}
        files["model-00002-of-00002.safetensors"] = names[half:]
        for file, some in files.items():
            save_file({n: tensors[n] for n in some}, tower / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: f for f, some in files.items() for n in some}}
        (tower / "model.safetensors.index.json").write_text(json.dumps(index))
        (tmp_path / "swapped").rename(tmp_path / "first")
        assert self.swapped(base, tower, tmp_path) == want

    @pytest.mark.parametrize("family", ["siglip", "clip"])
    def test_the_library_and_its_full_models(self, tmp_path: Path, base: Path, family: str) -> None:
        """As the installed transformers writes it, on either side of 5.6."""
        name = {"siglip": "Siglip", "clip": "CLIP"}[family]
        sizes = {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        }
        text = {
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "vocab_size": 32,
        }
        config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=sizes)
        full = getattr(transformers, f"{name}Model")(config)
        full.save_pretrained(tmp_path / f"full-{family}")
        alone = getattr(transformers, f"{name}VisionModel")(config.vision_config)
        alone.save_pretrained(tmp_path / f"alone-{family}")
        for form in ("full", "alone"):
            spec = TowerSpec(family, image_size=16)
            write_processor(tmp_path / f"{form}-{family}", spec)
        one = self.swapped(base, tmp_path / f"full-{family}", tmp_path)
        (tmp_path / "swapped").rename(tmp_path / "first")
        two = self.swapped(base, tmp_path / f"alone-{family}", tmp_path)
        assert {n: (d, s) for n, (d, s, _) in one.items()} == {
            n: (d, s) for n, (d, s, _) in two.items()
        }
        assert all(n.startswith("vision_model.") for n in one)

    def test_internvl(self, tmp_path: Path, base: Path) -> None:
        spec = TowerSpec("internvit", image_size=16, patch_size=4)
        root = tmp_path / "InternVL-with-internvit"
        root.mkdir()
        shapes = {f"vision_model.{n}": ("F32", s) for n, s in vision_tower(spec).items()}
        language = {f"language_model.{n}": ("F32", s) for n, s in language_model(Spec()).items()}
        other: dict[str, Any] = {**language, "mlp1.0.weight": ("F32", (32,))}
        write_safetensors(root / "model.safetensors", {**shapes, **other}, random_fill("F32"))
        vision = json.loads((write_tower(tmp_path / "t", spec) / "config.json").read_text())
        parent = {"model_type": "internvl_chat", "vision_config": vision, "llm_config": {}}
        (root / "config.json").write_text(json.dumps(parent))
        write_processor(root, spec)
        found = self.swapped(base, root, tmp_path)
        assert found.keys() == vision_tower(spec).keys()

    def test_another_vita_checkpoint(self, tmp_path: Path, base: Path) -> None:
        donor = tmp_path / "donor"
        spec = TowerSpec("clip", image_size=16, patch_size=4)
        write_checkpoint(donor, Spec(tower=spec), seed=5)
        tower_at(tmp_path, "clip", "tower-clip")
        plan = plan_swap_tower(base, donor, projector=donor)
        assert (plan.target().config or {})["mm_vision_tower"] == "tower-clip"
        out = apply(plan, tmp_path / "out")
        found, given = read_tensors(Path(out)), read_tensors(donor)
        for name in given:
            if "vision_tower" in name or "mm_projector" in name:
                assert found[name] == given[name]

    def test_eva_is_a_file(self, tmp_path: Path, base: Path) -> None:
        file = tower_at(tmp_path, "eva")
        for given in (file, file.parent):
            target = plan_swap_tower(base, given, projector="reinit").target()
            assert (target.config or {})["mm_vision_tower"] == str(file)
            assert "model.vision_tower.vision_tower.model.cls_token" in target.tensors
            assert not [n for n in target.tensors if "text" in n]

    def test_eva_in_another_checkpoint_has_no_config_to_carry(
        self, tmp_path: Path, base: Path
    ) -> None:
        donor = write_checkpoint(tmp_path / "donor", Spec(tower=TowerSpec("eva")))
        for given in (None, tower_at(tmp_path, "clip")):
            plan = plan_swap_tower(base, donor, projector="reinit", tower_config=given)
            assert "vision_tower_config.json" not in plan.target().texts

    def test_a_tower_that_was_trained_with_lora(self, tmp_path: Path, base: Path) -> None:
        run = tmp_path / "run"
        run.mkdir()
        (run / "adapter_config.json").write_text("{}")
        (run / "config.json").write_text('{"mm_vision_tower": "openai-clip"}')
        clip = tower_at(tmp_path, "clip")
        tensors = load_file(clip / "model.safetensors")
        below = "base_model.model.model.vision_tower.vision_tower."
        torch.save({below + n: t for n, t in tensors.items()}, run / "non_lora_trainables.bin")
        with pytest.raises(InputError, match="--tower-config"):
            plan_swap_tower(base, run, projector="reinit")
        assert self.swapped(base, run, tmp_path, tower_config=clip) == read_tensors(
            clip / "model.safetensors"
        )

    def test_a_lone_file_beside_its_config(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        assert self.swapped(base, tower / "model.safetensors", tmp_path)

    def test_in_the_dtype_of_the_base(self, tmp_path: Path) -> None:
        root = write_checkpoint(tmp_path / "half", dtype="BF16")
        tower = tower_at(tmp_path, "clip")
        out = apply(plan_swap_tower(root, tower, projector="reinit"), tmp_path / "out")
        assert {dtype for dtype, _, _ in read_tensors(Path(out)).values()} == {"BF16"}
        name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        given = load_file(tower / "model.safetensors")[name].bfloat16()
        stored = load_file(Path(out) / "model.safetensors")
        assert torch.equal(stored[f"model.vision_tower.vision_tower.{name}"], given)
