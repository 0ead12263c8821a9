"""Estimate the memory that a model needs when it runs: weights, KV cache, the tower's activations.

All of it follows from the names and shapes of the tensors. The key-value cache holds for each token
the outputs of every ``k_proj`` and ``v_proj``. A tower's activations are the hidden states of all
its layers, which upstream keeps (``output_hidden_states``), and what one layer holds beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import prod
from typing import Final

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.checkpoint import Checkpoint, Form, Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import BITS, CAST_SOURCES, CAST_TARGETS, nbytes

_TOKENS: Final = 1000


@dataclass(frozen=True, slots=True)
class Memory:
    """What a model needs to run, in bytes, in the dtype ``dtype`` for ``batch`` inputs at once.

    ``weights_as`` are the weights in each dtype that ``convert`` writes. ``kv_cache`` is what 1,000
    tokens of each input take, None without a language model; ``tower_activations`` are those of one
    image of each input, None without a tower. Sliding windows, which bound the cache, and the
    language model's activations are left out.
    """

    dtype: str
    batch: int
    weights: int
    weights_as: Mapping[str, int]
    kv_cache_per_1000_tokens: int | None
    tower_activations: int | None


def estimate(
    checkpoint: Checkpoint,
    forms: Mapping[Form, int],
    *,
    dtype: str | None = None,
    batch: int = 1,
    scales: Collection[int] = (),
) -> Memory:
    """Estimate the memory of a model or a tower, of whose tensors ``forms`` are the counted forms.

    ``dtype`` is by default the one that most of the weights have, ``scales`` are those of S2 in
    pixels.
    """
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    kind = dtype or _commonest(forms)
    width = BITS[kind] // 8
    kv = sum(_kv_rows(shapes))
    activations = _tower_elements(shapes, scales)
    return Memory(
        dtype=kind,
        batch=batch,
        weights=_weights(forms, kind),
        weights_as={target: _weights(forms, target) for target in CAST_TARGETS},
        kv_cache_per_1000_tokens=kv * width * batch * _TOKENS if kv else None,
        tower_activations=activations * width * batch if activations else None,
    )


def _commonest(forms: Mapping[Form, int]) -> str:
    sizes: dict[str, int] = {}
    for (dtype, shape), count in forms.items():
        if dtype in CAST_SOURCES:
            sizes[dtype] = sizes.get(dtype, 0) + prod(shape) * count
    return max(sizes, key=sizes.__getitem__, default="F32")


def _weights(forms: Mapping[Form, int], dtype: str) -> int:
    """Return the bytes of all tensors, floating ones in ``dtype``."""
    return sum(
        count * (prod(shape) * BITS[dtype] // 8 if own in CAST_SOURCES else nbytes(own, shape))
        for (own, shape), count in forms.items()
    )


def _kv_rows(shapes: Mapping[str, Shape]) -> Iterator[int]:
    """Yield the width of keys and that of values in each layer of the language model."""
    for name, shape in shapes.items():
        is_kv = name.endswith((".self_attn.k_proj.weight", ".self_attn.v_proj.weight"))
        if is_kv and name.startswith(parts.LAYERS_PREFIX) and len(shape) == 2:
            yield shape[0]


def _tower_elements(shapes: Mapping[str, Shape], scales: Collection[int]) -> int | None:
    """Return the elements that one image takes in a tower at once; None without a known tower."""
    below = parts.below(parts.TOWER_PREFIX, shapes)
    has_language_model = any(name.startswith(parts.LAYERS_PREFIX) for name in shapes)
    shapes = below if below or has_language_model else shapes
    tower = towers.tower_of_shapes(shapes)
    if tower is None or tower.layers is None:
        return None
    own = {name: shapes[full] for full, name in towers.own_names(shapes).items()}
    positions = own.get(tower.traits.positions, ())
    inner = [max(shape) for name, shape in own.items() if ".mlp." in name and len(shape) == 2]
    if len(positions) < 2 or not inner:
        return None
    tiles = max((-(-scale // min(scales)) for scale in scales), default=1) ** 2
    kept = (tower.layers + 1) * tower.width
    # In the MLP, which takes the most: its input, normalised, and its inner state twice.
    at_once = 2 * tower.width + 2 * max(inner)
    return tiles * max(positions[:-1]) * (kept + at_once)
