"""The layout of tiles: which grid suits an image, and what of the grid is the image."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.anatomy.tiles import (
    Size,
    Tiling,
    best_size,
    fitted,
    parse_pinpoints,
    unpadded,
)

sides = st.integers(1, 2000)
sizes = st.tuples(sides, sides)
PINPOINTS: list[Size] = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.mark.parametrize(
    ("image", "best"),
    [
        ((640, 480), (672, 672)),
        ((1000, 300), (1008, 336)),
        ((300, 1000), (336, 1008)),
        ((300, 600), (336, 672)),
        ((10, 10), (336, 672)),  # every size keeps all of it: the first of those that waste least
    ],
)
def test_the_size_that_suits_an_image(image: Size, best: Size) -> None:
    assert best_size(image, PINPOINTS) == best
    assert best_size(image, ()) is None


@given(image=sizes, offered=st.lists(sizes, min_size=1, max_size=8))
def test_no_other_size_keeps_more_or_wastes_less(image: Size, offered: list[Size]) -> None:
    def kept(size: Size) -> int:
        scale = min(size[0] / image[0], size[1] / image[1])
        return min(int(image[0] * scale) * int(image[1] * scale), image[0] * image[1])

    best = best_size(image, offered)
    assert best in offered
    for other in offered:
        assert kept(other) <= kept(best)
        if kept(other) == kept(best):
            assert other[0] * other[1] >= best[0] * best[1]


@given(image=sizes, target=sizes)
def test_a_fitted_image_fills_one_side(image: Size, target: Size) -> None:
    width, height = fitted(image, target)
    assert 0 < width <= target[0]
    assert 0 < height <= target[1]
    assert width == target[0] or height == target[1]
    # In the other direction it is rounded up by less than a pixel, but for float's own rounding.
    exact = Fraction(image[1] * width, image[0]), Fraction(image[0] * height, image[1])
    assert height - exact[0] < Fraction(1001, 1000) or width - exact[1] < Fraction(1001, 1000)


@given(image=sizes, grid=st.tuples(st.integers(1, 200), st.integers(1, 200)))
def test_padding_is_cut_off_on_both_sides_alike(image: Size, grid: Size) -> None:
    rows, columns = unpadded(grid, image)
    assert rows.start == grid[1] - rows.stop
    assert columns.start == grid[0] - columns.stop
    assert rows.start == 0 or columns.start == 0
    assert 0 <= rows.start < grid[1]
    assert 0 <= columns.start < grid[0]


@pytest.mark.parametrize(
    ("value", "ranged", "expected"),
    [
        ([[28, 56], (56, 28)], None, ((28, 56), (56, 28))),
        ("[(336, 672), (672, 336)]", None, ((336, 672), (672, 336))),
        ("[[336,672]]", 336, ((336, 672),)),
        ("(1x1),...,(2x2)", 384, ((384, 384), (384, 768), (768, 384), (768, 768))),
        ("(1x1),...,(2x2)", None, ()),
        ("(1x1),...,(2x2)", 28, ()),
        ("(1x1),...,(999999x999999)", 384, ()),
        ("__import__('os')", None, ()),
        ("[(336, 672), print(1, 2)]", None, ()),
        ([[28, 0]], None, ()),
        ([[28, 56, 84]], None, ()),
        ([28, 56], None, ()),
        (None, None, ()),
        (7, None, ()),
    ],
)
def test_pinpoints(value: object, ranged: int | None, expected: tuple[Size, ...]) -> None:
    assert parse_pinpoints(value, ranged) == expected


def test_a_grid_that_is_not_found() -> None:
    assert Tiling("spatial", "anyres", None).grid((10, 10), 28) is None
    assert Tiling("spatial", "pad", [[28, 56]]).grid((10, 10), 28) is None
    # LLaVA-NeXT assumes one.
    assert Tiling("spatial", "anyres", None, extended=True).grid((10, 10), 28) == (2, 2)
    assert Tiling("spatial", "pad", [[28, 56]], extended=True).grid((10, 10), 28) == (2, 2)
    assert Tiling("spatial", "anyres_max_9", [[28, 56]], extended=True).grid((9, 9), 28) == (1, 2)


@pytest.mark.parametrize(
    ("merge", "aspect", "image", "tiles", "tokens"),
    [
        ("flat", "square", None, 3, 48),
        ("spatial", "anyres", (56, 56), 1, 16),
        ("spatial_unpad", "anyres", (56, 56), 1, 17),
        ("spatial", "anyres", (56, 56), 5, 16 + 64),
        ("spatial_unpad", "anyres", (56, 56), 5, 16 + 8 * 9),
        ("spatial_unpad", "anyres", (56, 28), 5, None),  # three tiles are made of it
        ("spatial_unpad", "anyres", None, 5, None),
        ("spatial", "pad", (56, 56), 5, None),
        ("median", "anyres", (56, 56), 5, None),
    ],
)
def test_tokens_of_an_image(
    merge: str, aspect: str, image: Size | None, tiles: int, tokens: int | None
) -> None:
    tiling = Tiling(merge, aspect, [[56, 28], [56, 56]])
    assert tiling.tokens(image, tiles, side=4, tile=28, tokens=16) == tokens


@pytest.mark.parametrize(
    ("merge", "aspect", "tokens"),
    [
        ("spatial_unpad", "anyres_max_9", 16 + 8 * 9),
        ("spatial_unpad", "anyres_max_2", 16 + 5 * 6),  # 64 features are 1.4² times those of two
        ("spatial_maxpool2x2", "anyres", 16 + 16),
        ("spatial_nobase", "anyres", 64),
        ("spatial_unpad_nobase", "anyres", 8 * 9),
        ("spatial", "pad", 16 + 64),
    ],
)
def test_tokens_by_the_rules_of_next(merge: str, aspect: str, tokens: int) -> None:
    tiling = Tiling(merge, aspect, [[56, 56]], extended=True)
    assert tiling.tokens((56, 56), 5, side=4, tile=28, tokens=16) == tokens
