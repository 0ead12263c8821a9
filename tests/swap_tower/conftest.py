"""A checkpoint beside its own tower."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, write_checkpoint, write_tower


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", shards=3)
