"""Find why a model that is loaded to its end fails at its first image or recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, settings_of_shapes
from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.core.binding.modules import (
    Surroundings,
    builds_audio,
    features_of,
    hidden_size,
    tower_family,
)
from vita_ckpt.core.binding.result import Tensors
from vita_ckpt.core.binding.shapes import stored_audio


def described_tower(name: str, tensors: Tensors, surroundings: Surroundings) -> Tower | None:
    """Return the tower by its directory, by a carried config, or by the checkpoint's tensors."""
    directory, carried = surroundings.tower, surroundings.carried
    tower = directory.tower if directory is not None else None
    if tower is None and carried is not None:
        tower = towers.tower_of_config(carried)
    if tower is None:
        shapes = {n: t.shape for n, t in tensors.items() if n.startswith(parts.TOWER_MODULE)}
        tower = towers.tower_of_shapes(parts.below(parts.TOWER_MODULE, shapes))
    return tower if tower is not None and tower.family == name else None


def fault_of(
    config: Mapping[str, Any], tower: Tower | None, surroundings: Surroundings, family: ModelFamily
) -> str:
    """Return why tower and projector do not go together, which shows at the first image."""
    own = surroundings.tower.tower if surroundings.tower is not None else None
    if tower is not None:
        found = next(_faults(config, tower, family), "")
        size = unfit_image_size(surroundings.processor, tower, config, family)
        if not found and size is not None:
            return f"images of {size} px, where the tower takes {tower.image_size} px"
        return found
    if own is None or family is VITA:
        return ""
    built = towers.FAMILIES[str(tower_family(config, surroundings, family))]
    return f"IndexError: {own.traits.label} is built as {built.label}"


def _faults(config: Mapping[str, Any], tower: Tower, family: ModelFamily) -> Iterator[str]:
    kind = family.projector_type(config)
    features = features_of(config, tower, family)
    if features is None:
        word = config.get("mm_vision_select_feature", "patch")
        layer = config.get("mm_vision_select_layer")
        yield f"the tower has no features {word!r} of layer {layer!r}"
        return
    made = tower.output_width(family.number_of_scales(config)) * len(features.layers)
    has_none = projectors.has_no_tensors(kind if isinstance(kind, str) else "")
    taken = config.get("mm_hidden_size")
    if made != taken and not has_none:
        yield f"the tower gives {made} features, the projector takes {taken}"
    if has_none and family is not VITA and made != hidden_size(config, family):
        yield f"the tower gives {made} features, and no projector changes their number"
    if tower.has_odd_grid:
        yield f"a grid of {tower.grid} patches: expected {tower.traits.grid_needed}"
    if family.uses_s2(config):
        scales = family.s2_scales(config)
        if not scales or not towers.fits_s2_scales(tower, scales):
            text = config.get("s2_scales", family.default_s2_scales)
            yield f"s2_scales {text!r} are no multiples of {tower.image_size} px"
    tokens = tower.tokens()
    if tokens is not None and projectors.tokens_out(kind, tokens + features.class_token) is None:
        yield f"{tokens} tokens are none that a {kind} projector can take"
    if fault := family.fault(config, features):
        yield fault


def unfit_image_size(
    processor: Mapping[str, Any] | None,
    tower: Tower,
    config: Mapping[str, Any],
    family: ModelFamily,
) -> int | None:
    """Return the size in pixels of the images that a processor makes, if it is not the tower's.

    Pixels beyond the last whole patch make no difference. With S2 upstream sets the largest scale
    itself.
    """
    size = _image_size(processor or {})
    if size is None or tower.image_size is None or tower.family in family.own_sizes:
        return None
    patch = tower.patch_size or 1
    if size // patch == tower.image_size // patch or size in (family.s2_scales(config) or ()):
        return None
    return size


def _image_size(processor: Mapping[str, Any]) -> int | None:
    """Return the side in pixels of the images that a processor makes; None if not specified."""
    crops = processor.get("do_center_crop") is not False and "crop_size" in processor
    size = processor.get("crop_size" if crops else "size")
    if isinstance(size, Mapping):
        sides = [size.get(key) for key in ("height", "width", "shortest_edge") if key in size]
        size = sides[0] if sides and all(side == sides[0] for side in sides) else None
    return size if type(size) is int else None


def fault_of_audio(config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings) -> str:
    """Return why audio encoder and language model do not go together."""
    if not builds_audio(config):
        return ""
    directory = surroundings.audio
    settings = directory.settings if directory is not None else None
    cmvn = directory.cmvn if directory is not None else None
    if settings is not None and cmvn is not None and len(cmvn.mean) != settings.mel_bins:
        return f"global_cmvn is of {len(cmvn.mean)} mel bins, the encoder takes {settings.mel_bins}"
    settings = settings or settings_of_shapes(parts.below(AUDIO_PREFIX, stored_audio(tensors)))
    if settings is None or settings.adapter.out_width == (taken := hidden_size(config)):
        return ""
    made = settings.adapter.out_width
    return f"the audio adapter gives {made} features, the language model takes {taken}"
