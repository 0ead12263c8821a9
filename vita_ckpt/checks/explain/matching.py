"""Match what a loader builds against what the files hold; shared by the loaders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from vita_ckpt.checks.explain.trace import PartSource, Tracer, by_part
from vita_ckpt.core import binding
from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import language_tensors, parts, projectors
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, wanted_tensors
from vita_ckpt.core.anatomy.backbones import BACKBONES, Backbone
from vita_ckpt.core.anatomy.config_values import wrong_sizes
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.checkpoint import Shape, TensorRef
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.core.tensor_match import compare

# Stored tensors by name, each with the file that it is from.
Found = Mapping[str, tuple[TensorRef, str]]


# The level that CLIP's and SigLIP's towers lost in transformers 5.6, and what every causal language
# model has its layers below (base_model_prefix).
VISION_LEVEL: Final = "vision_model."
BASE_PREFIX: Final = "model"


@dataclass(frozen=True, slots=True)
class Lookup:
    """What was found around a directory before any loader is replayed.

    ``tower`` lies at ``mm_vision_tower``, ``files`` are that directory's; ``from_here`` is set if
    the path leads there from the working directory, where VITA's loaders look. ``audio`` is what
    ``mm_audio_encoder`` leads to, ``tokens`` is what ``len(tokenizer)`` will be.
    """

    tower: TowerDirectory | None = None
    files: WeightFiles | None = None
    from_here: bool = False
    audio: AudioDirectory | None = None
    tokens: int | None = None


def require_config(tracer: Tracer) -> Mapping[str, Any]:
    """Return the directory's config; end the trace without one."""
    if tracer.files.config_trouble is not None:
        tracer.stop_for(tracer.files.config_trouble)
    if tracer.files.config is None:
        tracer.stop("config-missing", "no config.json")
    return tracer.files.config


def require_backbone(tracer: Tracer, config: Mapping[str, Any]) -> Backbone:
    """Return the backbone that ``model_type`` names; end the trace if it names none."""
    model_type = config.get("model_type")
    known = (b for b in BACKBONES.values() if model_type in (b.model_type, b.plain_model_type))
    backbone = next(known, None)
    if backbone is None:
        expected = ", ".join(BACKBONES)
        tracer.stop("unknown-model-type", f"model_type {model_type!r} is none of {expected}")
    return backbone


def expected_language_model(
    tracer: Tracer, backbone: Backbone, config: Mapping[str, Any]
) -> dict[str, Shape]:
    """Return the shapes of the language model by its config."""
    wrong = wrong_sizes(backbone.language_model, config)
    if wrong:
        tracer.stop("config-type", f"{wrong[0]} is {config.get(wrong[0])!r}, no size")
    return language_tensors.expected_shapes(backbone.language_model, config)


def expected_projector(
    tracer: Tracer, config: Mapping[str, Any], found: Found
) -> Mapping[str, Shape]:
    """Return the projector's shapes by the config, or those that are stored if it names none."""
    kind = config.get("mm_projector_type", projectors.DEFAULT_TYPE)
    if not isinstance(kind, str) or not projectors.is_known(kind):
        tracer.stop("unknown-projector-type", f"mm_projector_type {kind!r}")
    projector = projectors.of_config(config)
    if projector is None:
        return {n: t.shape for n, (t, _) in found.items() if n.startswith(parts.PROJECTOR_PREFIX)}
    shapes = projectors.expected_shapes(projector)
    tracer.step("projector", f"{projector}, from the config")
    return {parts.PROJECTOR_PREFIX + name: shape for name, shape in shapes.items()}


def expected_tower(lookup: Lookup, found: Found, family: str) -> dict[str, Shape]:
    """Return the tower's shapes by its directory's config, or by the tensors without one.

    A misleading path builds its own family from the config of another.
    """
    shapes = {name: tensor.shape for name, (tensor, _) in found.items()}
    directory = lookup.tower
    config = directory.config if directory is not None else None
    own = directory.tower if directory is not None else None
    if own is not None and own.family != family and config is not None:
        return binding.misled_tower(family, config)
    return binding.expected_tower(family, shapes, () if config is None else (config,))


def require_reachable(tracer: Tracer, part: str, path: str) -> None:
    """End the trace for a directory that is gone; a name on the hub may be fetched."""
    if looks_like_repository(path):
        tracer.step(part, f"{path} is not reachable from here: fetched from the hub, if it can")
    else:
        tracer.stop("tower-path-unreachable", f"{path} is not reachable from here: it raises")


