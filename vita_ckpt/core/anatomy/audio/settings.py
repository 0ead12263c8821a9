"""Read the settings of an audio encoder from the content of its ``train.yaml`` (AUDIO §3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError

# The sections of train.yaml that say how the encoder is built; others may be large.
SECTIONS: Final = ("input_dim", "is_json_cmvn", "encoder_conf", "model_conf", "dataset_conf")

SUBSAMPLING: Final = "subsampling"
TRANSFORMER: Final = "transformer"

LINEAR: Final = "linear"
CNN: Final = "cnn"
ADAPTER_TYPES: Final = (SUBSAMPLING, CNN, LINEAR)

# The factor by which a subsampling component reduces the frames; upstream builds no other.
_RATE: Final = 4

# No encoder is wider or deeper; a file that says so is not believed.
_LARGEST_WIDTH: Final = 1 << 20
_LARGEST_KERNEL: Final = 1 << 12
_MOST_BLOCKS: Final = 1024
_MOST_COMPONENTS: Final = 64
_FEWEST_BINS: Final = 7  # below it two convolutions leave nothing


@dataclass(frozen=True, slots=True)
class Subsampling:
    """Two strided convolutions and a linear layer: a quarter of the frames."""

    in_width: int
    out_width: int


@dataclass(frozen=True, slots=True)
class Transformer:
    """Transformer blocks; None is what tensors alone do not tell.

    ``positions`` is ``rel-enc`` or ``abs-enc``, ``feed_forward`` one of ``linear``, ``conv1d`` and
    ``conv1d-linear``. ``chunk`` is the number of frames that attend to each other and to those of
    ``left_chunks`` chunks before them; 0 or less is no limit. ``dynamic_chunks`` is set if
    upstream draws the chunk's size at random, in eval mode too.
    """

    in_width: int
    width: int
    heads: int | None
    units: int
    blocks: int
    input_layer: str
    positions: str
    pre_norm: bool
    concat_after: bool
    feed_forward: str
    kernel: int
    chunk: int | None
    left_chunks: int | None
    dynamic_chunks: bool | None

    @property
    def out_width(self) -> int:
        """The width of its output."""
        return self.width


Component = Subsampling | Transformer


@dataclass(frozen=True, slots=True)
class AudioAdapter:
    """The adapter between encoder and language model; None is what tensors alone do not tell."""

    type: str
    in_width: int
    out_width: int
    kernel: int
    norm: str
    activation: str | None

    @property
    def has_statistics(self) -> bool:
        """Whether it has batch norms, whose running statistics no trainer's adapter file holds."""
        return self.type == CNN or (self.type == SUBSAMPLING and self.norm == "batch")

    def __str__(self) -> str:
        return f"{self.type} {self.in_width}→{self.out_width}"


