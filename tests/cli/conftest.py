"""A checkpoint beside its tower, and an adapter for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.builder import TowerSpec, mm_projector, write_adapter, write_checkpoint, write_tower
from tests.forker import Forker

MLP = mm_projector("mlp2x_gelu", 32, 16)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker
