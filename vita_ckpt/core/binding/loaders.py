"""Tell loaders apart, and choose the one that judges a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy.families import FAMILIES, VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.dataclass import dataclass

VITA_1_5: Final = "vita-1.5"
VITA_1_0: Final = "vita-1.0"
TRANSFORMERS_4_41: Final = "transformers-4.41"
TRANSFORMERS_5_6: Final = "transformers-5.6"
HUB_MODEL: Final = "hub-model"
HUB_METADATA: Final = "hub-metadata"


@dataclass(frozen=True, slots=True)
class Loader:
    """What distinguishes a loader as to what it binds.

    ``family`` is the family whose tower, projector and audio encoder it builds, None if none,
    ``looks_around`` opens their directories for it, ``tower_last`` fills the tower from its
    directory after the checkpoint is read, ``is_old`` is transformers before 5, ``gives_module``
    has the caller build the model.
    """

    family: ModelFamily | None = None
    looks_around: bool = False
    tower_last: bool = False
    is_old: bool = False
    gives_module: bool = False

    @property
    def is_vita(self) -> bool:
        """Whether it is one of VITA's."""
        return self.family is VITA


# By the names of ``explain --loader``; the one that only reads headers builds nothing.
LOADERS: Final[Mapping[str, Loader | None]] = {
    VITA_1_5: Loader(VITA, looks_around=True, is_old=True),
    VITA_1_0: Loader(VITA, looks_around=True, tower_last=True, is_old=True),
    TRANSFORMERS_4_41: Loader(is_old=True),
    TRANSFORMERS_5_6: Loader(),
    **{
        name: Loader(family, looks_around=True, is_old=True)
        for family in FAMILIES.values()
        if family is not VITA
        for name in family.loaders
    },
    HUB_MODEL: Loader(VITA, gives_module=True),
    HUB_METADATA: None,
}


LOADER_NAMES: Final = tuple(LOADERS)


def judge_of(config: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """Return the loader whose binding judges a model: its family's own, by default VITA's.

    A plain language model that VITA has no class for is judged by plain transformers.
    """
    family = family_of(config, names)
    if family is not None:
        return family.loaders[0]
    model_type = config.get("model_type")
    is_plain = of_plain_type(model_type) is not None and "mm_vision_tower" not in config
    return TRANSFORMERS_4_41 if is_plain and VITA.backbone_on(model_type) is None else VITA_1_5


def model_name(root: str) -> str:
    """Return the name by which upstream's loaders know a directory; of a step the run's with it."""
    *_, parent, own = ("", *root.rstrip("/").split("/"))
    return f"{parent}_{own}" if own.startswith("checkpoint-") else own
