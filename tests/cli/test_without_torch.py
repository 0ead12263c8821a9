"""Every command that needs no torch, with nothing but the base dependencies."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_checkpoint, write_tower
from tests.conftest import Cli


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    write_tower(tmp_path / "clip", TowerSpec("clip", image_size=16, patch_size=4))
    write_adapter(tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", 32, 16))
    return write_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(
    "command",
    [
        "inspect base",
        "inspect base --tensors",
        "validate base tower-internvit a.safetensors --values",
        "diff base base",
        "diff base base --values",
        "explain base",
        "rules",
        "merge-projector --base base --adapter a.safetensors --out out --digest --model-card",
        "merge-projector --base base --adapter a.safetensors --dtype bf16 --out out --check",
        "swap-tower --base base --tower clip --projector reinit --out out",
        "extract-projector --from base --out p.bin",
        "extract-projector --from base --out p.safetensors",
        "extract-tower --from base --out tower",
        "set base use_s2=true --in-place",
        "set base use_s2=true --plan-out plan.json",
        "history base",
        "clean --dry-run .",
    ],
)
def test_a_command(cli: Cli, base: Path, command: str) -> None:
    result = cli(*command.split())
    assert result.code == 0, result.err


def test_a_difference_is_a_table_too(cli: Cli, base: Path) -> None:
    cli("swap-tower", "--base", base, "--tower", "clip", "--projector", "reinit", "--out", "out")
    assert cli("diff", "base", "out").out.count("vision tower") == 1
    assert cli("validate", "--deep", "out").code == 0
    assert cli("history", "out").code == 0


def test_a_saved_plan_and_an_undo(cli: Cli, base: Path) -> None:
    assert cli("set", "base", "use_s2=true", "--plan-out", "plan.json").code == 0
    assert cli("apply", "plan.json", "--in-place").code == 0
    assert cli("undo", "base").code == 0


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_the_model_needs_more(cli: Cli, base: Path) -> None:
    result = cli("verify", "base")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "model-extra-missing" in result.err
