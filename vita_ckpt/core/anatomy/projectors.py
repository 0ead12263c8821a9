"""Define the projector types: their tensor names and shapes, and which type given shapes fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isqrt, prod
from typing import Any, Final, TypeGuard

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.spelling import did_you_mean

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# What upstream builds when the config names no type.
DEFAULT_TYPE: Final = "mlp2x_gelu"

# An upper limit, to reject implausible configs: no model is wider.
_LARGEST_WIDTH: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector type with its widths: features per token in (``in_width``) and out."""

    type: str
    in_width: int
    out_width: int

    def __str__(self) -> str:
        return f"{self.type} {self.in_width}→{self.out_width}"


@dataclass(frozen=True, slots=True)
class ProjectorType:
    """Projector types that store tensors of the same names and shapes.

    ``name`` identifies them in the table of modules, ``spellings`` are the names that messages
    list. ``layers`` returns the number of layers that a value of ``mm_projector_type`` asks for (1
    where it does not vary), or None for a value that is not one of these types. ``shapes`` returns
    the tensors by input width, output width and layers. ``tokens`` returns the tokens per image
    after the projector, or None where upstream cannot run it.

    ``weight`` is the tensor [out, ``together`` * in, …] by which such projectors are recognised,
    empty if they have none. ``together`` is the number of tokens that are concatenated.
    ``types_of_tensors`` returns the types that a number of tensors can be.
    """

    name: str
    spellings: tuple[str, ...]
    layers: Callable[[str], int | None]
    shapes: Callable[[int, int, int], dict[str, Shape]]
    tokens: Callable[[int], int | None]
    types_of_tensors: Callable[[int], tuple[str, ...]]
    weight: str
    together: int = 1


def is_known(projector_type: str, types: Sequence[ProjectorType] | None = None) -> bool:
    """Return whether upstream builds a working projector from this type.

    ``types`` are those of the model's family, by default VITA's. A type that starts with ``spp``
    but does not name v1, v2 or v3 is built upstream but passes its input through unprojected. It
    counts as unknown here.
    """
    types = TYPES if types is None else types
    return any(kind.layers(projector_type) is not None for kind in types)


def find_type(projector_type: str) -> ProjectorType | None:
    """Return the table row for a value of ``mm_projector_type``, None if no family has it."""
    return next((kind for kind in EVERY_TYPE if kind.layers(projector_type) is not None), None)


def spellings(types: Sequence[ProjectorType] | None = None, layers: str = "N") -> list[str]:
    """Return the names of the types of a family, by default VITA's, with the number of layers."""
    names = (spelling for kind in types or TYPES for spelling in kind.spellings)
    return [name.replace("N", layers) for name in names]


def meant(word: str, types: Sequence[ProjectorType] | None = None) -> str:
    """Return a hint: the type of a family, by default VITA's, that is nearest to ``word``."""
    number = re.search(r"\d+", word)
    return did_you_mean(word, spellings(types, number[0] if number else "2"))


def listed(types: Sequence[ProjectorType] | None = None) -> str:
    """Return the types of a family, by default VITA's, formatted for a sentence."""
    names = spellings(types)
    return f"{', '.join(names[:-1])} or {names[-1]}"


def has_no_tensors(projector_type: str) -> bool:
    """Return whether a projector of this type stores no tensors, and so keeps the width."""
    kind = find_type(projector_type)
    return kind is not None and not kind.weight


def of_config(
    config: Mapping[str, Any], types: Sequence[ProjectorType] | None = None
) -> Projector | None:
    """Return the projector that a config describes; None for an unknown type or width.

    ``types`` are those of the model's family, by default VITA's.
    """
    kind = config.get("mm_projector_type", DEFAULT_TYPE)
    wide, out = config.get("mm_hidden_size"), config.get("hidden_size")
    known = isinstance(kind, str) and is_known(kind, types)
    return Projector(kind, wide, out) if known and _is_width(wide) and _is_width(out) else None


def expected_shapes(projector: Projector) -> dict[str, Shape]:
    """Return names (below ``model.mm_projector.``) and shapes of every tensor of a known type.

    Raises KeyError for an unknown type.
    """
    kind = find_type(projector.type)
    layers = kind.layers(projector.type) if kind is not None else None
    if kind is None or layers is None:
        raise KeyError(projector.type)
    return kind.shapes(projector.in_width, projector.out_width, layers)


