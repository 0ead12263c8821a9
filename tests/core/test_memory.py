"""How much memory a model needs: by hand for known sizes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tests.conftest import GOLDEN
from vita_ckpt import UsageError, inspect


def test_a_model_by_hand() -> None:
    """A7: 2 layers of 2 key-value heads of 16; InternViT of 3 layers, 17 tokens, width 32."""
    found = inspect(GOLDEN / "A7" / "base", dtype="bf16", batch=3)
    assert found.memory is not None
    weights = found.parameters
    assert asdict(found.memory) == {
        "dtype": "BF16",
        "batch": 3,
        "weights": 2 * weights,
        "weights_as": {"F32": 4 * weights, "F16": 2 * weights, "BF16": 2 * weights},
        "kv_cache_per_1000_tokens": 3 * 1000 * 2 * 2 * 2 * 32,
        "tower_activations": 3 * 2 * 17 * (4 * 32 + 2 * 32 + 2 * 64),
    }


def test_what_is_no_model_has_none(tmp_path: Path) -> None:
    assert inspect(GOLDEN / "A7" / "mm_projector_fp32").memory is None
    with pytest.raises(UsageError, match="unknown-dtype"):
        inspect(GOLDEN / "A7" / "base", dtype="int4")
