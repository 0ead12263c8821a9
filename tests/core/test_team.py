"""Portions keep order and are small; shares are runs of about equal bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.team import ALONE, PORTION, portions, shares

SIZES = st.lists(st.integers(0, 3 * PORTION // 2), max_size=60)


def same(size: int) -> int:
    return size


@given(SIZES)
def test_portions_are_the_items_in_order(sizes: list[int]) -> None:
    cut = portions(sizes, same)
    assert [size for portion in cut for size in portion] == sizes
    assert all(cut)
    assert all(sum(portion) <= PORTION or len(portion) == 1 for portion in cut)
    # None could have taken the next one's first item too.
    assert all(sum(one) + other[0] > PORTION for one, other in pairwise(cut))


@given(SIZES, st.integers(1, 9))
def test_shares_are_runs_of_about_equal_bytes(sizes: list[int], count: int) -> None:
    found = shares(sizes, count)
    assert len(found) == count
    assert [index for share in found for index in share] == list(range(len(sizes)))
    for share in found:
        taken = sum(sizes[index] for index in share)
        assert abs(taken - sum(sizes) / count) <= max(sizes, default=0)


def test_one_process_is_a_team() -> None:
    with ALONE.agreement():
        assert ALONE.gather("value") == ["value"]
