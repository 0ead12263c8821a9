"""Recognise a tower by the names and shapes of its tensors, or by its config."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from vita_ckpt.core.anatomy.towers.families import FAMILIES, family_of_config, inner_config
from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.shapes import Shapes, size
from vita_ckpt.core.anatomy.towers.tower import Tower

_MOST_DIGITS = 6  # of a layer's number


def tower_of_shapes(shapes: Shapes) -> Tower | None:
    """Return the tower that tensors of these names and shapes are, None for none of the families.

    Names may stand below any prefix: a checkpoint's tower, a standalone one from before or after
    transformers 5.6, the vision half of a CLIP or InternVL checkpoint, EVA's ``visual.*``.
    """
    found = _recognise(shapes)
    return _measure(*found, shapes) if found is not None else None


def tower_prefix(shapes: Shapes) -> str:
    """Return what stands before the names of a tower: ``visual.``, ``vision_model.``, nothing."""
    found = _recognise(shapes)
    if found is not None:
        return found[1]
    names = dict.fromkeys(family.patches for family in FAMILIES.values())
    prefixes = (_prefix_before(shapes, name) for name in names)
    return next((prefix for prefix in prefixes if prefix is not None), "")


def own_names(shapes: Shapes) -> dict[str, str]:
    """Map the tensors of a tower to their names in the tower's own transformer.

    Whatever stands beside the tower (a text model, EVA-CLIP's other half) is left out, as are the
    position ids that older files store. Empty if there is no tower.
    """
    if tower_of_shapes(shapes) is None:
        return {}
    prefix = tower_prefix(shapes)
    return {
        name: name.removeprefix(prefix)
        for name in shapes
        if name.startswith(prefix) and not name.endswith("embeddings.position_ids")
    }


def stored_names(shapes: Shapes) -> dict[str, str]:
    """Map the tensors of a tower to their names below ``model.vision_tower.``."""
    tower = tower_of_shapes(shapes)
    if tower is None:
        return {}
    prefix = tower.traits.stored_prefix
    return {name: prefix + own for name, own in own_names(shapes).items()}


def standalone_names(shapes: Shapes) -> dict[str, str]:
    """Map the tensors of a tower to their names in a tower directory of its own."""
    tower = tower_of_shapes(shapes)
    if tower is None:
        return {}
    prefix = tower.traits.standalone_prefix
    return {name: prefix + own for name, own in own_names(shapes).items()}


def tower_of_config(config: Mapping[str, Any]) -> Tower | None:
    """Return the tower that a ``config.json`` describes, None for none of the families.

    A parent config (``clip``, ``siglip``, InternVL) is looked through to its ``vision_config``.
    """
    family = family_of_config(config, keys=False)
    if family is None:
        return None
    inner, defaults = inner_config(config), family.config_defaults
    width, layers, patch_size, image_size = (
        size(inner, key, defaults[key])
        for key in ("hidden_size", "num_hidden_layers", "patch_size", "image_size")
    )
    return Tower(family.name, width, layers, patch_size, image_size) if width else None


def config_of_shapes(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config of a tower whose tensors alone determine it, else None.

    Tensors do not say how many attention heads there are: of a family with a config only the
    published towers are known. ``shapes`` are those of the tower, under any prefix.
    """
    tower = tower_of_shapes(shapes)
    if tower is None or tower.image_size is None or tower.patch_size is None:
        return None
    family, layers = tower.traits, tower.layers or 0
    own = {bare: shapes[name] for name, bare in own_names(shapes).items()}
    sizes = {"patch_size": tower.patch_size, "image_size": tower.image_size}
    if family.sizes_of_tensors is not None:
        return family.sizes_of_tensors(own, {"width": tower.width, "layers": layers, **sizes})
    published = family.published.get((tower.width, layers))
    if published is None:
        return None
    return {
        "model_type": family.model_type,
        "hidden_size": tower.width,
        "num_hidden_layers": layers,
        **sizes,
        **family.options_of_tensors(own),
        **published,
    }


def _recognise(shapes: Shapes) -> tuple[Family, str] | None:
    """Return the family of a tower and the prefix of its names."""
    prefixes: dict[str, str | None] = {}
    for family in FAMILIES.values():
        if family.patches not in prefixes:
            prefixes[family.patches] = _prefix_before(shapes, family.patches)
        prefix = prefixes[family.patches]
        if prefix is not None and family.recognises(shapes, prefix):
            return family, prefix
    return None


def _prefix_before(shapes: Shapes, name: str) -> str | None:
    return next(
        (key.removesuffix(name) for key in shapes if key == name or key.endswith("." + name)),
        None,
    )


def _measure(family: Family, prefix: str, shapes: Shapes) -> Tower | None:
    """Read the sizes of a tower from its convolution, its table of positions and its layers."""
    kernel = shapes[prefix + family.patches]
    if len(kernel) != 4 or 0 in kernel:
        return None
    width, patch_size = kernel[0], kernel[3]
    table = shapes.get(prefix + family.positions, ())
    grid = _square_root(table[-2] - family.class_tokens) if len(table) >= 2 else None
    before = prefix + family.layers
    numbers = {name[len(before) :].partition(".")[0] for name in shapes if name.startswith(before)}
    layers = [
        int(number)
        for number in numbers
        if number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS
    ]
    image_size = grid * patch_size if grid is not None else None
    return Tower(family.name, width, max(layers, default=-1) + 1, patch_size, image_size)


def _square_root(value: int) -> int | None:
    root = isqrt(max(value, 0))
    return root if root * root == value else None
