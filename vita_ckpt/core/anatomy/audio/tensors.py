"""Relate an audio encoder's settings to the names and shapes of its tensors (AUDIO §2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.settings import (
    CNN,
    LINEAR,
    SUBSAMPLING,
    AudioAdapter,
    AudioEncoder,
    Component,
    Subsampling,
    Transformer,
)
from vita_ckpt.core.checkpoint import Shape

Shapes = Mapping[str, Shape]

AUDIO_PREFIX: Final = "model.audio_encoder."
# "adpter" is how the checkpoints spell it.
ADAPTER: Final = "adpter."
CMVN: Final = ("encoder.global_cmvn.mean", "encoder.global_cmvn.istd")
PROMPT: Final = "prompt_embeddings.weight"

# No prompt is longer; a config that says so is not believed.
_MOST_PROMPTS: Final = 1 << 20

# Buffers of a batch norm, which the trainer's adapter file does not hold.
STATISTICS: Final = (".running_mean", ".running_var")
# Counts batches in training. No output depends on it, and upstream does without it.
COUNTER: Final = ".num_batches_tracked"


def expected_shapes(settings: AudioEncoder, prompt: int = 0) -> dict[str, Shape]:
    """Return names (below ``model.audio_encoder.``) and shapes of every tensor.

    ``prompt`` is the number of trained prompt embeddings.
    """
    shapes: dict[str, Shape] = dict.fromkeys(CMVN, (settings.mel_bins,))
    for index, component in enumerate(settings.components):
        shapes |= _below(f"encoder.enc.{index}.", _component(component))
    shapes |= _below(ADAPTER, adapter_shapes(settings.adapter))
    if prompt:
        shapes[PROMPT] = (prompt, settings.adapter.out_width)
    return shapes


def wanted_tensors(
    config: Mapping[str, Any], shapes: Shapes, settings: AudioEncoder | None
) -> dict[str, Shape]:
    """Return the tensors that a loader builds for a VITA config, by the names of the checkpoint.

    ``shapes`` are those of all tensors of the checkpoint. ``settings`` are those of the directory
    that the config names; without them the tensors decide. Empty where nothing determines them. A
    batch norm's counter is wanted only where it is stored.
    """
    own = parts.below(AUDIO_PREFIX, shapes)
    described = settings or settings_of_shapes(own)
    if described is None:
        return {}
    return {
        AUDIO_PREFIX + name: shape
        for name, shape in expected_shapes(described, prompt_rows(config)).items()
        if not name.endswith(COUNTER) or name in own
    }


def adapter_shapes(adapter: AudioAdapter) -> dict[str, Shape]:
    """Return names (below ``adpter.``) and shapes of the adapter's tensors."""
    wide, out, kernel = adapter.in_width, adapter.out_width, adapter.kernel
    if adapter.type == LINEAR:
        return _affine("adpter", (out, wide))
    if adapter.type == CNN:
        return {
            **_affine("conv1d1", (2 * wide, wide, kernel)),
            **_batch_norm("bn1", 2 * wide),
            **_affine("conv1d2", (4 * wide, 2 * wide, kernel)),
            **_batch_norm("bn2", 4 * wide),
            **_affine("project", (out, 4 * wide)),
        }
    norm = _batch_norm if adapter.norm == "batch" else _layer_norm
    return {
        **_affine("conv1d2", (2 * wide, wide, kernel)),
        **norm("bn2", 2 * wide),
        **_affine("project", (out, 2 * wide)),
    }


def prompt_rows(config: Mapping[str, Any]) -> int:
    """Return how many prompt embeddings a loader builds for a VITA config."""
    number = config.get("audio_prompt_num")
    if config.get("audio_prompt_finetune") is not True or type(number) is not int:
        return 0
    return number if 0 < number <= _MOST_PROMPTS else 0


def settings_of_shapes(shapes: Shapes) -> AudioEncoder | None:
    """Return what tensors (named below ``model.audio_encoder.``) tell of an encoder.

    Heads follow only from relative positions; chunks and the activation never do. The result is
    None where the sizes cannot be told.
    """
    components: list[Component] = []
    while True:
        prefix = f"encoder.enc.{len(components)}."
        below = {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}
        if not below:
            break
        width = components[-1].out_width if components else _length(shapes, CMVN[0])
        found = _component_of(below, width)
        if found is None:
            return None
        components.append(found)
    adapter = adapter_of_shapes(
        {n.removeprefix(ADAPTER): s for n, s in shapes.items() if n.startswith(ADAPTER)}
    )
    mel_bins = _length(shapes, CMVN[0]) or _length(shapes, CMVN[1])
    if not components or adapter is None or not mel_bins:
        return None
    return AudioEncoder(mel_bins, tuple(components), adapter)


def adapter_of_shapes(shapes: Shapes) -> AudioAdapter | None:
    """Return what tensors (named below ``adpter.``) tell of an adapter; None if they are of none.

    Batch norms are told from layer norms by their running statistics.
    """
    kind = (
        LINEAR if "adpter.weight" in shapes else CNN if "conv1d1.weight" in shapes else SUBSAMPLING
    )
    first = {LINEAR: "adpter.weight", CNN: "conv1d1.weight", SUBSAMPLING: "conv1d2.weight"}[kind]
    weight = shapes.get(first, ())
    last = weight if kind == LINEAR else shapes.get("project.weight", ())
    if len(weight) != (2 if kind == LINEAR else 3) or len(last) != 2 or 0 in (*weight, *last):
        return None
    batch = any(f"bn2{name}" in shapes for name in (*STATISTICS, COUNTER))
    return AudioAdapter(
        type=kind,
        in_width=weight[1],
        out_width=last[0],
        kernel=1 if kind == LINEAR else weight[2],
        norm="layer" if kind == SUBSAMPLING and not batch else "batch",
        activation=None if kind == SUBSAMPLING else "relu",
    )


