"""Reasons are enums: each has words for a report, and no two have the same."""

from __future__ import annotations

from enum import Enum

import pytest

from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.left_out import LeftOut


@pytest.mark.parametrize("reasons", [LeftOut, PartSource])
def test_every_reason_is_worded(reasons: type[Enum]) -> None:
    words = [f"{reason}" for reason in reasons]
    assert len(set(words)) == len(words)
    assert not any(word.startswith(reasons.__name__) for word in words)
