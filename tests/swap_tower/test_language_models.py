"""A tower for a plain language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.swap_tower.inputs import config_of, plain_model, run_at, tower_at
from vita_ckpt import (
    InputError,
    UsageError,
    apply,
    inspect,
    plan_merge_projector,
    plan_swap_tower,
    verify,
)
from vita_ckpt.core.report import has_errors


class TestLanguageModels:
    """Upstream's load paths 2 and 3: a plain language model becomes a VITA checkpoint."""

    @pytest.mark.parametrize("model_type", ["vita-Qwen2", "vita-mixtral", "vita-Mistral"])
    def test_swap_tower_adds_one(self, tmp_path: Path, model_type: str) -> None:
        base = plain_model(tmp_path / "llm", model_type)
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(base, tower_at(tmp_path, "clip"))
        plan = plan_swap_tower(base, tmp_path / "new-tower-clip", projector="reinit")
        out = apply(plan, tmp_path / "out")
        config = config_of(out)
        assert config["model_type"] == model_type
        assert config["architectures"] == [
            {"vita-Qwen2": "VITAQwen2", "vita-mixtral": "VITAMixtral"}.get(
                model_type, "VITAMistral"
            )
            + "ForCausalLM"
        ]
        assert config["use_mm_proj"] is True
        assert inspect(out).kind == "vita-checkpoint"
        assert not has_errors(verify(out, device="cpu").findings)

    def test_base_and_projector(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        base, run = plain_model(tmp_path / "llm"), run_at(tmp_path / "run")
        with pytest.raises(InputError) as raised:
            plan_merge_projector(base, run)
        assert raised.value.code == "not-enough-information"
        assert "--tower DIR" in raised.value.got
        assert "/home/somebody/clip-vit" in raised.value.got
        lone = (run / "mm_projector.bin").rename(tmp_path / "mm_projector.bin")
        with pytest.raises(InputError, match=r"missing: config\.json"):
            plan_merge_projector(base, lone, tower=tower_at(tmp_path, "clip"))
        with pytest.raises(UsageError, match="option-without-tower"):
            plan_merge_projector(base, lone, dtype="bf16")

    def test_base_projector_and_tower(self, tmp_path: Path) -> None:
        base, run = plain_model(tmp_path / "llm"), run_at(tmp_path / "run")
        plan = plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))
        assert plan.operation == "merge-projector"
        out = apply(plan, tmp_path / "out")
        config = config_of(out)
        assert (config["model_type"], config["architectures"]) == (
            "vita-fo-Qwen2",
            ["VITAFOQwen2ForCausalLM"],
        )
        assert config["mm_vision_tower"] == "/home/somebody/clip-vit"
        assert (config["mm_projector_type"], config["image_aspect_ratio"]) == ("linear", "pad")
        assert config["continuous_training"] is False
        assert config["tokenizer_model_max_length"] == 77
        assert "mm_audio_encoder" not in config  # the base has no tensors of one
        assert any("mm_audio_encoder" in note for note in plan.notes)
        assert not has_errors(verify(out, device="cpu").findings)
        trained = torch.load(run / "mm_projector.bin", weights_only=True)
        stored = load_file(Path(out) / "model.safetensors")
        for name, tensor in trained.items():
            assert torch.equal(stored[name], tensor)

    def test_another_tower_or_projector_than_the_runs(self, tmp_path: Path) -> None:
        """What is said names no option of another command."""
        base = plain_model(tmp_path / "llm")
        run = run_at(tmp_path / "run", mm_projector_type="mlp2x_gelu")
        with pytest.raises(UsageError) as type_error:
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))
        with pytest.raises(InputError) as path_error:
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "internvit"))
        for raised, code in (
            (type_error.value, "projector-type-mismatch"),
            (path_error.value, "tower-path-misleads"),
        ):
            assert raised.code == code
            assert "the run" in raised.hint
            assert "--" not in str(raised)

    def test_the_towers_directory_is_found_by_the_runs_config(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = plain_model(tmp_path / "llm")
        tower_at(tmp_path, "clip")
        run = run_at(tmp_path / "run", mm_vision_tower="new-tower-clip")
        monkeypatch.chdir(tmp_path)
        plan = plan_merge_projector(base, run)
        assert (plan.target().config or {})["mm_vision_tower"] == "new-tower-clip"

    def test_another_base_than_the_runs(self, tmp_path: Path) -> None:
        run = run_at(tmp_path / "run", num_hidden_layers=28)
        tower = tower_at(tmp_path, "clip")
        with pytest.raises(InputError, match="base-does-not-fit-run"):
            plan_merge_projector(plain_model(tmp_path / "llm"), run, tower=tower)
        run = run_at(tmp_path / "other", model_type="vita-mixtral")
        with pytest.raises(InputError, match="model-type-mismatch"):
            plan_merge_projector(tmp_path / "llm", run, tower=tower)

    def test_a_base_that_has_a_tower(self, tmp_path: Path, base: Path) -> None:
        run = run_at(tmp_path / "run")
        with pytest.raises(UsageError, match="tower-already-there"):
            plan_merge_projector(base, run, tower=tower_at(tmp_path, "clip"))
