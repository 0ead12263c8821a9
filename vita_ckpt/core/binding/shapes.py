"""Name the tensors that a loader builds, with their shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import language_tensors, parts, towers
from vita_ckpt.core.anatomy.audio.tensors import wanted_tensors
from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.language_tensors import LanguageModel
from vita_ckpt.core.anatomy.towers.tensors import config_of_tensors, expected_shapes
from vita_ckpt.core.binding.loaders import Loader
from vita_ckpt.core.binding.modules import Surroundings, is_audio
from vita_ckpt.core.binding.result import Shapes, Tensors
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.errors import InputError

_SPARSE: Final = ".block_sparse_moe."


def language_model_shapes(
    loader: Loader, model: LanguageModel, config: Mapping[str, Any]
) -> Shapes:
    """Return the language model's tensors that a loader builds."""
    shapes = language_tensors.expected_shapes(model.name, config)
    # transformers 5 looks its table for Mixtral up by the library's own model_type.
    unfused = loader.is_old or loader.is_vita or config["model_type"] == model.model_type
    return shapes if unfused or model.name != "Mixtral" else _fused(shapes)


def _fused(shapes: Shapes) -> dict[str, Shape]:
    """Return Mixtral's tensors as transformers 5 builds them, the experts of a layer fused."""
    built = {name: shape for name, shape in shapes.items() if _SPARSE not in name}
    for name, shape in shapes.items():
        layer, _, gate = name.partition(_SPARSE)
        if gate == "gate.weight":
            experts, width = shape
            inner = shapes[f"{layer}{_SPARSE}experts.0.w1.weight"][0]
            built[f"{layer}.mlp.gate.weight"] = (experts, width)
            built[f"{layer}.mlp.experts.gate_up_proj"] = (experts, 2 * inner, width)
            built[f"{layer}.mlp.experts.down_proj"] = (experts, width, inner)
    return built


def tower_shapes(
    tower: str, tensors: Tensors, surroundings: Surroundings, family: ModelFamily
) -> Shapes:
    """Return the tower's tensors that a loader builds, by the names of the checkpoint.

    The first config that describes a tower of the chosen family decides its sizes; without one, the
    tensors under their exact names do, and then those of a tower under any names, which are all
    missing and all unexpected. Empty where nothing determines them.
    """
    directory = surroundings.tower
    own = directory.tower if directory is not None else None
    if directory is not None and own is not None and own.family != tower:
        return _misled_tower(tower, directory.config or {})
    traits = towers.FAMILIES[tower]
    prefix = parts.TOWER_MODULE + traits.stored_prefix
    for config in surroundings.tower_configs:
        if (shapes := shapes_of_tower(tower, config, family)) is not None:
            return {prefix + name: shape for name, shape in shapes.items()}
    stored = {name: t.shape for name, t in tensors.items() if name.startswith(parts.TOWER_MODULE)}
    built = _built_config(tower, parts.below(prefix, stored), family)
    if built is not None and (shapes := shapes_of_tower(tower, built)) is not None:
        return {prefix + name: shape for name, shape in shapes.items()}
    below = parts.below(parts.TOWER_MODULE, stored)
    places = {
        parts.TOWER_MODULE + to: below[name] for name, to in towers.stored_names(below).items()
    }
    return places if any(place not in stored for place in places) else {}


def shapes_of_tower(
    tower: str, config: Mapping[str, Any], family: ModelFamily = VITA
) -> Shapes | None:
    """Return a tower's tensors by its own names; None if a config is not of this family."""
    described = towers.family_of_config(config)
    if described is None or described.name != tower:
        return None
    try:
        return expected_shapes(family.stored_tower(tower, config))
    except InputError:
        return None


def _built_config(tower: str, shapes: Shapes, family: ModelFamily) -> Mapping[str, Any] | None:
    """Return the config of a stored tower as it is built; what a family cuts off may be stored."""
    described = config_of_tensors(shapes)
    if described is None or towers.family_of_config(described) is not towers.FAMILIES[tower]:
        return described
    built = family.stored_tower(tower, described)
    is_published = towers.config_of_shapes(shapes) is not None
    if built is described or is_published:
        return built
    # How many layers there were is not known: what is stored is taken for what is left.
    return {**built, "num_hidden_layers": described["num_hidden_layers"]}


def _misled_tower(family: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the tensors of a family's tower that is built from another family's config."""
    traits = towers.FAMILIES[family]
    try:
        shapes = traits.expected_shapes(towers.inner_config(config))
    except (InputError, KeyError):
        return {}
    return {
        parts.TOWER_MODULE + traits.stored_prefix + name: shape for name, shape in shapes.items()
    }


def audio_shapes(config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings) -> Shapes:
    """Return the audio encoder's tensors by its directory, or by those stored without one.

    Empty where none is stored, and where nothing determines them.
    """
    shapes = stored_audio(tensors)
    settings = surroundings.audio.settings if surroundings.audio is not None else None
    return wanted_tensors(config, shapes, settings) if shapes else {}


def stored_audio(tensors: Tensors) -> dict[str, Shape]:
    """Return the shapes of the audio encoder's stored tensors."""
    return {name: tensor.shape for name, tensor in tensors.items() if is_audio(name)}
