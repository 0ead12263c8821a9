"""Read from a config, and from what lies around, which modules a loader builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX
from vita_ckpt.core.anatomy.backbones import BACKBONES, Backbone
from vita_ckpt.core.anatomy.families import FAMILIES, VITA, Features, ModelFamily, family_of
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS, LanguageModel, of_plain_type
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers.tower import Tower, TowerDirectory
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around a checkpoint, as far as a binding depends on it.

    ``tower`` is what lies at ``mm_vision_tower``, ``carried`` a tower's config that comes with the
    checkpoint or is given for it, ``audio`` what ``mm_audio_encoder`` leads to. ``path_exists`` is
    whether ``mm_vision_tower`` is a path that exists, by default whether there is a ``tower``: one
    that is given may stand in for what does not. ``safetensors`` is whether the weights are in such
    files, ``name`` the name of their directory, which some loaders read. ``processor`` is the
    tower's ``preprocessor_config.json``.
    """

    tower: TowerDirectory | None = None
    carried: Mapping[str, Any] | None = None
    audio: AudioDirectory | None = None
    path_exists: bool | None = None
    safetensors: bool = True
    name: str = ""
    processor: Mapping[str, Any] | None = None

    def exists(self, path: str) -> bool:
        """Return whether the path of the tower exists here."""
        if self.path_exists is not None:
            return self.path_exists
        return self.tower is not None and self.tower.path is not None

    @property
    def tower_configs(self) -> tuple[Mapping[str, Any], ...]:
        """The tower's configs in order of precedence: loaders read the directory's."""
        directory = self.tower.config if self.tower is not None else None
        return tuple(config for config in (directory, self.carried) if config is not None)


def tower_family(
    config: Mapping[str, Any],
    surroundings: Surroundings = Surroundings(),
    family: ModelFamily | None = None,
) -> str | None:
    """Return the family of the tower that the config's path chooses; None if none is built."""
    dispatch = tower_class(config, surroundings, family)
    return None if dispatch is None else dispatch.family


def tower_class(
    config: Mapping[str, Any], surroundings: Surroundings, family: ModelFamily | None = None
) -> towers.Dispatch | None:
    """Return the tower class that the path of the config chooses; None if it has no path.

    Where only the existence of a path chooses, one that is not here is taken to exist where the
    loader runs, unless it is the name of another tower on the hub.
    """
    path = config.get("mm_vision_tower")
    if not isinstance(path, str) or not path:
        return None
    family = family or family_of(config) or VITA
    found = family.dispatch(config, surroundings.exists)
    if found.reason.outcome is not towers.Outcome.NO_RULE or _names_another_tower(path):
        return found
    return family.dispatch(config, lambda _: True)


def _names_another_tower(path: str) -> bool:
    """Return whether a path that is not here is the hub's name of a tower other than CLIP."""
    word = towers.dispatch(path, False).family
    return looks_like_repository(path) and word not in (None, "clip")


def backbone_of(config: Mapping[str, Any]) -> Backbone | None:
    """Return VITA's backbone that ``model_type`` names, with vision or without."""
    model_type = config.get("model_type")
    known = (b for b in BACKBONES.values() if model_type in (b.model_type, b.plain_model_type))
    return next(known, None)


def language_model_of(
    config: Mapping[str, Any], family: ModelFamily | None = None
) -> LanguageModel | None:
    """Return the language model that ``model_type`` names, with vision or without.

    A loader of a ``family`` knows its own model types and those of the plain models below; without
    one, those of every family count.
    """
    model_type = config.get("model_type")
    for one in FAMILIES.values() if family is None else (family,):
        if (backbone := one.backbone(config)) is not None:
            return LANGUAGE_MODELS[backbone.language_model]
    plain = of_plain_type(model_type)
    return plain if family is None or family.backbone_on(model_type) is not None else None


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether a config ties the head to the embeddings, by its key or the default."""
    language = language_model_of(config)
    if language is None:
        return config.get("tie_word_embeddings") is True
    return language.is_tied(config)


def built_projector(
    config: Mapping[str, Any], family: ModelFamily | None = None
) -> Projector | None:
    """Return the projector that a loader builds; None for an unknown type, or without a width."""
    family = family or family_of(config) or VITA
    kind = family.projector_type(config)
    own = {**config, "mm_projector_type": kind, "hidden_size": hidden_size(config, family)}
    return projectors.of_config(own, family.projector_types)


def hidden_size(config: Mapping[str, Any], family: ModelFamily | None = None) -> Any:
    """Return the width of the language model that a config describes, or what it says instead."""
    language = language_model_of(config, family)
    default = None if language is None else language.defaults["hidden_size"]
    return config.get("hidden_size", default)


def builds_audio(config: Mapping[str, Any]) -> bool:
    """Return whether a loader builds the audio encoder (AUDIO §1 of upstream's facts)."""
    path = config.get("mm_audio_encoder")
    return isinstance(path, str) and bool(path)


def is_audio(name: str) -> bool:
    """Return whether a tensor belongs to the audio encoder or its adapter."""
    return name.startswith(AUDIO_PREFIX)


def features_of(config: Mapping[str, Any], tower: Tower, family: ModelFamily) -> Features | None:
    """Return which features of a tower a model of the family takes; None where that raises."""
    if family.features is None:
        return Features()
    states = (tower.layers or 0) + 1
    return family.features(config, tower.family, states)


def contradiction_of(config: Mapping[str, Any], family: ModelFamily) -> str:
    """Return what in the config names another class than the family's; empty if nothing does."""
    backbone, said = family.backbone(config), config.get("architectures")
    if backbone is None and "mm_vision_tower" in config:
        return f"expected {', '.join(family.by_type)}, got model_type {config.get('model_type')!r}"
    if backbone is None or not said or said == [backbone.architecture]:
        return ""
    return f"expected ['{backbone.architecture}'], got {said!r}"
