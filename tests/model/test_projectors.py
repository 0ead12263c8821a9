"""build_projector: upstream's numbers on golden cases, every type against its written-out rule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from tests.conftest import GOLDEN
from vita_ckpt.core.anatomy.projectors import Projector, expected_shapes, tokens_out
from vita_ckpt.errors import InputError
from vita_ckpt.model.projectors import build_projector

TYPES = [
    "linear",
    "mlp1x_gelu",
    "mlp2x_gelu",
    "mlp4x_gelu",
    "sppv1",
    "spp_v2",
    "spp-v3",
    "ldp",
    "vanilla",
    "minigpt",
    "identity",
    "mlp1x_res1x_gelu",
    "mlp2x_res3x_gelu",
    "pooler",
]

# checkpoint or adapter, type, widths, tensor of the tower's features, tensor of the expected ones
GOLDEN_PROJECTORS = [
    ("A1/base", "mlp2x_gelu", 128, "tower_features", "image_features"),
    ("A2/base", "mlp2x_gelu", 48, "tower_features", "image_features"),
    ("A3/base", "linear", 32, "tower_features", "image_features"),
    ("A4/base", "mlp2x_gelu", 128, "tower_features", "image_features"),
    ("A5/base", "mlp2x_gelu", 96, "tower_features", "image_features"),
    ("A6/base", "mlp2x_gelu", 48, "tower_features", "image_features"),
    ("A7/base", "mlp2x_gelu", 128, "base_tower_features", "base_image_features"),
    ("A7/mm_projector_fp32", "mlp2x_gelu", 128, "tower_features", "image_features"),
    ("A8/base", "mlp2x_gelu", 48, "base_tower_features", "base_image_features"),
    ("A8/swapped_by_upstream", "mlp2x_gelu", 96, "tower_features", "image_features"),
]


def projector_tensors(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    for file in directory.glob("*.bin"):
        tensors |= torch.load(file, weights_only=True)
    prefix = "model.mm_projector."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def random_projector(kind: str, wide: int, out: int) -> nn.Module:
    """Every tensor random, norms included, so that nothing is by chance the identity."""
    torch.manual_seed(0)
    module = build_projector(kind, wide, out)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


@pytest.mark.parametrize(("path", "kind", "wide", "features", "expected"), GOLDEN_PROJECTORS)
def test_golden(path: str, kind: str, wide: int, features: str, expected: str) -> None:
    golden = load_file(GOLDEN / path[:2] / "expected.safetensors")
    module = build_projector(kind, wide, 64)
    module.load_state_dict(projector_tensors(GOLDEN / path), strict=True)
    with torch.no_grad():
        got = module(golden[features])
    assert got.shape == golden[expected].shape
    assert (got - golden[expected]).abs().max() < 1e-5


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("wide", "out"), [(6, 16), (12, 72), (5, 40)])
def test_names_and_shapes_are_the_stored_ones(kind: str, wide: int, out: int) -> None:
    module = build_projector(kind, wide, out)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == expected_shapes(Projector(kind, wide, out))
    assert not module.training


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("side", [2, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_width_and_dtype(kind: str, side: int, dtype: torch.dtype) -> None:
    module = random_projector(kind, 8, 16).to(dtype)
    got = module(torch.randn(3, side * side, 8, dtype=dtype))
    assert got.shape == (3, tokens_out(kind, side * side), 8 if kind == "identity" else 16)
    assert got.dtype == dtype


@pytest.mark.parametrize(
    ("kind", "tokens"), [("sppv1", 4), ("sppv2", 4), ("sppv3", 4), ("ldp", 9), ("pooler", 4)]
)
def test_odd_grids(kind: str, tokens: int) -> None:
    """The pool drops the last row and column, the stride-2 convolution keeps them."""
    got = random_projector(kind, 8, 16)(torch.randn(2, 25, 8))
    assert got.shape == (2, tokens, 16)
    assert tokens_out(kind, 25) == tokens


def test_mlp_is_linear_and_exact_gelu_in_turns() -> None:
    module = random_projector("mlp3x_gelu", 4, 6)
    weights = module.state_dict()
    x = torch.randn(2, 3, 4)
    hidden = x
    for layer in ("0", "2", "4"):
        if layer != "0":
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        hidden = hidden @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
    assert torch.allclose(module(x), hidden, atol=1e-5)


def test_residual_blocks_follow_an_mlp() -> None:
    module = random_projector("mlp2x_res2x_gelu", 4, 6)
    weights = module.state_dict()

    def linear(tokens: Tensor, at: str) -> Tensor:
        return functional.linear(tokens, weights[f"{at}.weight"], weights[f"{at}.bias"])

    def gelu(tokens: Tensor) -> Tensor:
        return 0.5 * tokens * (1 + torch.erf(tokens / math.sqrt(2)))

    x = torch.randn(2, 3, 4)
    hidden = linear(gelu(linear(x, "0")), "2")
    for block in ("3", "4"):
        centred = hidden - hidden.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        at = f"{block}.pre_norm"
        normed = scaled * weights[f"{at}.weight"] + weights[f"{at}.bias"]
        hidden = normed + linear(gelu(linear(normed, f"{block}.proj.0")), f"{block}.proj.2")
    assert torch.allclose(module(x), hidden, atol=1e-4)


@pytest.mark.parametrize("side", [4, 5])
def test_pooler_joins_two_by_two_tokens(side: int) -> None:
    module = random_projector("pooler", 3, 5)
    weights = module.state_dict()
    x = torch.randn(2, side * side, 3)
    half = side // 2
    rows = x.reshape(2, side, side, 3)
    pooled = weights["conv_pool.bias"].expand(2, half, half, 5)
    for i in (0, 1):
        for j in (0, 1):
            quarter = rows[:, i : 2 * half : 2, j : 2 * half : 2]
            pooled = pooled + quarter @ weights["conv_pool.weight"][:, :, i, j].T
    hidden = functional.gelu(pooled.reshape(2, half * half, 5))
    expected = hidden @ weights["proj.1.weight"].T + weights["proj.1.bias"]
    assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_spp_pools_where_its_version_says(version: str) -> None:
    module = random_projector(f"spp{version}", 4, 6)
    weights = module.state_dict()
    x = torch.randn(2, 16, 4)

    def linear(number: int, tokens: Tensor) -> Tensor:
        at = f"linear_{number}"
        return functional.linear(tokens, weights[f"{at}.weight"], weights[f"{at}.bias"])

    def pool(tokens: Tensor) -> Tensor:
        rows = tokens.reshape(2, 4, 4, -1)
        quarters = [rows[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(quarters).mean(0).reshape(2, 4, -1)

    expected = {
        "v1": lambda: linear(2, pool(linear(1, x))),
        "v2": lambda: pool(linear(2, linear(1, x))),
        "v3": lambda: linear(2, linear(1, pool(linear(0, x)))),
    }[version]()
    assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["vanilla", "minigpt"])
def test_four_tokens_become_one(kind: str) -> None:
    module = random_projector(kind, 3, 5)
    weights = module.state_dict()
    x = torch.randn(2, 8, 3)
    for image in range(2):
        for group in range(2):
            four = [x[image, 4 * group + token].tolist() for token in range(4)]
            if kind == "vanilla":
                line = [four[token][channel] for channel in range(3) for token in range(4)]
            else:
                line = [four[token][channel] for token in range(4) for channel in range(3)]
            expected = weights["linear.weight"] @ torch.tensor(line) + weights["linear.bias"]
            assert torch.allclose(module(x)[image, group], expected, atol=1e-5)


@pytest.mark.parametrize("side", [4, 5])
def test_ldp_is_an_mlp_and_two_inverted_residuals(side: int) -> None:
    width = 16
    module = random_projector("ldp", 6, width)
    weights = {name.removeprefix("model."): t for name, t in module.state_dict().items()}
    x = torch.randn(2, side * side, 6)

    def norm(grid: Tensor, at: str) -> Tensor:
        centred = grid - grid.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        weight, bias = (weights[f"{at}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias"))
        return torch.addcmul(bias, scaled, weight)

    def depthwise(grid: Tensor, at: str, stride: int) -> Tensor:
        kernel = weights[f"{at}.weight"]
        padded = functional.pad(grid, (1, 1, 1, 1))
        size = grid.shape[-1]
        total = torch.zeros_like(grid)
        for i in range(3):
            for j in range(3):
                total += (
                    kernel[:, 0, i, j].reshape(1, -1, 1, 1)
                    * padded[..., i : i + size, j : j + size]
                )
        return total[..., ::stride, ::stride]

    def pixelwise(grid: Tensor, at: str) -> Tensor:
        channels = grid.permute(0, 2, 3, 1)
        kernel = weights[f"{at}.weight"][:, :, 0, 0]
        return functional.linear(channels, kernel, weights.get(f"{at}.bias")).permute(0, 3, 1, 2)

    def block(grid: Tensor, at: str, stride: int) -> Tensor:
        hidden = norm(depthwise(grid, f"{at}.0.0", stride), f"{at}.0.1")
        hidden = hidden * (hidden + 3).clamp(0, 6) / 6
        mean = hidden.mean((2, 3), keepdim=True)
        excited = pixelwise(pixelwise(mean, f"{at}.1.fc1").clamp(min=0), f"{at}.1.fc2")
        hidden = hidden * ((excited + 3).clamp(0, 6) / 6)
        return norm(pixelwise(hidden, f"{at}.2.0"), f"{at}.2.1")

    hidden = functional.gelu(x @ weights["mlp.1.weight"].T + weights["mlp.1.bias"])
    hidden = hidden @ weights["mlp.3.weight"].T + weights["mlp.3.bias"]
    grid = hidden.reshape(2, side, side, width).permute(0, 3, 1, 2)
    grid = grid + block(grid, "mb_block.1.block", 1)
    grid = block(grid, "mb_block.2.block", 2)
    half = (side + 1) // 2
    expected = grid.permute(0, 2, 3, 1).reshape(2, half * half, width)
    assert torch.allclose(module(x), expected, atol=1e-4)


def test_identity_passes_on() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(build_projector("identity", 4, 8)(x), x)


@pytest.mark.parametrize("kind", ["", "spp", "spp_v4", "mlp0x_gelu", "mlp2x_relu", "resampler"])
def test_unknown_types(kind: str) -> None:
    with pytest.raises(InputError) as caught:
        build_projector(kind, 4, 8)
    assert caught.value.code == "unknown-projector-type"
    assert caught.value.subject == kind
    assert "mlpNx_gelu" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("sppv1", 6),
        ("sppv2", 8),
        ("sppv3", 3),
        ("ldp", 12),
        ("vanilla", 9),
        ("minigpt", 6),
        ("pooler", 6),
    ],
)
def test_tokens_that_do_not_fit(kind: str, tokens: int) -> None:
    assert tokens_out(kind, tokens) is None
    with pytest.raises(InputError) as caught:
        build_projector(kind, 4, 16)(torch.zeros(1, tokens, 4))
    assert caught.value.code == "tokens-do-not-fit-projector"
    assert caught.value.got == str(tokens)
