"""Match what a loader builds against what the files hold; shared by the loaders."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from vita_ckpt.checks.explain.trace import Tracer, by_part
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.language_tensors import LanguageModel
from vita_ckpt.core.anatomy.relatives import relative_of
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.binding.match import is_harmless
from vita_ckpt.core.binding.modules import (
    Surroundings,
    backbone_of,
    builds_audio,
    is_audio,
    language_model_of,
)
from vita_ckpt.core.binding.result import Binding, Stop
from vita_ckpt.core.binding.stops import stop_of_audio, stop_of_model
from vita_ckpt.core.checkpoint import Checkpoint, Shape, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.file_listing import Trouble, WeightFiles

# Stored tensors by name, each with the file that it is from.
Found = Mapping[str, tuple[TensorRef, str]]


# Keys of bitsandbytes' settings, which need not say that they are its.
_BITSANDBYTES: Final = ("load_in_4bit", "load_in_8bit")

# The level that CLIP's and SigLIP's towers lost in transformers 5.6.
VISION_LEVEL: Final = "vision_model."


@dataclass(frozen=True, slots=True)
class Lookup:
    """What was found around a directory before any loader is replayed.

    ``name`` is that by which upstream knows the directory, ``safetensors`` whether its weights are
    in such files. ``tower`` lies at ``mm_vision_tower``, ``files`` are that directory's,
    ``carried`` is a tower's config in the directory itself. ``from_here`` is set if the path leads
    there from the working directory, where VITA's loaders look. ``audio`` is what
    ``mm_audio_encoder`` leads to, ``tokens`` what ``len(tokenizer)`` will be, ``processor`` is the
    tower's image processor; they cannot be read for the reasons ``tokenizer_trouble`` and
    ``processor_trouble``. ``base`` is what a LoRA run names as its base.
    """

    name: str = ""
    safetensors: bool = True
    tower: TowerDirectory | None = None
    carried: Mapping[str, Any] | None = None
    files: WeightFiles | None = None
    from_here: bool = False
    audio: AudioDirectory | None = None
    tokens: int | None = None
    tokenizer_trouble: Trouble | None = None
    processor: Mapping[str, Any] | None = None
    processor_trouble: Trouble | None = None
    base: Checkpoint | None = None

    @property
    def surroundings(self) -> Surroundings:
        """What of it decides what binds."""
        return Surroundings(
            self.tower,
            self.carried,
            self.audio,
            safetensors=self.safetensors,
            name=self.name,
            processor=self.processor,
        )


def require_config(tracer: Tracer) -> Mapping[str, Any]:
    """Return the directory's config; end the trace without one."""
    if tracer.files.config_trouble is not None:
        tracer.stop_for(tracer.files.config_trouble)
    if tracer.files.config is None:
        tracer.stop("config-missing", "no config.json")
    return tracer.files.config


def refuse_whole_model(tracer: Tracer, config: Mapping[str, Any]) -> None:
    """End the trace for another family's whole model, whose config also describes its tower."""
    relative = relative_of(config)
    if relative is not None and towers.tower_of_config(config) is not None:
        tracer.stop("other-family", f"{relative.label}: classes of its own read it, not these")


def begin(tracer: Tracer, lookup: Lookup) -> Mapping[str, Any]:
    """Return the config of a model that a family's loader begins to load; end the trace without.

    The tokenizer comes first. A quantised model is followed no further than what is stored.
    """
    config = require_config(tracer)
    refuse_whole_model(tracer, config)
    if towers.tower_of_config(config) is not None:
        tracer.stop("not-a-vita-checkpoint", "a tower: name it in mm_vision_tower of a checkpoint")
    if lookup.tokenizer_trouble is not None:
        tracer.stop_for(lookup.tokenizer_trouble)
    quantised = config.get("quantization_config")
    if quantised is None:
        return config
    said = quantised if isinstance(quantised, Mapping) else {}
    is_bitsandbytes = any(map(said.get, _BITSANDBYTES))
    method = said.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else None)
    if method is None:
        tracer.stop("quantised-weights", "ValueError: quantization_config names no quant_method")
    tracer.flaws.append("quantization_config")
    tracer.step("quantises", f"with {method}, where it is installed: that is not followed here")
    return config


def require_backbone(tracer: Tracer, config: Mapping[str, Any]) -> Backbone:
    """Return the backbone that ``model_type`` names; end the trace if it names none."""
    backbone = backbone_of(config)
    if backbone is None:
        stop_at(tracer, stop_of_model(config))
        tracer.stop("unknown-model-type", f"model_type {config.get('model_type')!r}")
    return backbone


