"""Bind a checkpoint's tensors to what VITA's loader builds: strictly, by whole names.

The names and shapes follow from the config, the tower's own config and the tables of the anatomy
(UPSTREAM §1, §3, §4). Nothing is recognised by guess here: a prefix too many makes a tensor
unexpected, and the one it should be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vita_ckpt.core.anatomy import language_tensors, parts, towers
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX
from vita_ckpt.core.anatomy.backbones import BACKBONES, PLAIN_LANGUAGE_MODELS
from vita_ckpt.core.anatomy.config_values import wrong_sizes
from vita_ckpt.core.anatomy.towers.tensors import config_of_tensors, expected_shapes
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import InputError

Shapes = Mapping[str, Shape]

# What every loader drops without harm: tables that are computed anew when the model is built.
_HARMLESS: Final = (".rotary_emb.inv_freq", ".embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class PartBinding:
    """The tensors of one part, against those that a loader builds.

    ``wanted`` is empty where nothing determines the part; ``mismatch`` then calls every stored
    tensor unexpected.
    """

    wanted: Shapes
    mismatch: KeyMismatch


def is_harmless(name: str) -> bool:
    """Return whether every loader drops a tensor of this name, and the model is the same."""
    return name.endswith(_HARMLESS)


def bind_tower(family: str, shapes: Shapes, configs: Iterable[Mapping[str, Any]]) -> PartBinding:
    """Bind the vision tower of a family; ``shapes`` are those of all tensors of the checkpoint.

    ``configs`` are the tower's own, the directory's before a carried one. The first that describes
    a tower of the family decides its sizes; without one, the tensors under their exact names do,
    and then those of a tower under any names, which are all missing and all unexpected.
    """
    wanted = expected_tower(family, shapes, configs)
    found = {
        name: shape
        for name, shape in shapes.items()
        if name.startswith(parts.TOWER_MODULE) and not is_harmless(name)
    }
    if not wanted:  # a whole tower under other names
        own = parts.below(parts.TOWER_MODULE, shapes)
        stored = {
            name: parts.TOWER_MODULE + place for name, place in towers.stored_names(own).items()
        }
        if any(place not in found for place in stored.values()):
            wanted = {place: own[name] for name, place in stored.items()}
    return PartBinding(wanted, compare(wanted, found))


def expected_tower(
    family: str, shapes: Shapes, configs: Iterable[Mapping[str, Any]]
) -> dict[str, Shape]:
    """Return the tower's tensors that a loader builds, by the names of the checkpoint.

    The arguments are those of :func:`bind_tower`. Empty where nothing determines them.
    """
    prefix = parts.TOWER_MODULE + towers.FAMILIES[family].stored_prefix
    own = parts.below(prefix, shapes)
    for config in (*configs, config_of_tensors(own)):
        described = None if config is None else towers.family_of_config(config)
        if config is None or described is None or described.name != family:
            continue
        try:
            return {prefix + name: shape for name, shape in expected_shapes(config).items()}
        except InputError:
            continue
    return {}


def bind_language_model(config: Mapping[str, Any], shapes: Shapes) -> PartBinding | None:
    """Bind the language model; None where the config names none, or no sizes of one.

    ``shapes`` are as for :func:`bind_tower`. A head beside tied embeddings is dropped by every
    loader, so it is not unexpected here.
    """
    model_type = str(config.get("model_type"))
    backbone = BACKBONES.get(model_type)
    family = backbone.language_model if backbone else PLAIN_LANGUAGE_MODELS.get(model_type)
    if family is None or wrong_sizes(family, config):
        return None
    wanted = language_tensors.expected_shapes(family, config)
    known = (parts.LANGUAGE_MODEL, parts.OTHER, parts.LORA)
    found = {
        name: shape
        for name, shape in shapes.items()
        if parts.part_of(name) in known and not is_harmless(name)
    }
    if config.get("tie_word_embeddings") is True:
        found.pop(parts.LM_HEAD, None)
    return PartBinding(wanted, compare(wanted, found))


def misled_tower(family: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the tensors of a family's tower that is built from another family's config."""
    traits = towers.FAMILIES[family]
    try:
        shapes = traits.expected_shapes(towers.inner_config(config))
    except (InputError, KeyError):
        return {}
    return {
        parts.TOWER_MODULE + traits.stored_prefix + name: shape for name, shape in shapes.items()
    }


def is_audio(name: str) -> bool:
    """Return whether a tensor belongs to the audio encoder or its adapter."""
    return name.startswith(AUDIO_PREFIX)


def builds_audio(config: Mapping[str, Any]) -> bool:
    """Return whether a loader builds the audio encoder (AUDIO §1 of upstream's facts)."""
    path = config.get("mm_audio_encoder")
    return isinstance(path, str) and bool(path)
