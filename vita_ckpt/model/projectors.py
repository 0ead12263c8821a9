"""Implement the projectors in torch: every type that upstream builds, under its stored names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_ckpt.core.anatomy import projectors
from vita_ckpt.core.anatomy.projectors import Projector, expected_shapes
from vita_ckpt.errors import InputError
from vita_ckpt.model.precision import exact_convolutions

# The number of consecutive tokens that the concatenating types join into one.
_TOGETHER = 4


def build_projector(projector_type: str, in_width: int, out_width: int) -> nn.Module:
    """Build a projector in eval mode and in the default dtype, its weights not set.

    Its forward maps [N, tokens, in_width] to [N, tokens', out_width] in the dtype of the input
    (UPSTREAM §4 gives tokens' for each type); ``identity`` also keeps the width. The names of its
    ``state_dict()`` are upstream's below ``model.mm_projector.``.

    Raises InputError ``unknown-projector-type``. The forward raises InputError
    ``tokens-do-not-fit-projector`` where the tokens do not form a square grid, or their number is
    not a multiple of four.
    """
    kind = check_type(projector_type)
    return MODULES[kind.name](projector_type, in_width, out_width).eval()


def check_type(
    projector_type: str, types: Sequence[projectors.ProjectorType] = projectors.EVERY_TYPE
) -> projectors.ProjectorType:
    """Return the row of a projector type; raises InputError ``unknown-projector-type``.

    ``types`` are those of the model's family, by default every family's.
    """
    kind = projectors.find_type(projector_type)
    if kind is None or kind not in types:
        raise InputError(
            "unknown-projector-type",
            projector_type,
            expected=projectors.listed(types),
            hint="mm_projector_type in config.json names it",
        )
    return kind


def _linear(_projector_type: str, wide: int, out: int) -> nn.Module:
    return nn.Linear(wide, out)


def _mlp(projector_type: str, wide: int, out: int) -> nn.Module:
    tensors = expected_shapes(Projector(projector_type, wide, out))
    layers: list[nn.Module] = [nn.Linear(wide, out)]
    for _ in range(1, len(tensors) // 2):
        layers += [nn.GELU(), nn.Linear(out, out)]
    return nn.Sequential(*layers)


def _residual(projector_type: str, wide: int, out: int) -> nn.Module:
    names = expected_shapes(Projector(projector_type, wide, out))
    blocks = sum(name.endswith(".pre_norm.weight") for name in names)
    depth = sum(name.count(".") == 1 for name in names) // 2
    mlp = _mlp(f"mlp{depth}x_gelu", wide, out)
    return nn.Sequential(*mlp.children(), *(_ResidualBlock(out) for _ in range(blocks)))


class _ResidualBlock(nn.Module):
    """A norm, and two linear layers whose output is added to what the norm gives."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(width)
        self.proj = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.pre_norm(tokens)
        result: Tensor = tokens + self.proj(tokens)
        return result


class Pooler(nn.Module):
    """A convolution that joins 2x2 tokens, then a linear layer (FAMILY §3)."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.conv_pool = nn.Conv2d(wide, out, 2, stride=2)
        self.proj = nn.Sequential(nn.GELU(), nn.Linear(out, out))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, side², in] to [N, (side // 2)², out]."""
        with exact_convolutions():
            pooled = self.conv_pool(_grid(tokens))
        result: Tensor = self.proj(_tokens(pooled))
        return result


class Spp(nn.Module):
    """Linear layers around a 2x2 average pool, whose position depends on the version.

    All three layers are stored in every version; v1 and v2 do not run ``linear_0``. An odd last row
    and column of the grid are dropped.
    """

    def __init__(self, wide: int, out: int, version: str) -> None:
        super().__init__()
        self.version = version
        self.linear_0 = nn.Linear(wide, wide)
        self.linear_1 = nn.Linear(wide, out)
        self.linear_2 = nn.Linear(out, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, side², in] to [N, (side // 2)², out]."""
        if self.version == "v1":
            return self._last(_pool(self.linear_1(tokens)))
        if self.version == "v2":
            return _pool(self._last(self.linear_1(tokens)))
        return self._last(self.linear_1(_pool(self.linear_0(tokens))))

    def _last(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.linear_2(tokens)
        return result


class Concatenation(nn.Module):
    """Join four consecutive tokens into one, interleaved by feature (vanilla) or in sequence."""

    def __init__(self, wide: int, out: int, *, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.linear = nn.Linear(_TOGETHER * wide, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, tokens, in] to [N, tokens / 4, out]."""
        batch, count, width = tokens.shape
        if count % _TOGETHER:
            raise _misfit(count, "a multiple of 4")
        fours = tokens.reshape(batch, count // _TOGETHER, _TOGETHER, width)
        if self.interleaved:
            fours = fours.transpose(2, 3)
        result: Tensor = self.linear(fours.flatten(2))
        return result


class Ldp(nn.Module):
    """MobileVLM's lightweight downsample projector (Chu et al. 2023): an MLP, then two blocks."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.model = _LdpBlock(wide, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, side², in] to [N, ((side + 1) // 2)², out]."""
        with exact_convolutions():
            result: Tensor = self.model(tokens)
        return result


class _LdpBlock(nn.Module):
    """The body of Ldp; the identities keep upstream's numbering of the stored names."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(wide, out), nn.GELU(), nn.Linear(out, out)
        )
        self.mb_block = nn.Sequential(
            nn.Identity(), _InvertedResidual(out, stride=1), _InvertedResidual(out, stride=2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        grid = _grid(self.mlp(tokens))
        return _tokens(self.mb_block(grid))


class _InvertedResidual(nn.Module):
    """MobileNetV3's block (Howard et al. 2019) without expansion; residual only at stride 1."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        squeeze = expected_shapes(Projector("ldp", width, width))[
            "model.mb_block.1.block.1.fc1.bias"
        ][0]
        self.residual = stride == 1
        depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
        pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(width), nn.Hardswish()),
            _SqueezeExcite(width, squeeze),
            nn.Sequential(pointwise, _ChannelNorm(width)),
        )

    def forward(self, grid: Tensor) -> Tensor:
        result: Tensor = self.block(grid)
        return result + grid if self.residual else result


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        mean = grid.mean(dim=(2, 3), keepdim=True)
        scale = functional.hardsigmoid(self.fc2(functional.relu(self.fc1(mean))))
        return grid * scale


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of [N, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _pool(tokens: Tensor) -> Tensor:
    return _tokens(functional.avg_pool2d(_grid(tokens), 2))


def _grid(tokens: Tensor) -> Tensor:
    """Map [N, side², C] to [N, C, side, side]."""
    batch, count, width = tokens.shape
    side = isqrt(count)
    if side * side != count:
        raise _misfit(count, "a square number")
    return tokens.transpose(1, 2).reshape(batch, width, side, side)


def _tokens(grid: Tensor) -> Tensor:
    """Map [N, C, H, W] to [N, H * W, C]."""
    return torch.flatten(grid, 2).transpose(1, 2)


def _misfit(count: int, expected: str) -> InputError:
    return InputError(
        "tokens-do-not-fit-projector",
        "tokens per image",
        expected=expected,
        got=str(count),
        hint="this mm_projector_type cannot follow this vision tower",
    )


def _spp(projector_type: str, wide: int, out: int) -> nn.Module:
    return Spp(wide, out, next(v for v in ("v1", "v2", "v3") if v in projector_type))


def _ldp(_projector_type: str, wide: int, out: int) -> nn.Module:
    return Ldp(wide, out)


def _concatenation(projector_type: str, wide: int, out: int) -> nn.Module:
    return Concatenation(wide, out, interleaved=projector_type == "vanilla")


def _pooler(_projector_type: str, wide: int, out: int) -> nn.Module:
    return Pooler(wide, out)


def _identity(_projector_type: str, _wide: int, _out: int) -> nn.Module:
    return nn.Identity()


# The builder of each row of the table of types, by its name.
MODULES: Final[dict[str, Callable[[str, int, int], nn.Module]]] = {
    "linear": _linear,
    "mlp": _mlp,
    "spp": _spp,
    "ldp": _ldp,
    "concatenation": _concatenation,
    "identity": _identity,
    "residual": _residual,
    "pooler": _pooler,
}