@dataclass(frozen=True, slots=True)
class AudioEncoder:
    """An audio encoder with its adapter, as ``train.yaml`` or tensors describe it.

    ``mel_bins`` is the width of the features that it takes.
    """

    mel_bins: int
    components: tuple[Component, ...]
    adapter: AudioAdapter

    @property
    def transformers(self) -> tuple[Transformer, ...]:
        """The components that are transformers."""
        return tuple(c for c in self.components if isinstance(c, Transformer))

    @property
    def width(self) -> int:
        """The width of its output, which the adapter receives."""
        return self.components[-1].out_width

    @property
    def is_complete(self) -> bool:
        """Whether it can be run: tensors alone do not tell how."""
        return self.adapter.activation is not None and all(
            None not in (t.heads, t.chunk, t.left_chunks, t.dynamic_chunks)
            for t in self.transformers
        )

    @property
    def dynamic_chunks(self) -> bool:
        """Whether upstream draws the size of its chunks at random."""
        return any(t.dynamic_chunks for t in self.transformers)

    def frames_out(self, frames: int) -> int:
        """Return the frames out of the encoder, before the adapter."""
        for component in self.components:
            if isinstance(component, Subsampling):
                frames = max((max((frames - 1) // 2, 0) - 1) // 2, 0)
        return frames

    def tokens_out(self, frames: int) -> int:
        """Return the embeddings that the adapter makes of a recording, without the prompt."""
        frames = self.frames_out(frames)
        return -(-frames // 2) if self.adapter.type == SUBSAMPLING else frames

    def __str__(self) -> str:
        blocks = sum(t.blocks for t in self.transformers)
        return f"{blocks} blocks of width {self.width}, {self.mel_bins} mel bins"


def tokens_for_llm(frames: int) -> int:
    """Return how many embeddings upstream splices in for a recording (AUDIO §4).

    It drops two frames and takes every second, again so, then takes every second, whatever the
    adapter does.
    """
    half = max((frames - 1) // 2, 0)
    quarter = max((half - 1) // 2, 0)
    return -(-quarter // 2)


def read_settings(content: Mapping[str, Any]) -> AudioEncoder:
    """Read the settings in the content of a ``train.yaml``.

    Raises InputError ``unsupported-audio-config`` for what upstream cannot build or run.
    """
    encoder = _section(content, "encoder_conf")
    overview = _dashed(_section(encoder, "overview_conf", "encoder_conf."))
    parameters = _section(encoder, "para_conf", "encoder_conf.")
    mel_bins = _value(overview, "encoder-input-dim", _is_width(_FEWEST_BINS))
    if (given := content.get("input_dim", mel_bins)) != mel_bins:
        raise unsupported("input_dim", f"{mel_bins}, as encoder-input-dim", given)
    components = tuple(_components(overview, parameters))
    _check_chain(overview, mel_bins, components)
    adapter = _adapter(_section(content, "model_conf"))
    settings = AudioEncoder(mel_bins, tuple(built for built, _ in components), adapter)
    if adapter.in_width != settings.width:
        raise unsupported("enc_out_dim", f"{settings.width}, the encoder's width", adapter.in_width)
    return settings


def unsupported(key: str, expected: str, got: object) -> InputError:
    """Return the error for a setting that no audio encoder can be built with."""
    return InputError(
        "unsupported-audio-config",
        key,
        expected=f"{expected} in train.yaml",
        got="nothing" if got is None else repr(got),
    )


def _section(content: Mapping[str, Any], key: str, below: str = "") -> Mapping[str, Any]:
    value = content.get(key)
    if not isinstance(value, Mapping):
        raise unsupported(below + key, "a mapping", value)
    return value


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Spell names with dashes: upstream's argument parser knows no difference."""
    return {str(key).replace("_", "-"): value for key, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a value may be, in words and as a function."""

    expected: str
    accepts: Callable[[Any], bool]


def _is_width(least: int = 1) -> _Kind:
    return _Kind(
        f"an integer from {least} to {_LARGEST_WIDTH}",
        lambda value: type(value) is int and least <= value <= _LARGEST_WIDTH,
    )


def _choice(*names: str) -> _Kind:
    return _Kind(f"one of {', '.join(names)}", lambda value: value in names)


_WIDTH: Final = _is_width()
_BLOCKS: Final = _Kind(
    f"an integer from 1 to {_MOST_BLOCKS}",
    lambda value: type(value) is int and 1 <= value <= _MOST_BLOCKS,
)
_KERNEL: Final = _Kind(
    f"an integer from 1 to {_LARGEST_KERNEL}",
    lambda value: type(value) is int and 1 <= value <= _LARGEST_KERNEL,
)
_COUNT: Final = _Kind("an integer", lambda value: type(value) is int and abs(value) < 1 << 31)
_BOOLEAN: Final = _Kind("true or false", lambda value: type(value) is bool)
_TEXT: Final = _Kind("a text", lambda value: type(value) is str)

# Upstream's defaults, with what a value may be; other names are ignored, as upstream ignores them.
_TRANSFORMER: Final[dict[str, tuple[Any, _Kind]]] = {
    "transformer-input-dim": (256, _WIDTH),
    "transformer-output-dim": (4, _WIDTH),
    "transformer-attention-dim": (256, _WIDTH),
    "transformer-attention-heads": (4, _WIDTH),
    "transformer-linear-units": (1024, _WIDTH),
    "transformer-num-blocks": (6, _BLOCKS),
    "transformer-input-layer": ("linear", _choice("linear", "none")),
    "transformer-pos-enc-class": ("abs-enc", _choice("abs-enc", "rel-enc")),
    "transformer-normalize-before": (True, _BOOLEAN),
    "transformer-concat-after": (False, _BOOLEAN),
    "transformer-positionwise-layer-type": (
        "linear",
        _choice("linear", "conv1d", "conv1d-linear"),
    ),
    "transformer-positionwise-conv-kernel-size": (1, _KERNEL),
    "transformer-chunk-size": (-1, _COUNT),
    "transformer-left-chunks": (-1, _COUNT),
    "transformer-dynamic-chunks": (True, _BOOLEAN),
}
_SUBSAMPLING: Final[dict[str, tuple[Any, _Kind]]] = {
    "subsampling-rate": (_RATE, _Kind(f"{_RATE}", lambda value: value == _RATE)),
    "subsampling-input-dim": (None, _is_width(_FEWEST_BINS)),
    "subsampling-output-dim": (None, _WIDTH),
}
_PARAMETERS: Final = {SUBSAMPLING: _SUBSAMPLING, TRANSFORMER: _TRANSFORMER}

# The parameters of the model's constructor: any other name is a TypeError upstream.
_MODEL: Final = frozenset(
    {
        *("llm_path", "enc_out_dim", "llm_embed_dim", "kernel_size", "adpter_type"),
        *("activation_func", "norm", "add_audio_bos_eos", "IGNORE_ID", "task_num"),
        *("task_before_audio", "task_type", "freeze_llm", "chat_template"),
    }
)


def _value(values: Mapping[str, Any], key: str, kind: _Kind, default: Any = None) -> Any:
    value = values.get(key, default)
    if not kind.accepts(value):
        raise unsupported(key, kind.expected, value)
    return value


def _components(
    overview: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Iterator[tuple[Component, int]]:
    """Yield each component with the width that its settings call its output's."""
    names = str(_value(overview, "encoder-layer-config", _TEXT)).split("-")
    if len(names) > _MOST_COMPONENTS:
        raise unsupported("encoder-layer-config", f"at most {_MOST_COMPONENTS} components", names)
    # A value that one component sets stays set for the next of its kind, as upstream's parser does.
    current = {
        kind: {key: row[0] for key, row in rows.items()} for kind, rows in _PARAMETERS.items()
    }
    blocks = 0
    for name in names:
        kind = name.partition("_")[0]
        if kind not in _PARAMETERS:
            known = " or ".join(_PARAMETERS)
            raise unsupported("encoder-layer-config", f"components {known}", name)
        given = _dashed(_section(parameters, name, "para_conf."))
        values = current[kind]
        values.update({key: value for key, value in given.items() if key in values})
        for key, (_, allowed) in _PARAMETERS[kind].items():
            _value(values, key, allowed)
        if kind == SUBSAMPLING:
            width = values["subsampling-output-dim"]
            yield Subsampling(values["subsampling-input-dim"], width), width
            continue
        blocks += values["transformer-num-blocks"]
        if blocks > _MOST_BLOCKS:
            raise unsupported("transformer-num-blocks", f"at most {_MOST_BLOCKS} in all", blocks)
        yield _transformer(values), values["transformer-output-dim"]


def _transformer(values: Mapping[str, Any]) -> Transformer:
    built = Transformer(
        in_width=values["transformer-input-dim"],
        width=values["transformer-attention-dim"],
        heads=values["transformer-attention-heads"],
        units=values["transformer-linear-units"],
        blocks=values["transformer-num-blocks"],
        input_layer=values["transformer-input-layer"],
        positions=values["transformer-pos-enc-class"],
        pre_norm=values["transformer-normalize-before"],
        concat_after=values["transformer-concat-after"],
        feed_forward=values["transformer-positionwise-layer-type"],
        kernel=values["transformer-positionwise-conv-kernel-size"],
        chunk=values["transformer-chunk-size"],
        left_chunks=values["transformer-left-chunks"],
        dynamic_chunks=values["transformer-dynamic-chunks"],
    )
    if built.width % values["transformer-attention-heads"]:
        raise unsupported("transformer-attention-heads", f"a divisor of {built.width}", built.heads)
    if built.width % 2:
        raise unsupported("transformer-attention-dim", "an even number", built.width)
    if built.input_layer == "none" and built.in_width != built.width:
        raise unsupported("transformer-attention-dim", f"{built.in_width}", built.width)
    if built.feed_forward == "conv1d" and built.kernel % 2 == 0:
        key = "transformer-positionwise-conv-kernel_size"
        raise unsupported(key, "an odd number", built.kernel)
    return built


def _check_chain(
    overview: Mapping[str, Any], mel_bins: int, components: tuple[tuple[Component, int], ...]
) -> None:
    """Check that widths go together, where upstream ends the process if they do not."""
    width = mel_bins
    for built, said in components:
        kind = SUBSAMPLING if isinstance(built, Subsampling) else TRANSFORMER
        if built.in_width != width:
            raise unsupported(f"{kind}-input-dim", f"{width}", built.in_width)
        if said != built.out_width:
            raise unsupported(f"{kind}-output-dim", f"{built.out_width}", said)
        width = said
    if (out := overview.get("encoder-output-dim")) != width:
        raise unsupported("encoder-output-dim", f"{width}, as its last component", out)


def _adapter(model: Mapping[str, Any]) -> AudioAdapter:
    strange = next((key for key in model if key not in _MODEL), None)
    if strange is not None:
        raise unsupported("model_conf", "names that upstream's model takes", strange)
    if "llm_path" not in model:
        raise unsupported("llm_path", "any value: upstream's model asks for it", None)
    if model.get("add_audio_bos_eos", False) is not False:
        raise unsupported("add_audio_bos_eos", "false", model["add_audio_bos_eos"])
    kind = _value(model, "adpter_type", _choice(*ADAPTER_TYPES), CNN)
    norm = _choice("batch", "layer") if kind == SUBSAMPLING else _Kind("", lambda _value: True)
    gelu = model.get("activation_func", "relu") == "gelu" and kind == SUBSAMPLING
    return AudioAdapter(
        type=kind,
        in_width=_value(model, "enc_out_dim", _WIDTH, 512),
        out_width=_value(model, "llm_embed_dim", _WIDTH, 4096),
        kernel=1 if kind == LINEAR else _value(model, "kernel_size", _KERNEL, 3),
        norm=str(_value(model, "norm", norm, "batch")) if kind == SUBSAMPLING else "batch",
        activation="gelu" if gelu else "relu",
    )
