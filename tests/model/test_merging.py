"""Tiles and frames become the tokens of an image: upstream's numbers, every rule written out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from tests.conftest import golden_cases
from vita_ckpt import UsageError
from vita_ckpt.core.anatomy.families import family_of
from vita_ckpt.core.anatomy.tiles import Size, Tiling
from vita_ckpt.model.merging import merge_frames, merge_tiles, pool_frames

SIDE, TILE, WIDTH = 4, 28, 6
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28]]


def features(tiles: int) -> Tensor:
    generator = torch.Generator().manual_seed(tiles)
    return torch.randn(tiles, SIDE * SIDE, WIDTH, generator=generator)


def newline() -> Tensor:
    return torch.arange(WIDTH) + 100.0


def merged(parts: Tensor, image: Size | None, tiling: Tiling) -> Tensor:
    return merge_tiles(parts, image, tiling, newline(), SIDE, TILE)


def pixel(parts: Tensor, columns: int, row: int, column: int) -> Tensor:
    """One token of the map that the tiles after the first make."""
    tile = row // SIDE * columns + column // SIDE
    return parts[1 + tile, row % SIDE * SIDE + column % SIDE]


@pytest.mark.parametrize("case", golden_cases("F3", "F13"), ids=lambda case: case.name)
def test_upstreams_tokens_bit_for_bit(case: Path) -> None:
    inputs, expected = (load_file(case / f"{n}.safetensors") for n in ("inputs", "expected"))
    config = json.loads((case / "base" / "config.json").read_text())
    tensors: dict[str, Tensor] = {}
    for file in (case / "base").glob("*.safetensors"):
        tensors |= load_file(file)
    family = family_of(config)
    assert family is not None
    tiling = family.tiling(config)
    counts, sizes = inputs["tiles_per_image"].tolist(), inputs["image_sizes"].tolist()
    line = tensors["model.image_newline"]
    found = []
    for parts, (width, height) in zip(
        torch.split(expected["image_features"], counts), sizes, strict=True
    ):
        found.append(merge_tiles(parts, (width, height), tiling, line, SIDE, TILE))
        count = tiling.tokens((width, height), len(parts), SIDE, TILE, SIDE * SIDE)
        assert count == len(found[-1])
    assert [len(one) for one in found] == expected["merged_lengths"].tolist()
    assert torch.equal(torch.cat(found), expected["merged_features"])


def test_flat_and_single_tiles() -> None:
    parts = features(3)
    assert torch.equal(merged(parts, None, Tiling("flat")), parts.reshape(-1, WIDTH))
    one = features(1)
    assert torch.equal(merged(one, None, Tiling("spatial")), one[0])
    ended = merged(one, None, Tiling("spatial_unpad"))
    assert torch.equal(ended, torch.cat([one[0], newline()[None]]))


@pytest.mark.parametrize("extended", [False, True])
def test_a_map_without_and_with_its_padding_cut(extended: bool) -> None:
    parts = features(3)  # 56 x 28: two columns of tiles
    grid = [pixel(parts, 2, row, column) for row in range(SIDE) for column in range(2 * SIDE)]
    plain = merged(parts, (45, 20), Tiling("spatial", "anyres", PINPOINTS, extended))
    assert torch.equal(plain, torch.stack([*parts[0], *grid]))

    # 40 x 10 in a map of 8 x 4: height 2, one row is cut off above and below.
    rows = [
        [pixel(parts, 2, row, column) for column in range(2 * SIDE)] + [newline()] for row in (1, 2)
    ]
    cut = merged(parts, (40, 10), Tiling("spatial_unpad", "anyres", PINPOINTS, extended))
    assert torch.equal(cut, torch.stack([*parts[0], *(token for row in rows for token in row)]))


def test_the_rules_of_next() -> None:
    parts = features(5)
    whole = torch.stack(
        [pixel(parts, 2, row, column) for row in range(2 * SIDE) for column in range(2 * SIDE)]
    )
    laid = whole.T.reshape(WIDTH, 2 * SIDE, 2 * SIDE)

    def tiling(merge: str, aspect: str = "anyres") -> Tiling:
        return Tiling(merge, aspect, PINPOINTS, extended=True)

    pooled = [
        laid[:, row : row + 2, column : column + 2].amax((1, 2))
        for row in range(0, 2 * SIDE, 2)
        for column in range(0, 2 * SIDE, 2)
    ]
    found = merged(parts, (50, 50), tiling("spatial_unpad_maxpool2x2"))
    assert torch.equal(found, torch.stack([*parts[0], *pooled]))
    assert torch.equal(merged(parts, (50, 50), tiling("spatial_nobase")), whole)
    # Other aspects are taken for two by two tiles.
    assert torch.equal(merged(parts, None, tiling("spatial_nobase", "pad")), whole)

    # As many features as 8 x 8, of which two tiles have 32.
    times = math.sqrt(64 / 32)
    size = [int(8 // times)] * 2
    small = functional.interpolate(laid[None], size, mode="bilinear")[0]
    rows = torch.cat([small, newline()[:, None, None].expand(WIDTH, size[0], 1)], 2)
    found = merged(parts, (50, 50), tiling("spatial_unpad", "anyres_max_2"))
    assert torch.equal(found, torch.cat([parts[0], rows.flatten(1).T]))
    # With three tiles allowed it is 1.15 times too large, with four it is as large as may be.
    assert len(merged(parts, (50, 50), tiling("spatial_unpad", "anyres_max_3"))) == 16 + 6 * 7
    assert len(merged(parts, (50, 50), tiling("spatial_unpad", "anyres_max_4"))) == 16 + 8 * 9


@pytest.mark.parametrize(
    ("tiling", "tiles", "image", "words"),
    [
        (Tiling("median"), 3, None, "median"),
        (Tiling("spatial", "pad", PINPOINTS), 3, (45, 20), "anyres"),
        (Tiling("spatial", "anyres", None), 3, (45, 20), "image_grid_pinpoints"),
        (Tiling("spatial", "anyres", PINPOINTS), 4, (45, 20), "2 x 1"),
        (Tiling("spatial", "anyres", PINPOINTS), 3, None, "image_sizes"),
        (Tiling("spatial_unpad", "anyres", PINPOINTS, extended=True), 5, None, "image_sizes"),
        (Tiling("spatial", "pad", PINPOINTS, extended=True), 3, (45, 20), "2 x 2"),
    ],
)
def test_tiles_that_do_not_merge(tiling: Tiling, tiles: int, image: Size, words: str) -> None:
    with pytest.raises(UsageError, match=f"tiles-do-not-merge.*{words}"):
        merged(features(tiles), image, tiling)


def test_tiles_with_a_class_token_or_without_a_newline() -> None:
    with_class = torch.randn(3, SIDE * SIDE + 1, WIDTH)
    with pytest.raises(UsageError, match="without CLS"):
        merged(with_class, (45, 20), Tiling("spatial", "anyres", PINPOINTS))
    with pytest.raises(UsageError, match="image_newline"):
        merge_tiles(features(1), None, Tiling("spatial_unpad"), None, SIDE, TILE)


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize("side", [4, 5])
def test_frames_are_pooled_two_by_two(mode: str, side: int) -> None:
    frames = torch.randn(2, side * side, WIDTH)
    laid = frames.reshape(2, side, side, WIDTH)
    found = pool_frames(frames, side, mode)
    if mode == "bilinear":
        half = math.ceil(side / 2)
        maps = laid.permute(0, 3, 1, 2)
        wanted = functional.interpolate(maps, [half, half], mode="bilinear").permute(0, 2, 3, 1)
    else:
        half = side // 2
        blocks = laid[:, : 2 * half, : 2 * half].reshape(2, half, 2, half, 2, WIDTH)
        wanted = blocks.mean((2, 4)) if mode == "average" else blocks.amax((2, 4))
    assert torch.allclose(found, wanted.reshape(2, half * half, WIDTH), atol=1e-6)


def test_the_newlines_of_a_video() -> None:
    frames = torch.randn(3, 4, WIDTH)
    line = newline()
    spatial = Tiling("spatial_unpad", extended=True)

    def tokens(position: str, tiling: Tiling = spatial) -> Tensor:
        return merge_frames(frames, position, tiling, line)

    flat = list(frames.reshape(-1, WIDTH))
    rows = [flat[start : start + 2] for start in range(0, 12, 2)]
    assert torch.equal(tokens("grid"), torch.stack([t for row in rows for t in (*row, line)]))
    assert torch.equal(tokens("frame"), torch.stack([t for f in frames for t in (*f, line)]))
    assert torch.equal(tokens("one_token"), torch.stack([*flat, line]))
    assert torch.equal(tokens("one_token", Tiling("spatial")), torch.stack(flat))
    assert torch.equal(tokens("no_token"), torch.stack(flat))
    assert torch.equal(tokens("grid", Tiling("flat")), torch.stack(flat))
    with pytest.raises(UsageError, match="mm_newline_position"):
        tokens("sideways")
    with pytest.raises(UsageError, match="mm_spatial_pool_mode"):
        pool_frames(frames, 2, "none")
