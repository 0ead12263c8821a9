"""Describe the audio encoder of a checkpoint by its directory and by its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import (
    ADAPTER,
    AUDIO_PREFIX,
    PROMPT,
    adapter_of_shapes,
    expected_shapes,
    is_statistic,
    settings_of_shapes,
)
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class AudioSummary:
    """An audio encoder and its adapter; None is what is not known, or not there.

    ``blocks``, ``heads``, ``units``, ``positions``, ``feed_forward`` and the chunks are those of
    the (last) transformer. ``chunk`` frames attend to each other and to ``left_chunks`` chunks
    before them, 0 or less is no limit; ``dynamic_chunks`` is set if upstream draws that size at
    random, in eval mode too. ``prompt`` is the number of prompt embeddings.
    """

    mel_bins: int | None = None
    blocks: int | None = None
    width: int | None = None
    heads: int | None = None
    units: int | None = None
    positions: str | None = None
    feed_forward: str | None = None
    chunk: int | None = None
    left_chunks: int | None = None
    dynamic_chunks: bool | None = None
    adapter: str | None = None
    adapter_in_width: int | None = None
    adapter_out_width: int | None = None
    adapter_kernel: int | None = None
    adapter_norm: str | None = None
    adapter_activation: str | None = None
    prompt: int = 0


def summarize_audio(
    shapes: Mapping[str, Shape], directory: AudioDirectory | None
) -> AudioSummary | None:
    """Describe the audio encoder among ``shapes``, by its directory where that fits.

    The result is None where there is neither a tensor of one nor a readable directory.
    """
    own = parts.below(AUDIO_PREFIX, shapes)
    stored = settings_of_shapes(own)
    said = directory.settings if directory is not None else None
    known = said if stored is None or (said is not None and fits(stored, said)) else stored
    adapter = known.adapter if known else adapter_of_shapes(parts.below(ADAPTER, own))
    prompt = own.get(PROMPT, (0,))
    if not own and known is None:
        return None
    last = known.transformers[-1] if known is not None and known.transformers else None
    return AudioSummary(
        mel_bins=known.mel_bins if known else None,
        blocks=sum(t.blocks for t in known.transformers) if known else None,
        width=known.width if known else None,
        heads=last.heads if last else None,
        units=last.units if last else None,
        positions=last.positions if last else None,
        feed_forward=last.feed_forward if last else None,
        chunk=last.chunk if last else None,
        left_chunks=last.left_chunks if last else None,
        dynamic_chunks=last.dynamic_chunks if last else None,
        adapter=adapter.type if adapter else None,
        adapter_in_width=adapter.in_width if adapter else None,
        adapter_out_width=adapter.out_width if adapter else None,
        adapter_kernel=adapter.kernel if adapter else None,
        adapter_norm=adapter.norm if adapter and adapter.type != "linear" else None,
        adapter_activation=adapter.activation if adapter and adapter.type != "linear" else None,
        prompt=prompt[0] if prompt else 0,
    )


def audio_disagreements(
    config: Mapping[str, Any], shapes: Mapping[str, Shape], directory: AudioDirectory | None
) -> Iterator[str]:
    """Word what does not fit together: tensors, directory and language model."""
    own = parts.below(AUDIO_PREFIX, shapes)
    stored = settings_of_shapes(own)
    said = directory.settings if directory is not None else None
    if stored is not None and said is not None and not fits(stored, said):
        yield f"the audio encoder's directory describes {described(said)}, the weights hold " + (
            described(stored)
        )
    adapter = stored.adapter if stored else adapter_of_shapes(parts.below(ADAPTER, own))
    hidden = config.get("hidden_size")
    if adapter is not None and type(hidden) is int and adapter.out_width != hidden:
        yield f"the audio adapter's output has width {adapter.out_width}, hidden_size is {hidden}"


def fits(stored: AudioEncoder, said: AudioEncoder) -> bool:
    """Return whether tensors can be those of an encoder with the settings of a directory.

    Running statistics do not count: without them a batch norm looks like a layer norm.
    """
    one, other = (
        {name: shape for name, shape in expected_shapes(side).items() if not is_statistic(name)}
        for side in (stored, said)
    )
    return one == other


def described(settings: AudioEncoder) -> str:
    """Name an encoder and its adapter in a few words."""
    return f"{settings} and a {settings.adapter} adapter"