def require_language_model(tracer: Tracer, config: Mapping[str, Any]) -> LanguageModel:
    """Return the language model of a config, with vision or without; end the trace without one."""
    language = language_model_of(config)
    if language is None:
        stop_at(tracer, stop_of_model(config, None))
        tracer.stop("unknown-model-type", f"model_type {config.get('model_type')!r}")
    return language


def stop_at(tracer: Tracer, stop: Stop | None) -> None:
    """End the trace where a loader stops while it builds the model."""
    if stop is not None:
        tracer.stop(stop.code, stop.detail)


def say_fetched(tracer: Tracer, part: str, path: str) -> None:
    """Record that a directory is not here, and that its name is one on the hub."""
    tracer.step(part, f"{path} is not reachable from here: fetched from the hub, if it can")


def build_audio(tracer: Tracer, lookup: Lookup, config: Mapping[str, Any]) -> None:
    """Build the audio encoder from its directory before the weights are read."""
    if not builds_audio(config):
        return
    path = config["mm_audio_encoder"]
    tracer.step("audio", f"built from train.yaml, global_cmvn and final.pt in {path}")
    stop_at(tracer, stop_of_audio(config, lookup.surroundings))
    if lookup.audio is None or lookup.audio.path is None:
        say_fetched(tracer, "audio", path)


def trace_rows(tracer: Tracer, lookup: Lookup, found: Found) -> None:
    """Record what resize_token_embeddings does to the rows of the embedding table."""
    table = found.get(parts.EMBED_TOKENS)
    if table is None or lookup.tokens is None or len(table[0].shape) != 2:
        return
    rows = table[0].shape[0]
    if rows > lookup.tokens:
        tracer.step("cuts", f"{rows - lookup.tokens} rows that the tokenizer has no token for")
    elif rows < lookup.tokens:
        tracer.flaws.append(parts.EMBED_TOKENS)
        tracer.step("invents", f"{lookup.tokens - rows} rows for tokens that have none, in silence")


def record(
    tracer: Tracer, bound: Binding, found: Found, fate: str, *, quiet: Collection[str] = ()
) -> None:
    """Record what a loader binds: the source of each tensor, the missing and the left out.

    ``fate`` says what becomes of what is missing; ``quiet`` are names of which no step is told.
    """
    stop_at(tracer, bound.stop)
    misfit = bound.mismatch
    for cause in diagnose(bound, tracer.files.root):
        tracer.step("names", f"{cause.what}: {cause.mend}")
    if misfit.mismatched:
        tracer.stop("shape-mismatch", f"size mismatch: {describe_mismatch(misfit.mismatched[0])}")
    tracer.sources |= {stored: found[stored][1] for stored in bound.found}
    tracer.missing += misfit.missing
    tracer.ignored += misfit.unexpected
    tracer.harmless += [name for name in bound.left_out if not is_harmless(name)]
    tracer.integers += bound.integers
    if bound.contradiction:
        tracer.flaws.append("architectures")
        detail = f"model_type and architectures, by which others choose: {bound.contradiction}"
        tracer.step("passes over", detail)
    if misfit.missing:
        example = f"such as {misfit.missing[0]}"
        tracer.step("lacks", f"{by_part(misfit.missing)}, {example}: {fate}")
    left_out = [n for n in (*misfit.unexpected, *tracer.harmless) if n not in quiet]
    if left_out:
        tracer.step("leaves out", f"{by_part(left_out)}: no place for them")
    if bound.integers:
        example = f"such as {bound.integers[0]}"
        tracer.step("takes", f"{by_part(bound.integers)}, {example}: integers for real numbers")


def record_audio(tracer: Tracer, config: Mapping[str, Any], found: Found) -> None:
    """Record where the audio encoder's values come from, where the config names one."""
    if not builds_audio(config):
        return
    audio = sum(map(is_audio, found))
    if audio:
        tracer.step("audio", f"{audio} tensors of the checkpoint over the directory's")
    else:
        tracer.step("audio", "none in the checkpoint: uninitialised memory, not final.pt's values")


def trace_projector(tracer: Tracer, bound: Binding, fate: str) -> None:
    """Record where the projector comes from, and what it lacks."""
    part = bound.parts[parts.MM_PROJECTOR]
    tracer.projector = part.source
    if part.mismatch.missing:
        tracer.step("draws", f"what the projector lacks: {fate}")


def describe_mismatch(mismatch: tuple[str, Shape, Shape]) -> str:
    """Word one mismatch of shapes: the name, what is stored, what is built."""
    name, want, got = mismatch
    return f"{name} is {list(got)}, not {list(want)}"
