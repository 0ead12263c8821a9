"""Which projector stays, is drawn or is taken from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tower,
)
from tests.swap_tower.inputs import tower_at
from vita_ckpt import UsageError, plan_swap_tower


class TestProjectorChoice:
    def test_what_does_not_fit_needs_a_word(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        for options, code in (
            ({}, "projector-choice-needed"),
            ({"projector": "keep"}, "projector-does-not-fit"),
            ({"projector": "reinit", "projector_type": "mlp"}, "unknown-projector-type"),
            ({"projector": "reinit", "projector_type": "identity"}, "projector-does-not-fit"),
        ):
            with pytest.raises(UsageError) as raised:
                plan_swap_tower(base, tower, **options)  # type: ignore[arg-type]
            assert raised.value.code == code
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(base, tmp_path / "tower-internvit", projector_type="linear")

    def test_what_fits_is_kept(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "internvit")
        plan = plan_swap_tower(base, tower)
        assert not [e for e in plan.edits if "mm_projector" in getattr(e, "name", "")]
        assert any("kept" in note for note in plan.notes)

    def test_a_file_of_another_type(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "clip")
        adapter = write_adapter(tmp_path / "a.safetensors", mm_projector("linear", 8, 16))
        plan = plan_swap_tower(base, tower, projector=adapter)
        config = plan.target().config or {}
        assert (config["mm_projector_type"], config["mm_hidden_size"]) == ("linear", 8)
        with pytest.raises(UsageError, match="projector-type-mismatch"):
            plan_swap_tower(base, tower, projector=adapter, projector_type="mlp2x_gelu")

    def test_types_with_the_same_tensors(self, tmp_path: Path) -> None:
        write_tower(tmp_path / "tower-internvit", TowerSpec())
        root = write_checkpoint(tmp_path / "spp", Spec(projector="sppv1"))
        tower = tower_at(tmp_path, "internvit")
        with pytest.raises(UsageError, match="projector-choice-needed"):
            plan_swap_tower(root, tower, projector_type="sppv2")
        kept = plan_swap_tower(root, tower, projector="keep", projector_type="sppv2")
        assert (kept.target().config or {})["mm_projector_type"] == "sppv2"