def initial_values(shapes: Shapes) -> dict[str, tuple[float | None, float]]:
    """Return how torch initialises each tensor: a uniform bound, or None, and a fill value.

    ``nn.Linear`` and ``nn.Conv2d`` draw weight and bias from U(-1/sqrt(fan_in), 1/sqrt(fan_in)). A
    norm starts at weight 1 and bias 0; its bound is None.
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


def candidates(
    shapes: Shapes, types: Sequence[ProjectorType] | None = None
) -> tuple[Projector, ...]:
    """Return every projector that tensors of these names and shapes can be.

    ``types`` are those of the model's family, by default VITA's. Names are those below the prefix.
    ``vanilla`` and ``minigpt`` store the same tensors, as do the three ``spp`` types; all of them
    are returned, since only the config can distinguish them. The result is empty when nothing fits
    exactly.
    """
    guesses: list[Projector] = []
    for kind in TYPES if types is None else types:
        weight = shapes.get(kind.weight, ()) if kind.weight else ()
        if len(weight) in (2, 4) and weight[1] % kind.together == 0:
            guesses += (
                Projector(name, weight[1] // kind.together, weight[0])
                for name in kind.types_of_tensors(len(shapes))
            )
    return tuple(
        guess
        for guess in guesses
        if find_type(guess.type) is not None and expected_shapes(guess) == dict(shapes)
    )


def same_tensors(one: str, other: str) -> bool:
    """Return whether two types store tensors of the same names and shapes for the same widths."""
    kind = find_type(one)
    return kind is not None and kind is find_type(other) and kind.layers(one) == kind.layers(other)


def tokens_out(projector_type: str, tokens: int) -> int | None:
    """Return the tokens per image after a projector of this type, None if upstream cannot run it.

    Pooling uses the square grid of the tower: ``spp`` drops an odd last row and column, ``ldp``
    halves rounding up. ``vanilla`` and ``minigpt`` take four consecutive tokens.
    """
    kind = find_type(projector_type)
    return kind.tokens(tokens) if kind is not None else None


def _is_width(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < _LARGEST_WIDTH


def _named(*types: str) -> Callable[[str], int | None]:
    """Return a function that matches a few types by their full names."""
    return lambda projector_type: 1 if projector_type in types else None


def _always(*types: str) -> Callable[[int], tuple[str, ...]]:
    return lambda _tensors: types


def _all_tokens(tokens: int) -> int:
    return tokens


def _linear(prefix: str, wide: int, out: int) -> dict[str, Shape]:
    return {f"{prefix}weight": (out, wide), f"{prefix}bias": (out,)}


def _inverted_residual(prefix: str, width: int) -> dict[str, Shape]:
    """Return MobileNetV3's block: depthwise 3x3, norm, squeeze-excite (with biases), 1x1, norm."""
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
    """Round a channel count as MobileNet does: to a multiple, but not below 90 % of the count."""
    rounded = max(divisor, (value + divisor // 2) // divisor * divisor)
    return rounded + divisor if 10 * rounded < 9 * value else rounded


_LINEAR: Final = ProjectorType(
    name="linear",
    spellings=("linear",),
    layers=_named("linear"),
    shapes=lambda wide, out, _layers: _linear("", wide, out),
    tokens=_all_tokens,
    types_of_tensors=_always("linear"),
    weight="weight",
)

_MLP_TYPE: Final = re.compile(r"mlp([1-9][0-9]{0,3})x_gelu", re.ASCII)


def _mlp_layers(projector_type: str) -> int | None:
    match = _MLP_TYPE.fullmatch(projector_type)
    return int(match[1]) if match else None


def _mlp_shapes(wide: int, out: int, layers: int) -> dict[str, Shape]:
    shapes = _linear("0.", wide, out)
    for layer in range(1, layers):
        shapes |= _linear(f"{2 * layer}.", out, out)
    return shapes


_MLP: Final = ProjectorType(
    name="mlp",
    spellings=("mlpNx_gelu",),
    layers=_mlp_layers,
    shapes=_mlp_shapes,
    tokens=_all_tokens,
    types_of_tensors=lambda tensors: (f"mlp{tensors // 2}x_gelu",),
    weight="0.weight",
)

_SPP_VERSIONS: Final = ("v1", "v2", "v3")


def _spp_layers(projector_type: str) -> int | None:
    known = projector_type.startswith("spp") and any(v in projector_type for v in _SPP_VERSIONS)
    return 1 if known else None


def _spp_shapes(wide: int, out: int, _layers: int) -> dict[str, Shape]:
    first = _linear("linear_0.", wide, wide) | _linear("linear_1.", wide, out)
    return first | _linear("linear_2.", out, out)


def _half_grid(tokens: int, extra: int = 0) -> int | None:
    side = isqrt(tokens)
    return ((side + extra) // 2) ** 2 if side * side == tokens else None


_SPP_TYPES: Final = tuple(f"spp{version}" for version in _SPP_VERSIONS)
_SPP: Final = ProjectorType(
    name="spp",
    spellings=_SPP_TYPES,
    layers=_spp_layers,
    shapes=_spp_shapes,
    tokens=_half_grid,
    types_of_tensors=_always(*_SPP_TYPES),
    weight="linear_1.weight",
)


def _ldp_shapes(wide: int, out: int, _layers: int) -> dict[str, Shape]:
    shapes = _linear("model.mlp.1.", wide, out) | _linear("model.mlp.3.", out, out)
    for block in ("model.mb_block.1.block.", "model.mb_block.2.block."):
        shapes |= _inverted_residual(block, out)
    return shapes


_LDP: Final = ProjectorType(
    name="ldp",
    spellings=("ldp",),
    layers=_named("ldp"),
    shapes=_ldp_shapes,
    tokens=lambda tokens: _half_grid(tokens, extra=1),
    types_of_tensors=_always("ldp"),
    weight="model.mlp.1.weight",
)

_FOUR: Final = 4
_CONCATENATION: Final = ProjectorType(
    name="concatenation",
    spellings=("vanilla", "minigpt"),
    layers=_named("vanilla", "minigpt"),
    shapes=lambda wide, out, _layers: _linear("linear.", _FOUR * wide, out),
    tokens=lambda tokens: tokens // _FOUR if tokens % _FOUR == 0 else None,
    types_of_tensors=_always("vanilla", "minigpt"),
    weight="linear.weight",
    together=_FOUR,
)

_IDENTITY: Final = ProjectorType(
    name="identity",
    spellings=("identity",),
    layers=_named("identity"),
    shapes=lambda _wide, _out, _layers: {},
    tokens=_all_tokens,
    types_of_tensors=_always(),
    weight="",
)

_RESIDUAL_TYPE: Final = re.compile(r"mlp([1-9][0-9]{0,2})x_res([0-9]{1,3})x_gelu", re.ASCII)
# A number of layers holds both depths: those of the MLP, and those of the residual blocks.
_DEPTHS: Final = 1000
_TENSORS_OF_BLOCK: Final = 6


def _residual_layers(projector_type: str) -> int | None:
    match = _RESIDUAL_TYPE.fullmatch(projector_type)
    return int(match[1]) * _DEPTHS + int(match[2]) if match else None


def _residual_shapes(wide: int, out: int, layers: int) -> dict[str, Shape]:
    """Return an MLP, and blocks that add to a normed input its projection."""
    depth, blocks = divmod(layers, _DEPTHS)
    shapes = _mlp_shapes(wide, out, depth)
    for block in range(2 * depth - 1, 2 * depth - 1 + blocks):
        shapes |= {f"{block}.pre_norm.weight": (out,), f"{block}.pre_norm.bias": (out,)}
        shapes |= _linear(f"{block}.proj.0.", out, out) | _linear(f"{block}.proj.2.", out, out)
    return shapes


def _residual_types(tensors: int) -> tuple[str, ...]:
    blocks = range(1, min(tensors // _TENSORS_OF_BLOCK, _DEPTHS - 1) + 1)
    depths = {block: (tensors - _TENSORS_OF_BLOCK * block) // 2 for block in blocks}
    return tuple(f"mlp{depth}x_res{block}x_gelu" for block, depth in depths.items() if depth > 0)


_RESIDUAL: Final = ProjectorType(
    name="residual",
    spellings=("mlpNx_resMx_gelu",),
    layers=_residual_layers,
    shapes=_residual_shapes,
    tokens=_all_tokens,
    types_of_tensors=_residual_types,
    weight="0.weight",
)

_POOLER: Final = ProjectorType(
    name="pooler",
    spellings=("pooler",),
    layers=_named("pooler"),
    shapes=lambda wide, out, _layers: {
        "conv_pool.weight": (out, wide, 2, 2),
        "conv_pool.bias": (out,),
        **_linear("proj.1.", out, out),
    },
    tokens=_half_grid,
    types_of_tensors=_always("pooler"),
    weight="conv_pool.weight",
)

# Every type that VITA and Bunny build, in the order in which messages list them.
TYPES: Final = (
    _LINEAR,
    _MLP,
    _SPP,
    _LDP,
    _CONCATENATION,
    _IDENTITY,
)

LLAVA_TYPES: Final = (_LINEAR, _MLP, _IDENTITY)
LLAVA_NEXT_TYPES: Final = (*LLAVA_TYPES, _RESIDUAL, _POOLER)
EVERY_TYPE: Final = (*TYPES, _RESIDUAL, _POOLER)
