"""validate, explain and verify judge alike, on many mutants of every golden."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutants import (
    CASES,
    CONFIG_MUTATIONS,
    DTYPE_MUTATIONS,
    MUTATIONS,
    RELATIVES,
    holds,
)


@pytest.mark.torture
@pytest.mark.parametrize("case", [*CASES, *RELATIVES])
def test_all_three_judge_alike_at_length(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kinds in (MUTATIONS, CONFIG_MUTATIONS, DTYPE_MUTATIONS):
        for seed in range(100, 100 + 10 * len(kinds)):
            holds(case, seed, tmp_path / str(seed), monkeypatch, kinds)
            shutil.rmtree(tmp_path / str(seed))
