"""validate, explain and verify judge alike, on many mutants of every golden."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mutants import (
    CASES,
    CONFIG_MUTATIONS,
    DTYPE_MUTATIONS,
    MUTATIONS,
    RELATIVES,
    Judged,
    holds,
)


@pytest.fixture
def quick_collections() -> Iterator[None]:
    """Leave what the libraries hold out of the collections that follow every run of a model."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.torture
@pytest.mark.usefixtures("quick_collections")
@pytest.mark.parametrize("case", [*CASES, *RELATIVES])
def test_all_three_judge_alike_at_length(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: Judged = {}  # some seeds give the same mutant
    for kinds in (MUTATIONS, CONFIG_MUTATIONS, DTYPE_MUTATIONS):
        for seed in range(100, 100 + 10 * len(kinds)):
            holds(case, seed, tmp_path / "case", monkeypatch, kinds, judged)
            monkeypatch.chdir(tmp_path)
            shutil.rmtree(tmp_path / "case")
