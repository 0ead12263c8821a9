"""Bind a checkpoint as a loader does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.config_values import wrong_sizes
from vita_ckpt.core.anatomy.families import VITA, Load, ModelFamily, TowerSource
from vita_ckpt.core.anatomy.towers.tensors import config_of_tensors
from vita_ckpt.core.binding.faults import described_tower, fault_of, fault_of_audio
from vita_ckpt.core.binding.loaders import LOADERS, Loader, judge_of
from vita_ckpt.core.binding.match import match
from vita_ckpt.core.binding.modules import (
    Surroundings,
    builds_audio,
    built_projector,
    contradiction_of,
    hidden_size,
    language_model_of,
    tower_family,
)
from vita_ckpt.core.binding.result import Binding, Shapes, Tensors
from vita_ckpt.core.binding.shapes import (
    audio_shapes,
    language_model_shapes,
    shapes_of_tower,
    tower_shapes,
)
from vita_ckpt.core.binding.stops import (
    first_stop,
    stop_of_audio,
    stop_of_model,
    stop_of_projector,
    stop_of_reading_again,
    stop_of_tower,
)


def bind(
    config: Mapping[str, Any],
    tensors: Tensors,
    surroundings: Surroundings = Surroundings(),
    loader: str | None = None,
) -> Binding:
    """Bind the tensors of a checkpoint as a loader does.

    ``loader`` is one of LOADER_NAMES, by default the one that judges such a checkpoint.
    """
    traits = LOADERS[loader or judge_of(config, tensors)]
    if traits is None:
        return Binding({}, {name: name for name in tensors})
    family = traits.family
    stop = stop_of_model(config, family)
    wanted: dict[str, Shapes] = {}
    language = language_model_of(config, family)
    if language is not None and not wrong_sizes(language.name, config):
        wanted[parts.LANGUAGE_MODEL] = language_model_shapes(traits, language, config)
    if family is None:
        return match(traits, config, tensors, wanted, stop)
    tower = tower_family(config, surroundings, family)
    source = _tower_source(traits, config, tensors, surroundings)
    if traits.looks_around:
        stop = first_stop(
            stop,
            stop_of_tower(config, surroundings, family),
            stop_of_audio(config, surroundings) if family.has_audio else None,
        )
    if family.has_audio and builds_audio(config):
        wanted[parts.AUDIO_ENCODER] = audio_shapes(config, tensors, surroundings)
    if tower is not None:
        if source is TowerSource.RAISES:
            stop = first_stop(stop, stop_of_reading_again(config, tensors, family))
        wanted[parts.VISION_TOWER] = tower_shapes(tower, tensors, surroundings, family)
        wanted[parts.MM_PROJECTOR] = {}
        stop = first_stop(stop, stop_of_projector(config, family))
        if (projector := built_projector(config, family)) is not None:
            wanted[parts.MM_PROJECTOR] = {
                parts.PROJECTOR_PREFIX + name: shape
                for name, shape in projectors.expected_shapes(projector).items()
            }
        width = hidden_size(config, family)
        if family.has_newline(config) and type(width) is int:
            wanted[parts.IMAGE_NEWLINE] = {parts.NEWLINE: (width,)}
    unread = _unread(tower, tensors, surroundings, source, family)
    bound = match(traits, config, tensors, wanted, stop, source, unread)
    if stop is not None or not traits.looks_around:
        return bound
    fault = ""
    if tower is not None:
        fault = fault_of(
            config, described_tower(tower, tensors, surroundings), surroundings, family
        )
    audio_fault = fault_of_audio(config, tensors, surroundings) if family.has_audio else ""
    return replace(
        bound, fault=fault, audio_fault=audio_fault, contradiction=contradiction_of(config, family)
    )


def bind_to(wanted: Shapes, tensors: Tensors) -> Binding:
    """Bind tensors to those of a module, by their whole names."""
    return match(Loader(), {}, tensors, {parts.VISION_TOWER: wanted}, None)


def takes_directory(
    config: Mapping[str, Any],
    tensors: Tensors,
    surroundings: Surroundings,
    loader: str | None = None,
) -> bool:
    """Return whether the loader ends with the tower of its directory, whatever is stored."""
    traits = LOADERS[loader or judge_of(config, tensors)]
    source = None if traits is None else _tower_source(traits, config, tensors, surroundings)
    return source is TowerSource.DIRECTORY


def _tower_source(
    loader: Loader, config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings
) -> TowerSource:
    """Return which tower a loader of a family ends with."""
    family = loader.family or VITA
    if loader.tower_last:  # UPSTREAM §8
        read = config.get("continuous_training") or config.get("unfreeze_vision_tower")
        return TowerSource.CHECKPOINT if read else TowerSource.DIRECTORY
    stored = any(name.startswith(parts.TOWER_MODULE) for name in tensors)
    load = Load(stored, surroundings.safetensors, surroundings.name)
    return family.tower_source(config, load)


def _unread(
    tower: str | None,
    tensors: Tensors,
    surroundings: Surroundings,
    source: TowerSource,
    family: ModelFamily,
) -> tuple[str, ...]:
    """Return stored tensors of a tower that a family's loader does not read, without harm.

    Of VITA's loaders the one that reads the directory's tower says that they are too many.
    """
    if family is VITA or tower is None:
        return ()
    own = [name for name in tensors if name.startswith(parts.TOWER_MODULE)]
    if source is TowerSource.DIRECTORY:
        return tuple(own)
    prefix = parts.TOWER_MODULE + towers.FAMILIES[tower].stored_prefix
    shapes = parts.below(prefix, {name: tensors[name].shape for name in own})
    configs = (*surroundings.tower_configs, config_of_tensors(shapes))
    config = next(filter(None, configs), None)
    whole = shapes_of_tower(tower, config) if config is not None else None
    if whole is None:
        return ()
    built = tower_shapes(tower, tensors, surroundings, family)
    cut = [prefix + name for name in whole if prefix + name not in built]
    return tuple(name for name in cut if name in tensors)
