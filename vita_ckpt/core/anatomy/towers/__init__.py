"""Describe the vision towers: families, names, shapes, and what upstream builds from a path."""

from vita_ckpt.core.anatomy.towers.detect import (
    config_of_shapes,
    own_names,
    standalone_names,
    stored_names,
    tower_of_config,
    tower_of_shapes,
    tower_prefix,
)
from vita_ckpt.core.anatomy.towers.dispatch import (
    Dispatch,
    Outcome,
    Reason,
    check_dispatch,
    dispatch,
)
from vita_ckpt.core.anatomy.towers.families import (
    FAMILIES,
    KNOWN,
    WITH_CONFIG,
    WITH_S2,
    family_of_config,
    inner_config,
)
from vita_ckpt.core.anatomy.towers.family import Family, enumerate_words, listed
from vita_ckpt.core.anatomy.towers.s2 import (
    DEFAULT_S2_SCALES,
    fits_s2_scales,
    parse_s2_scales,
)
from vita_ckpt.core.anatomy.towers.shapes import Shapes
from vita_ckpt.core.anatomy.towers.tower import Tower, TowerDirectory

__all__ = [
    "DEFAULT_S2_SCALES",
    "FAMILIES",
    "KNOWN",
    "WITH_CONFIG",
    "WITH_S2",
    "Dispatch",
    "Family",
    "Outcome",
    "Reason",
    "Shapes",
    "Tower",
    "TowerDirectory",
    "check_dispatch",
    "config_of_shapes",
    "dispatch",
    "enumerate_words",
    "family_of_config",
    "fits_s2_scales",
    "inner_config",
    "listed",
    "own_names",
    "parse_s2_scales",
    "standalone_names",
    "stored_names",
    "tower_of_config",
    "tower_of_shapes",
    "tower_prefix",
]
