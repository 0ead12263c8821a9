"""A checkpoint, an adapter, and a checkpoint that a killed surgery left torn."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, write_adapter, write_checkpoint, write_tower
from tests.in_place import MLP, files_of, kill, stopped_in_the_middle


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec(), seed=5)
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


@pytest.fixture
def torn(base: Path, adapter: Path) -> Path:
    """A checkpoint with one half of a new projector, whose surgeon is dead."""
    before = files_of(base)
    with stopped_in_the_middle(base, adapter) as process:
        kill(process)
    assert files_of(base) != before
    return base