def is_statistic(name: str) -> bool:
    """Return whether a tensor holds running statistics of a batch norm."""
    return name.endswith((*STATISTICS, COUNTER))


def _below(prefix: str, shapes: Shapes) -> dict[str, Shape]:
    return {prefix + name: shape for name, shape in shapes.items()}


def _affine(name: str, shape: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def _layer_norm(name: str, width: int) -> dict[str, Shape]:
    return _affine(name, (width,))


def _batch_norm(name: str, width: int) -> dict[str, Shape]:
    statistics = {name + statistic: (width,) for statistic in STATISTICS}
    return {**_affine(name, (width,)), **statistics, name + COUNTER: ()}


def _component(component: Component) -> dict[str, Shape]:
    if isinstance(component, Subsampling):
        wide, bins = component.out_width, ((component.in_width - 1) // 2 - 1) // 2
        return {
            **_affine("core.conv.0", (wide, 1, 3, 3)),
            **_affine("core.conv.2", (wide, wide, 3, 3)),
            **_affine("core.out.0", (wide, wide * bins)),
        }
    width = component.width
    shapes: dict[str, Shape] = {}
    if component.input_layer == "linear":
        shapes |= _affine("embed.0", (width, component.in_width)) | _layer_norm("embed.1", width)
    block = _block(component)
    for layer in range(component.blocks):
        shapes |= _below(f"encoders.{layer}.", block)
    return shapes | (_layer_norm("after_norm", width) if component.pre_norm else {})


def _block(component: Transformer) -> dict[str, Shape]:
    width, units, kernel = component.width, component.units, component.kernel
    shapes: dict[str, Shape] = {}
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        shapes |= _affine(f"self_attn.{name}", (width, width))
    if component.positions == "rel-enc":
        heads = component.heads or 1
        shapes["self_attn.linear_pos.weight"] = (width, width)
        shapes |= dict.fromkeys(_POSITION_BIASES, (heads, width // heads))
    at = "feed_forward.w_"
    if component.feed_forward == "linear":
        shapes |= _affine(f"{at}1", (units, width)) | _affine(f"{at}2", (width, units))
    elif component.feed_forward == "conv1d":
        shapes |= _affine(f"{at}1", (units, width, kernel))
        shapes |= _affine(f"{at}2", (width, units, kernel))
    else:
        shapes |= _affine(f"{at}1.0", (width, 1, kernel)) | _affine(f"{at}1.1", (units, width, 1))
        shapes |= _affine(f"{at}2", (width, units))
    shapes |= _layer_norm("norm1", width) | _layer_norm("norm2", width)
    return shapes | (_affine("concat_linear", (width, 2 * width)) if component.concat_after else {})


_POSITION_BIASES: Final = ("self_attn.pos_bias_u", "self_attn.pos_bias_v")


def _length(shapes: Shapes, name: str) -> int:
    shape = shapes.get(name, ())
    return shape[0] if len(shape) == 1 else 0


def _component_of(shapes: Shapes, in_width: int) -> Component | None:
    """Return the component that tensors (named below it) are of; None if they are of none."""
    conv = shapes.get("core.conv.0.weight")
    if conv is not None:
        return Subsampling(in_width, conv[0]) if conv and conv[0] and in_width else None
    block = {
        name.removeprefix("encoders.0."): shape
        for name, shape in shapes.items()
        if name.startswith("encoders.0.")
    }
    query = block.get("self_attn.linear_q.weight", ())
    layers = {name.split(".")[1] for name in shapes if name.startswith("encoders.")}
    numbers = sorted(int(layer) for layer in layers if layer.isdecimal() and len(layer) < 5)
    if len(query) != 2 or not query[0] or not in_width:
        return None
    width = query[0]
    biases = next((block[name] for name in _POSITION_BIASES if name in block), ())
    relative = "self_attn.linear_pos.weight" in block or bool(biases)
    feed_forward, units, kernel = _feed_forward_of(block)
    embed = "embed.0.weight" in shapes
    if not units or (relative and (len(biases) != 2 or not biases[0])):
        return None
    return Transformer(
        in_width=in_width,
        width=width,
        heads=biases[0] if relative else None,
        units=units,
        blocks=numbers[-1] + 1,
        input_layer="linear" if embed else "none",
        positions="rel-enc" if relative else "abs-enc",
        pre_norm="after_norm.weight" in shapes,
        concat_after="concat_linear.weight" in block,
        feed_forward=feed_forward,
        kernel=kernel,
        chunk=None,
        left_chunks=None,
        dynamic_chunks=None,
    )


def _feed_forward_of(block: Shapes) -> tuple[str, int, int]:
    """Return type, units and kernel of a block's feed-forward; no units if it has none."""
    whole = block.get("feed_forward.w_1.weight", ())
    if len(whole) == 2:
        return "linear", whole[0], 1
    if len(whole) == 3:
        return "conv1d", whole[0], whole[2]
    depth, point = (block.get(f"feed_forward.w_1.{part}.weight", ()) for part in (0, 1))
    if len(depth) == len(point) == 3:
        return "conv1d-linear", point[0], depth[2]
    return "linear", 0, 1
