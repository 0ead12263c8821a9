"""Each family of towers becomes each other, and the rest stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.builder import read_tensors
from tests.conftest import GOLDEN
from vita_ckpt import apply, plan_swap_tower, verify


@pytest.mark.parametrize("old", ["A1", "A2", "A3", "A5", "A6"])
@pytest.mark.parametrize("new", ["A1", "A2", "A3", "A6"])
def test_each_family_becomes_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tower = next((GOLDEN / new).glob("tower-*"))
    base = GOLDEN / old / "base"
    # What A5's scales ask for does not fit another SigLIP.
    use_s2 = False if old == "A5" else None
    plan = plan_swap_tower(base, tower, projector="reinit", use_s2=use_s2)
    out = apply(plan, tmp_path / "out")
    verification = verify(out, device="cpu", against=base)
    assert [f.rule for f in verification.findings] == ["projector-untrained"]
    before, after = read_tensors(base), read_tensors(Path(out))
    for name in before.keys() & after.keys():
        if "vision_tower" not in name and "mm_projector" not in name:
            assert after[name] == before[name]
    assert {n for n in before if "vision_tower" not in n and "mm_projector" not in n} == {
        n for n in after if "vision_tower" not in n and "mm_projector" not in n
    }
