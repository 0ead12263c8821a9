"""List names and shapes of every tensor of a vision tower, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.core.anatomy.towers.detect import (
    config_of_shapes,
    tower_of_config,
    tower_of_shapes,
)
from vita_ckpt.core.anatomy.towers.families import WITH_CONFIG, family_of_config, inner_config
from vita_ckpt.core.anatomy.towers.family import listed
from vita_ckpt.core.anatomy.towers.shapes import unsupported
from vita_ckpt.core.checkpoint import Shape


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return every tensor of a tower by its config, under the names of its own transformer.

    Those are ``embeddings.patch_embedding.weight`` and so on, without a prefix; a parent config is
    looked through to its ``vision_config``. EVA-CLIP's config is what
    :func:`~vita_ckpt.core.anatomy.towers.detect.config_of_shapes` reads from its tensors. Raises
    InputError ``unsupported-tower-config`` where the config describes no tower.
    """
    family = family_of_config(config)
    if family is not None and family.lone_file:
        return family.expected_shapes(config)
    tower = tower_of_config(config)
    if tower is None:
        raise unsupported("model_type", f"a {listed(WITH_CONFIG)} tower", config)
    return tower.traits.expected_shapes(inner_config(config))


def config_of_tensors(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """Return the config for which :func:`expected_shapes` gives most of these own names.

    It has sizes and options, but not the attention heads, which no shape tells. None where the
    tensors are those of no tower.
    """
    tower = tower_of_shapes(shapes)
    if tower is None or tower.image_size is None or not tower.layers:
        return None
    if tower.traits.lone_file:
        return config_of_shapes(shapes)
    mlp = next((s[0] for n, s in shapes.items() if n.endswith(".mlp.fc1.bias") and s), 0)
    return {
        "model_type": tower.traits.model_type,
        "hidden_size": tower.width,
        "intermediate_size": mlp,
        "num_hidden_layers": tower.layers,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        **tower.traits.options_of_tensors(shapes),
    }
