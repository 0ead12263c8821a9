"""The mark of a projector that was drawn anew, until a trained one is merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures.builder import mm_projector, write_adapter
from tests.swap_tower.inputs import tower_at
from vita_ckpt import apply, inspect, plan_merge_projector, plan_swap_tower


def test_a_merge_ends_the_need_for_training(tmp_path: Path, base: Path) -> None:
    drawn = apply(
        plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit"), tmp_path / "drawn"
    )
    kept = plan_swap_tower(drawn, tower_at(tmp_path, "siglip"))  # same width: it still fits
    assert inspect(apply(kept, tmp_path / "kept")).needs_alignment
    adapter = write_adapter(tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", 8, 16))
    merged = apply(plan_merge_projector(drawn, adapter), tmp_path / "merged")
    assert not inspect(merged).needs_alignment
    done = json.loads((tmp_path / "merged" / "vita_ckpt.json").read_text())["operations"]
    assert [entry["operation"] for entry in done] == ["swap-tower", "merge-projector"]


def test_an_untrained_projector_stays_one_wherever_it_is_merged(tmp_path: Path, base: Path) -> None:
    clip = tower_at(tmp_path, "clip")
    drawn = apply(plan_swap_tower(base, clip, projector="reinit"), tmp_path / "drawn")
    for plan in (
        plan_swap_tower(base, clip, projector=drawn),
        plan_merge_projector(drawn, drawn),
    ):
        assert inspect(plan.target()).needs_alignment


@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_a_broken_note_stops_nobody(tmp_path: Path, base: Path, text: str) -> None:
    """What it says decides nothing about a tensor; a surgery that notes something mends it."""
    (base / "vita_ckpt.json").write_text(text)
    assert not inspect(base).needs_alignment
    plan = plan_swap_tower(base, tower_at(tmp_path, "clip"), projector="reinit")
    assert inspect(apply(plan, tmp_path / "out")).needs_alignment