def build_audio(tracer: Tracer, lookup: Lookup, config: Mapping[str, Any]) -> None:
    """Build the audio encoder from its directory before the weights are read."""
    path = config.get("mm_audio_encoder")
    if not isinstance(path, str) or not path:
        return
    tracer.step("audio", f"built from train.yaml, global_cmvn and final.pt in {path}")
    directory = lookup.audio
    if directory is None or directory.path is None:
        require_reachable(tracer, "audio", path)
    elif directory.missing:
        names = " and no ".join(directory.missing)
        tracer.stop("audio-files-missing", f"TypeError: no {names} in {path}")
    elif directory.settings is None or directory.cmvn is None:
        tracer.stop("audio-directory-unreadable", directory.problem or "")


def expected_audio(
    tracer: Tracer, lookup: Lookup, config: Mapping[str, Any], found: Found
) -> dict[str, Shape]:
    """Return the audio encoder's shapes by its directory, or by the tensors without one."""
    if not binding.builds_audio(config):
        return {}
    shapes = {name: t.shape for name, (t, _) in found.items() if binding.is_audio(name)}
    settings = lookup.audio.settings if lookup.audio is not None else None
    wanted = wanted_tensors(config, shapes, settings) if shapes else {}
    if not wanted:
        tracer.missing.append(AUDIO_PREFIX + "*")
    if shapes:
        tracer.step("audio", f"{len(shapes)} tensors of the checkpoint over the directory's")
    else:
        tracer.step("audio", "none in the checkpoint: uninitialised memory, not final.pt's values")
    return wanted


def trace_rows(tracer: Tracer, lookup: Lookup, found: Found) -> None:
    """Record what resize_token_embeddings does to the rows of the embedding table."""
    table = found.get(parts.EMBED_TOKENS)
    if table is None or lookup.tokens is None or len(table[0].shape) != 2:
        return
    rows = table[0].shape[0]
    if rows > lookup.tokens:
        tracer.step("cuts", f"{rows - lookup.tokens} rows that the tokenizer has no token for")
    elif rows < lookup.tokens:
        tracer.step("invents", f"{lookup.tokens - rows} rows for tokens that have none, in silence")


def refuse_head_beside_base(tracer: Tracer, wanted: Mapping[str, Shape], found: Found) -> None:
    """End the trace as 4.41.1 does: names without ``model.`` are a base model's, without a head."""
    heads = [name for name in found if name in wanted]
    if heads and not any(name.startswith(BASE_PREFIX) for name in found):
        tracer.stop("foreign-prefix", f"{heads[0]} beside names without model.: taken for corrupt")


def match_tensors(
    tracer: Tracer, wanted: Mapping[str, Shape], found: Found, accepted: set[str], fate: str
) -> None:
    """Match names and shapes; record the source of each tensor, the missing and the ignored."""
    placed = _built_names(wanted, found, accepted)
    shapes = {place: found[stored][0].shape for stored, place in placed.items()}
    misfit = compare(wanted, shapes)
    if misfit.mismatched:
        tracer.stop("shape-mismatch", f"size mismatch: {describe_mismatch(misfit.mismatched[0])}")
    tracer.sources |= {stored: found[stored][1] for stored in placed}
    ignored = [n for n in found if n not in placed and not binding.is_harmless(n)]
    tracer.missing += misfit.missing
    tracer.ignored += ignored
    if misfit.missing:
        example = f"such as {misfit.missing[0]}"
        tracer.step("lacks", f"{by_part(misfit.missing)}, {example}: {fate}")
    if ignored:
        tracer.step("leaves out", f"{by_part(ignored)}: no place for them")


def _built_names(wanted: Mapping[str, Shape], found: Found, accepted: set[str]) -> dict[str, str]:
    """Map stored names to built ones: below ``model.`` if no stored name starts with it."""
    bare = not any(name.startswith(BASE_PREFIX) for name in found)
    placed = {name: name for name in found if name in wanted or name in accepted}
    if bare:
        below = {name: f"{BASE_PREFIX}.{name}" for name in found if name not in placed}
        placed |= {name: place for name, place in below.items() if place in wanted}
    return placed


def trace_projector(tracer: Tracer, fate: str) -> None:
    """Record where the projector comes from, and what it lacks."""
    own = [name for name in tracer.sources if name.startswith(parts.PROJECTOR_PREFIX)]
    lacks = any(name.startswith(parts.PROJECTOR_PREFIX) for name in tracer.missing)
    tracer.projector = PartSource.RANDOM if lacks and not own else PartSource.CHECKPOINT
    if lacks:
        tracer.step("draws", f"what the projector lacks: {fate}")


def describe_mismatch(mismatch: tuple[str, Shape, Shape]) -> str:
    """Word one mismatch of shapes: the name, what is stored, what is built."""
    name, want, got = mismatch
    return f"{name} is {list(got)}, not {list(want)}"
