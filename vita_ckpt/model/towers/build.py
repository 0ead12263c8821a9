"""Build a tower of any family, S2 included."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, Final

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.config_values import wrong_tower_values
from vita_ckpt.core.anatomy.families import VITA, Features, ModelFamily
from vita_ckpt.errors import InputError
from vita_ckpt.model.towers.base import VisionTower

_WITH_S2: Final = tuple(tower.name for tower in towers.WITH_S2)


def tower_of(
    config: Mapping[str, Any],
    tower_config: Mapping[str, Any],
    attn: str | None = None,
    family: ModelFamily = VITA,
) -> VisionTower:
    """Build the tower that a checkpoint's config asks for, sized by the tower's own config.

    For a tower in a lone weight file, ``tower_config`` holds the sizes derived from its tensors.
    ``family`` is that of the checkpoint. Raises InputError ``invalid-s2-scales``,
    ``unsupported-config`` for features that the tower does not have, and the errors of
    :func:`build_tower`.
    """
    check_tower_values(tower_config)
    tower = towers.family_of_config(tower_config)
    if tower is None and tower_config.get("model_type") is not None:
        raise InputError(
            "unsupported-tower-config",
            "model_type",
            expected="a vision tower that is known",
            got=repr(tower_config["model_type"]),
        )
    tower = tower or _LONE_FILE
    scales = family.s2_scales(config)
    if scales is None:
        raise InputError(
            "invalid-s2-scales",
            str(config.get("s2_scales")),
            expected="sizes in pixels such as 384,768,1152",
        )
    stored = family.stored_tower(tower.name, tower_config)
    return build_tower(
        tower.name,
        stored,
        s2_scales=scales or None,
        attn=attn,
        features=_features(family, config, tower.name, stored),
        s2_towers=family.s2_towers,
    )


def _features(
    family: ModelFamily, config: Mapping[str, Any], tower: str, stored: Mapping[str, Any]
) -> Features | None:
    """Return the features of a tower that a family takes; None where the tower's class decides."""
    if family.features is None:
        return None
    defaults = towers.FAMILIES[tower].config_defaults
    layers = towers.inner_config(stored).get("num_hidden_layers", defaults["num_hidden_layers"])
    features = family.features(config, tower, layers + 1)
    if features is None:
        keys = ("mm_vision_select_layer", "mm_vision_select_feature")
        raise InputError(
            "unsupported-config",
            " and ".join(keys),
            expected=f"hidden states of {layers} layers, as {family.label} names them",
            got=" and ".join(repr(config.get(key)) for key in keys),
        )
    return features


def check_tower_values(config: Mapping[str, Any]) -> None:
    """Raise InputError ``unsupported-tower-config`` for a value that no tower can have."""
    for wrong in wrong_tower_values(config):
        raise InputError(
            "unsupported-tower-config",
            wrong.key,
            expected=f"{wrong.expected} in the tower's config",
            got=wrong.got,
        )


def build_tower(
    family: str,
    config: Mapping[str, Any],
    *,
    s2_scales: Sequence[int] | None = None,
    attn: str | None = None,
    features: Features | None = None,
    s2_towers: Collection[str] = _WITH_S2,
) -> VisionTower:
    """Build a tower in eval mode and in the default dtype, its weights not set.

    ``family`` is the name of a family and alone decides the class: upstream also builds what the
    path says, whatever the config is. ``config`` is the tower directory's ``config.json`` (of a
    parent config its ``vision_config`` is used). EVA-CLIP has no config file; its keys are
    ``width``, ``layers``, ``mlp``, ``heads``, ``patch_size``, ``image_size`` and ``head_out``, by
    default upstream's fixed sizes. Omitted keys have the defaults of the library (upstream's, for
    InternViT). ``s2_scales`` are pixels, in any order, and ask for the family's S2 variant.
    ``features`` are those that are taken of a tower of transformers, by default the patches of
    hidden state -2. ``s2_towers`` are the families that may have S2, by default VITA's.
    ``attn`` is ``"eager"`` or one of the library's other attention implementations; None is the
    library's default. A family that supports no other implementation uses eager.

    The tower can be built on the meta device; keep buffers real there
    (``accelerate.init_empty_weights(include_buffers=False)``).

    Raises InputError: ``unknown-tower-family``, ``s2-needs-siglip``, ``odd-patch-grid``,
    ``unsupported-tower-config``, ``s2-scales-do-not-fit-tower``.
    """
    found = towers.FAMILIES.get(family)
    if found is None:
        names = ", ".join(known.name for known in towers.KNOWN)
        raise InputError("unknown-tower-family", family, expected=f"one of {names}", got=family)
    if s2_scales is not None and found.name not in s2_towers:
        labels = towers.listed([towers.FAMILIES[name] for name in s2_towers])
        raise InputError(
            "s2-needs-siglip",
            "use_s2",
            expected=f"a {labels} tower",
            got=found.label,
            hint=f"set use_s2 to false, or swap in a {labels} tower",
        )
    # Each family has a module of its name in this package, with TOWER and, for S2, S2_TOWER.
    module: Any = import_module(f"vita_ckpt.model.towers.{family}")
    sizes = towers.inner_config(config)
    more = {} if features is None else {"features": features}
    tower: VisionTower = (
        module.TOWER(sizes, attn, **more)
        if s2_scales is None
        else module.S2_TOWER(sizes, s2_scales, attn, **more)
    )
    return tower.eval()


# The family assumed for a config that names none: it holds the sizes of a lone weight file.
_LONE_FILE = next(family for family in towers.KNOWN if family.lone_file)
