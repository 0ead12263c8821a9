"""Find where a loader raises while it builds the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.tensors import prompt_rows
from vita_ckpt.core.anatomy.config_values import (
    wrong_language_values,
    wrong_sizes,
    wrong_tower_values,
    wrong_vision_values,
)
from vita_ckpt.core.anatomy.families import VITA, Load, ModelFamily, TowerSource
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.binding.modules import (
    Surroundings,
    builds_audio,
    built_projector,
    language_model_of,
    tower_class,
)
from vita_ckpt.core.binding.result import UNREACHABLE, Stop, Tensors


def stop_of_model(config: Mapping[str, Any], family: ModelFamily | None = VITA) -> Stop | None:
    """Return where building the language model stops a loader: its type, its sizes, its values."""
    language = language_model_of(config, family)
    if language is None:
        types = [b.model_type for f in ([family] if family else [VITA]) for b in f.backbones]
        model_type = config.get("model_type")
        expected = ", ".join(types)
        return Stop("unknown-model-type", f"model_type {model_type!r} is none of {expected}")
    sizes = wrong_sizes(language.name, config)
    if sizes:
        return Stop("config-type", f"{sizes[0]} is {config.get(sizes[0])!r}, no size")
    if family is None:
        return None
    beyond = (*wrong_language_values(language.name, config), *wrong_vision_values(family, config))
    for wrong in beyond:
        return Stop("config-type", f"{wrong.key} is {wrong.got}, not {wrong.expected}")
    return None


def stop_of_tower(
    config: Mapping[str, Any], surroundings: Surroundings, family: ModelFamily = VITA
) -> Stop | None:
    """Return where building the tower stops a family's loader (UPSTREAM §3, §8)."""
    path = config.get("mm_vision_tower")
    dispatch = tower_class(config, surroundings, family)
    if not isinstance(path, str) or dispatch is None:
        return None
    if dispatch.family is None:
        s2 = dispatch.reason.outcome is towers.Outcome.NO_S2
        return Stop("s2-needs-siglip" if s2 else "tower-path-misleads", str(dispatch.reason))
    if "mm_vision_select_layer" in family.keys and "mm_vision_select_layer" not in config:
        return Stop("config-type", "AttributeError: the config has no mm_vision_select_layer")
    return _stop_of_directory(path, surroundings.tower, dispatch.family, family)


def _stop_of_directory(
    path: str, tower: TowerDirectory | None, built: str, family: ModelFamily
) -> Stop | None:
    if tower is None or tower.path is None:
        return _unreachable(path)
    problem = tower.problem
    lone = towers.FAMILIES[built].lone_file
    if tower.config is None and not (lone or (tower.tower and tower.tower.traits.lone_file)):
        problem = problem or f"{tower.path} has no config.json: it raises"
    if problem is not None:
        return Stop("tower-directory-unreadable", problem)
    for wrong in wrong_tower_values(tower.config or {}):
        return Stop("config-type", f"{wrong.key} of the tower is {wrong.got}, not {wrong.expected}")
    if tower.tower is not None and tower.tower.family != built and family is VITA:
        return _stop_of_misled_tower(path, tower.tower.family, built)
    return None


def _stop_of_misled_tower(path: str, own: str, by_path: str) -> Stop | None:
    """Return where the class that a misleading path chooses stops over another family's directory.

    UPSTREAM §8: a family that is a lone file opens the directory as one, two families of the
    library have shapes that do not fit; anything else has no name in common and goes on.
    """
    label = towers.FAMILIES[own].label
    if towers.FAMILIES[by_path].lone_file != towers.FAMILIES[own].lone_file:
        return Stop("tower-path-misleads", f"{path} is {label}: no file of the kind it opens")
    if None not in [towers.FAMILIES[family].transformers_class for family in (own, by_path)]:
        return Stop("tower-path-misleads", f"a size mismatch: {path} is {label}")
    return None


def stop_of_reading_again(
    config: Mapping[str, Any], tensors: Tensors, family: ModelFamily
) -> Stop | None:
    """Return where a loader stops that reads a trained tower again, or too early."""
    everything = Load(stored=True, safetensors=True)
    if family.tower_source(config, everything) is TowerSource.RAISES:
        key = f"{family.unfreeze_key} with {family.s2_key}"
        return Stop("tower-not-loadable", f"AttributeError: {key}: the class is not ready for it")
    if not any(name.startswith(parts.TOWER_MODULE) for name in tensors):
        detail = f"{family.unfreeze_key} is set: RuntimeError, its tensors are in no file"
        return Stop("tower-absent", detail)
    detail = f"{family.unfreeze_key} is set: RuntimeError, it is read from *.safetensors files only"
    return Stop("tower-not-loadable", detail)


def stop_of_audio(config: Mapping[str, Any], surroundings: Surroundings) -> Stop | None:
    """Return where building the audio encoder stops a loader of VITA."""
    if not builds_audio(config):
        return None
    if config.get("audio_prompt_finetune") and not prompt_rows(config):
        number = config.get("audio_prompt_num")
        return Stop("config-type", f"audio_prompt_num is {number!r}, no number of embeddings")
    path, directory = config["mm_audio_encoder"], surroundings.audio
    if directory is None or directory.path is None:
        return _unreachable(path)
    if directory.missing:
        names = " and no ".join(directory.missing)
        return Stop("audio-files-missing", f"TypeError: no {names} in {path}")
    if directory.settings is None or directory.cmvn is None:
        return Stop("audio-directory-unreadable", directory.problem or "")
    return None


def stop_of_projector(config: Mapping[str, Any], family: ModelFamily = VITA) -> Stop | None:
    """Return where building the projector stops a family's loader: its type, its widths."""
    kind = family.projector_type(config)
    if not isinstance(kind, str) or not projectors.is_known(kind, family.projector_types):
        return Stop("unknown-projector-type", f"mm_projector_type {kind!r}")
    if built_projector(config, family) is None and not projectors.has_no_tensors(kind):
        width = config.get("mm_hidden_size")
        return Stop("hidden-size-mismatch", f"mm_hidden_size {width!r} is no width: it raises")
    return None


def first_stop(*stops: Stop | None) -> Stop | None:
    """Return the first stop; one for a directory that is not here only if there is no other."""
    found = [stop for stop in stops if stop is not None]
    return next((stop for stop in found if stop.code != UNREACHABLE), found[0] if found else None)


def _unreachable(path: str) -> Stop | None:
    """Return the stop at a directory that is gone; a name on the hub may be fetched."""
    if looks_like_repository(path):
        return None
    return Stop(UNREACHABLE, f"{path} is not reachable from here: it raises")
