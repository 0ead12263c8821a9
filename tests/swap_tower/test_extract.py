"""A tower taken out of a checkpoint is the tower that went in."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from fixtures.builder import read_tensors, write_adapter
from tests.conftest import GOLDEN
from tests.swap_tower.inputs import config_of, tower_at
from vita_ckpt import InputError, apply, plan_extract_tower, plan_swap_tower


class TestExtract:
    @pytest.mark.parametrize("case", ["A1", "A2", "A3", "A5"])
    def test_a_tower_that_transformers_loads(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
    ) -> None:
        monkeypatch.chdir(GOLDEN / case)
        standalone = next((GOLDEN / case).glob("tower-*"))
        out = Path(apply(plan_extract_tower("base"), tmp_path / standalone.name))
        assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in standalone.iterdir())
        shapes = {n: (d, s) for n, (d, s, _) in read_tensors(out).items()}
        assert shapes == {n: (d, s) for n, (d, s, _) in read_tensors(standalone).items()}
        assert config_of(out) == config_of(standalone)
        if case in ("A2", "A3"):
            name = {"A2": "SiglipVisionModel", "A3": "CLIPVisionModel"}[case]
            _, report = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
            assert not report["missing_keys"]
            assert not report["unexpected_keys"]
        again = plan_swap_tower("base", out, tower_path=standalone.name)
        assert (again.target().config or {}) == config_of("base")
        back = Path(apply(again, tmp_path / "back"))
        assert read_tensors(back) == read_tensors(Path("base"))

    def test_eva_has_no_config(self, tmp_path: Path) -> None:
        out = Path(apply(plan_extract_tower(GOLDEN / "A6/base"), tmp_path / "eva-clip"))
        assert [p.name for p in out.iterdir()] == ["model.safetensors"]
        assert all(name.startswith("visual.") for name in read_tensors(out))
        plan = plan_swap_tower(GOLDEN / "A6/base", out)
        assert read_tensors(Path(apply(plan, tmp_path / "back"))) == read_tensors(
            GOLDEN / "A6/base"
        )

    def test_where_the_config_comes_from(
        self, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away = tmp_path / "away"
        away.mkdir()
        moved = base.rename(away / "base")
        with pytest.raises(InputError, match="tower-config-unknown"):
            plan_extract_tower(moved)
        tower = tmp_path / "tower-internvit"
        for given in (tower, tower / "config.json"):
            assert plan_extract_tower(moved, tower_config=given).edits
        with pytest.raises(InputError, match="tower-config"):
            plan_extract_tower(moved, tower_config=tower_at(tmp_path, "clip"))
        with pytest.raises(InputError, match="unknown-tower"):
            plan_extract_tower(write_adapter(tmp_path / "a.safetensors", {"0.weight": (2, 2)}))
