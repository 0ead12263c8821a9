"""The projector types: names and shapes of each, and the types that given shapes may be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any, Final, TypeGuard

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# What upstream builds when the config names no type.
DEFAULT_TYPE: Final = "mlp2x_gelu"

_MLP: Final = re.compile(r"mlp([1-9][0-9]{0,3})x_gelu", re.ASCII)
_SPP: Final = ("v1", "v2", "v3")

# No model is wider; a config that says so is not believed.
_LARGEST_WIDTH: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector type with its widths: ``in_width`` features per token in, ``out_width`` out."""

    type: str
    in_width: int
    out_width: int

    def __str__(self) -> str:
        return f"{self.type} {self.in_width}→{self.out_width}"


def is_known(projector_type: str) -> bool:
    """Whether upstream builds a working projector from this type.

    A type that starts with ``spp`` but names no v1, v2 or v3 is built upstream and then passes its
    input through unprojected; here it is unknown.
    """
    return _kind(projector_type) is not None


def of_config(config: Mapping[str, Any]) -> Projector | None:
    """The projector that a VITA config describes; None for an unknown type or no width."""
    kind = config.get("mm_projector_type", DEFAULT_TYPE)
    wide, out = config.get("mm_hidden_size"), config.get("hidden_size")
    known = isinstance(kind, str) and is_known(kind)
    return Projector(kind, wide, out) if known and _is_width(wide) and _is_width(out) else None


def expected_shapes(projector: Projector) -> dict[str, Shape]:
    """Names (below ``model.mm_projector.``) and shapes of every tensor of a known type.

    Raises KeyError for an unknown type.
    """
    kind = _kind(projector.type)
    if kind is None:
        raise KeyError(projector.type)
    wide, out = projector.in_width, projector.out_width
    if kind == "linear":
        return _linear("", wide, out)
    if kind == "mlp":
        depth = _mlp_depth(projector.type)
        shapes = _linear("0.", wide, out)
        for layer in range(1, depth):
            shapes |= _linear(f"{2 * layer}.", out, out)
        return shapes
    if kind == "spp":
        return (
            _linear("linear_0.", wide, wide)
            | _linear("linear_1.", wide, out)
            | _linear("linear_2.", out, out)
        )
    if kind == "concat":
        return _linear("linear.", 4 * wide, out)
    if kind == "ldp":
        shapes = _linear("model.mlp.1.", wide, out) | _linear("model.mlp.3.", out, out)
        for block in ("model.mb_block.1.block.", "model.mb_block.2.block."):
            shapes |= _inverted_residual(block, out)
        return shapes
    return {}


def initial_values(shapes: Shapes) -> dict[str, tuple[float | None, float]]:
    """How torch initialises each tensor of a projector: the bound of a uniform, or None and a fill.

    ``nn.Linear`` and ``nn.Conv2d`` draw weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); a
    norm starts at weight 1 and bias 0.
    """
    values: dict[str, tuple[float | None, float]] = {}
    for name in shapes:
        module, _, kind = name.rpartition(".")
        weight = shapes[f"{module}.weight" if module else "weight"]
        if len(weight) > 1:
            values[name] = prod(weight[1:]) ** -0.5, 0.0
        else:
            values[name] = None, float(kind == "weight")
    return values


def candidates(shapes: Shapes) -> tuple[Projector, ...]:
    """Every projector that tensors of these names and shapes can be, names below the prefix.

    ``vanilla`` and ``minigpt`` store the same tensors, as do the three ``spp`` types: those come
    together, and only the config can tell them apart. Empty when nothing fits exactly.
    """
    guesses: list[Projector] = []
    if "weight" in shapes:
        guesses += _from_weight(("linear",), shapes["weight"], 1)
    elif "0.weight" in shapes:
        guesses += _from_weight((f"mlp{len(shapes) // 2}x_gelu",), shapes["0.weight"], 1)
    elif "linear_1.weight" in shapes:
        types = tuple(f"spp{version}" for version in _SPP)
        guesses += _from_weight(types, shapes["linear_1.weight"], 1)
    elif "linear.weight" in shapes:
        guesses += _from_weight(("vanilla", "minigpt"), shapes["linear.weight"], 4)
    elif "model.mlp.1.weight" in shapes:
        guesses += _from_weight(("ldp",), shapes["model.mlp.1.weight"], 1)
    return tuple(
        guess
        for guess in guesses
        if is_known(guess.type) and expected_shapes(guess) == dict(shapes)
    )


def same_tensors(one: str, other: str) -> bool:
    """Whether two types store tensors of the same names and shapes for the same widths."""
    kinds = (_kind(one), _kind(other))
    if None in kinds or kinds[0] != kinds[1]:
        return False
    return kinds[0] != "mlp" or _mlp_depth(one) == _mlp_depth(other)


def tokens_out(projector_type: str, tokens: int) -> int | None:
    """Tokens per image after a projector of this type, None where upstream cannot run it.

    Pooling works on the square grid of the tower: ``spp`` drops an odd last row and column,
    ``ldp`` halves rounding up; ``vanilla`` and ``minigpt`` take four consecutive tokens.
    """
    kind = _kind(projector_type)
    side = isqrt(tokens)
    if kind is None:
        return None
    if kind == "concat":
        return tokens // 4 if tokens % 4 == 0 else None
    if kind in ("spp", "ldp"):
        if side * side != tokens:
            return None
        return ((side + (kind == "ldp")) // 2) ** 2
    return tokens


def _is_width(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < _LARGEST_WIDTH


def _kind(projector_type: str) -> str | None:
    if projector_type in ("linear", "ldp", "identity"):
        return projector_type
    if projector_type in ("vanilla", "minigpt"):
        return "concat"
    if projector_type.startswith("spp") and any(v in projector_type for v in _SPP):
        return "spp"
    return "mlp" if _MLP.fullmatch(projector_type) else None


def _mlp_depth(projector_type: str) -> int:
    match = _MLP.fullmatch(projector_type)
    return int(match[1]) if match else 0


def _from_weight(types: tuple[str, ...], weight: Shape, factor: int) -> list[Projector]:
    if len(weight) != 2 or weight[1] % factor:
        return []
    return [Projector(kind, weight[1] // factor, weight[0]) for kind in types]


def _linear(prefix: str, wide: int, out: int) -> dict[str, Shape]:
    return {f"{prefix}weight": (out, wide), f"{prefix}bias": (out,)}


def _inverted_residual(prefix: str, width: int) -> dict[str, Shape]:
    """MobileNetV3's block: depthwise 3x3, norm, squeeze-excite (with biases), 1x1, norm."""
    squeeze = _make_divisible(width // 4, 8)
    return {
        f"{prefix}0.0.weight": (width, 1, 3, 3),
        f"{prefix}0.1.weight": (width,),
        f"{prefix}0.1.bias": (width,),
        f"{prefix}1.fc1.weight": (squeeze, width, 1, 1),
        f"{prefix}1.fc1.bias": (squeeze,),
        f"{prefix}1.fc2.weight": (width, squeeze, 1, 1),
        f"{prefix}1.fc2.bias": (width,),
        f"{prefix}2.0.weight": (width, width, 1, 1),
        f"{prefix}2.1.weight": (width,),
        f"{prefix}2.1.bias": (width,),
    }


def _make_divisible(value: int, divisor: int) -> int:
    """MobileNet's rounding of a channel count: to the nearest multiple, never below 90 % of it."""
    rounded = max(divisor, (value + divisor // 2) // divisor * divisor)
    return rounded + divisor if 10 * rounded < 9 * value else rounded
