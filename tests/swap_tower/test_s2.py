"""S2 on, off and impossible."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.swap_tower.inputs import tower_at
from vita_ckpt import InputError, UsageError, apply, plan_swap_tower, verify
from vita_ckpt.core.report import has_errors


class TestS2:
    def test_on_and_off(self, tmp_path: Path, base: Path) -> None:
        tower = tower_at(tmp_path, "siglip")
        plan = plan_swap_tower(base, tower, projector="reinit", s2_scales="16,32")
        config = plan.target().config or {}
        assert (config["use_s2"], config["s2_scales"], config["mm_hidden_size"]) == (
            True,
            "16,32",
            16,
        )
        out = apply(plan, tmp_path / "s2")
        assert not has_errors(verify(out, device="cpu").findings)
        kept = plan_swap_tower(out, tower)  # nothing changes, S2 stays
        assert kept.target().config == config
        off = plan_swap_tower(out, tower, projector="reinit", use_s2=False).target().config or {}
        assert (off["use_s2"], off["mm_hidden_size"]) == (False, 8)
        clip = plan_swap_tower(out, tower_at(tmp_path, "clip"), projector="reinit")
        assert (clip.target().config or {})["use_s2"] is False

    def test_impossible(self, tmp_path: Path, base: Path) -> None:
        for family, options, code in (
            ("clip", {"use_s2": True}, "s2-needs-siglip"),
            ("eva", {"s2_scales": "16,32"}, "s2-needs-siglip"),
            ("siglip", {"use_s2": True}, "s2-scales-do-not-fit-tower"),
            ("siglip", {"s2_scales": "15,30"}, "s2-scales-do-not-fit-tower"),
        ):
            tower = tmp_path / f"new-tower-{family}"
            tower = tower if tower.exists() else tower_at(tmp_path, family)
            with pytest.raises(InputError) as raised:
                plan_swap_tower(base, tower, projector="reinit", **options)
            assert raised.value.code == code
        siglip = tmp_path / "new-tower-siglip"
        for scales in ("big", ""):
            with pytest.raises(UsageError, match="invalid-s2-scales"):
                plan_swap_tower(base, siglip, s2_scales=scales)
        with pytest.raises(UsageError, match="options-exclude-each-other"):
            plan_swap_tower(base, siglip, s2_scales="16,32", use_s2=False)
