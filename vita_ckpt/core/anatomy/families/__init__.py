"""List the families of multimodal models: one file per family, and one row here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families.bunny import BUNNY
from vita_ckpt.core.anatomy.families.family import (
    REQUIRED,
    Features,
    ImageCount,
    Key,
    Load,
    ModelFamily,
    TowerSource,
)
from vita_ckpt.core.anatomy.families.llava import LLAVA
from vita_ckpt.core.anatomy.families.llava_next import LLAVA_NEXT
from vita_ckpt.core.anatomy.families.vita import VITA
from vita_ckpt.core.dataclass import dataclass

__all__ = [
    "BUNNY",
    "FAMILIES",
    "LLAVA",
    "LLAVA_NEXT",
    "REQUIRED",
    "VITA",
    "Features",
    "ImageCount",
    "Key",
    "Load",
    "ModelFamily",
    "Recognition",
    "TowerSource",
    "family_of",
    "recognise",
]

# In the order in which they are asked. Of two with the same model types the first one is taken
# where it has a key of its own, else the second.
_IN_ORDER: Final = (
    VITA,
    BUNNY,
    LLAVA_NEXT,
    LLAVA,
)

FAMILIES: Final[dict[str, ModelFamily]] = {family.name: family for family in _IN_ORDER}


@dataclass(frozen=True, slots=True)
class Recognition:
    """The family of a model, by what it was told, and why it may be another (empty if not)."""

    family: ModelFamily
    evidence: str
    doubt: str = ""


def family_of(config: Mapping[str, Any] | None, names: Iterable[str] = ()) -> ModelFamily | None:
    """Return the family that reads a model or run; None for what none of them reads.

    ``config`` is that of the model or of the run, ``names`` are those of its tensors.
    """
    found = recognise(config, names)
    return found.family if found is not None else None


def recognise(config: Mapping[str, Any] | None, names: Iterable[str] = ()) -> Recognition | None:
    """Return the family that a config names by its ``model_type`` or its class, and the evidence.

    Two families share model types: they are told by the keys that one of them alone has, and where
    there are none, by values that one of them alone knows.
    """
    if config is None:
        return None
    classes = _classes(config)
    model_type = str(config.get("model_type"))
    by_class = [f for f in _IN_ORDER if {b.architecture for b in f.backbones} & classes]
    by_type = [f for f in _IN_ORDER if model_type in f.by_type]
    # A class of VITA's is VITA's whatever the config calls itself.
    found = [VITA] if VITA in by_class else by_type or by_class
    if not found:
        return None
    named = f"model_type {model_type!r}" if found is by_type else f"class {min(classes)}"
    if len(found) == 1:
        return Recognition(found[0], named)
    shared, default = found[0], found[-1]
    own = [key for key in shared.own_keys if key in config]
    if own:
        return Recognition(shared, f"{named} and {own[0]}")
    value = shared.own_value(config) or _own_tensor(shared, names)
    if value is not None:
        doubt = f"{default.label} has the same names: only {value} says that it is {shared.label}"
        return Recognition(shared, f"{named} and {value}", doubt)
    return Recognition(default, f"{named}, without a key of {shared.label}'s")


def _own_tensor(family: ModelFamily, names: Iterable[str]) -> str | None:
    own = tuple(prefix for prefix in family.dropped if prefix != parts.NEWLINE)
    return next((f"tensor {name}" for name in names if name.startswith(own)), None)


def _classes(config: Mapping[str, Any]) -> set[str]:
    listed = config.get("architectures")
    return {c for c in listed if isinstance(c, str)} if isinstance(listed, list) else set()
