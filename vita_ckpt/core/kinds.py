"""Decide what a thing is, once: a VITA model, one of its parts, a run, another family's model."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.families import (
    FAMILIES,
    Load,
    ModelFamily,
    TowerSource,
    family_of,
)
from vita_ckpt.core.anatomy.families import VITA as VITA_FAMILY
from vita_ckpt.core.anatomy.relatives import Relative, relative_of
from vita_ckpt.core.checkpoint import Checkpoint, Tensor
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.filenames import LORA_FILES, NON_LORA, shards_in_all
from vita_ckpt.core.quantisation import Quantisation, quantisation_of
from vita_ckpt.core.remedies import merge_unmerged, take_out
from vita_ckpt.core.training_state import file_of_training_state
from vita_ckpt.errors import InputError

# A whole model of each family, by the family's name.
CHECKPOINTS: Final[dict[str, str]] = {name: f"{name}-checkpoint" for name in FAMILIES}
VITA: Final = CHECKPOINTS[VITA_FAMILY.name]
LANGUAGE_MODEL: Final = "language-model"
PROJECTOR: Final = "projector"
LORA_RUN: Final = "lora-run"
TOWER: Final = "vision-tower"
AUDIO_ADAPTER: Final = "audio-adapter"
MULTIMODAL: Final = "multimodal-model"
PEFT_MODEL: Final = "peft-model"
SHARD: Final = "shard"
TRAINING_STATE: Final = "training-state"
UNKNOWN: Final = "unknown"

WHOLE: Final = tuple(CHECKPOINTS.values())
# Kinds that loaders take for what they are; the rules about tensors are about these.
KNOWN: Final = (*WHOLE, LANGUAGE_MODEL, PROJECTOR, LORA_RUN, TOWER, AUDIO_ADAPTER)

# What stands in the names of a model that PEFT wraps. A run's do too where more than deltas was
# trained, so that is told by its layout and the names of its files.
_UNMERGED: Final = frozenset({"base_layer", "original_module"})


_LONGEST_WRAPPER: Final = 2
_WRAPPED: Final = (parts.LANGUAGE_MODEL, parts.MM_PROJECTOR)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a checkpoint is.

    ``name`` is one of the constants above. ``family`` is the family whose loader reads the model
    or the run, ``relative`` what it is if it is of none of them, ``quantisation`` how the weights
    are quantised; each is None if it is not so.
    """

    name: str
    relative: Relative | None = None
    quantisation: Quantisation | None = None
    family: ModelFamily | None = None

    @property
    def part_of(self) -> Callable[[str], str]:
        """The function from the name of a tensor to its part, by the names of its family."""
        return parts.part_of if self.relative is None else self.relative.part_of


def kind_of(checkpoint: Checkpoint) -> Kind:
    """Return the kind of a checkpoint by its layout, names, shapes and config."""
    relative = relative_of(checkpoint.config, checkpoint.tensors)
    family = family_of(checkpoint.config, checkpoint.tensors) if relative is None else None
    name = _name(checkpoint, relative, family)
    return Kind(
        name,
        relative if name in (MULTIMODAL, PROJECTOR, LORA_RUN, PEFT_MODEL, TOWER) else None,
        quantisation_of(checkpoint),
        family,
    )


def part_as(checkpoint: Checkpoint, kind: str) -> Checkpoint:
    """Return the part of another family's model that ``kind`` names, as if it stood alone.

    The tensors of the language model get the names and the config of a plain one; tower and
    projector keep theirs. Any other checkpoint, and any other kind, is returned as it is.
    """
    relative = relative_of(checkpoint.config, checkpoint.tensors)
    wanted = {
        LANGUAGE_MODEL: parts.LANGUAGE_MODEL,
        TOWER: parts.VISION_TOWER,
        PROJECTOR: parts.MM_PROJECTOR,
    }.get(kind)
    if relative is None or wanted is None or kind_of(checkpoint).name != MULTIMODAL:
        return checkpoint
    tensors: dict[str, Tensor] = {
        relative.plain_name(name) if kind == LANGUAGE_MODEL else name: tensor
        for name, tensor in checkpoint.tensors.items()
        if relative.part_of(name) == wanted
    }
    config = checkpoint.config
    if kind == LANGUAGE_MODEL and config is not None:
        config = relative.plain_config(config)
    return replace(checkpoint, tensors=tensors, config=config)


def refuse_relative(checkpoint: Checkpoint, what: str) -> None:
    """Raise InputError ``other-family`` for a model or a run that no family's loader reads."""
    relative = relative_of(checkpoint.config, checkpoint.tensors)
    if relative is not None:
        raise InputError(
            "other-family",
            checkpoint.root,
            expected=f"{what} of {listed_families()}",
            got=f"{relative.label}{_model_type(checkpoint.config)}",
            hint=f"{take_out(relative, checkpoint.tensors)}; nothing can be put into it",
        )


def refuse_unmerged(checkpoint: Checkpoint) -> None:
    """Raise InputError ``unmerged-peft`` for a model that was saved with its deltas unmerged."""
    if kind_of(checkpoint).name == PEFT_MODEL:
        raise InputError(
            "unmerged-peft",
            checkpoint.root,
            expected="merged weights",
            got="a model of PEFT with its adapter beside the weights",
            hint=f"first {merge_unmerged(checkpoint.root)}, where FILE is the run's "
            "adapter_config.json",
        )


def refuse_other_family(checkpoint: Checkpoint, family: ModelFamily, what: str) -> None:
    """Raise InputError ``other-family`` for what is of another family than this one."""
    found = family_of(checkpoint.config, checkpoint.tensors)
    if found is not None and found is not family:
        raise InputError(
            "other-family",
            checkpoint.root,
            expected=f"{what} of {family.label}",
            got=f"{found.label}{_model_type(checkpoint.config)}",
            hint=f"{found.label} has no such part, or reads it otherwise",
        )


def listed_families() -> str:
    """Return the families whose checkpoints are read, formatted for a sentence."""
    return towers.enumerate_words([family.label for family in FAMILIES.values()], "or")


def _model_type(config: Mapping[str, Any] | None) -> str:
    model_type = (config or {}).get("model_type")
    return f" (model_type {model_type})" if isinstance(model_type, str) else ""


def _name(  # noqa: PLR0911 - one for each
    checkpoint: Checkpoint, relative: Relative | None, family: ModelFamily | None
) -> str:
    file = posixpath.basename(checkpoint.root) if checkpoint.layout == "file" else ""
    if file_of_training_state(file) is not None:
        return TRAINING_STATE
    if shards_in_all(file) > 1:
        return SHARD
    names = checkpoint.tensors
    found = Counter(map(parts.part_of if relative is None else relative.part_of, names))
    if checkpoint.layout == "lora":
        return LORA_RUN
    # In a training state PEFT's names are as they must be.
    is_state = checkpoint.layout == "state"
    read = _read_names(checkpoint, family)
    if not is_state and file not in (*LORA_FILES, NON_LORA) and is_unmerged(read):
        return PEFT_MODEL
    if found[parts.LORA]:
        return LORA_RUN
    if relative is not None:
        whole = found[parts.LANGUAGE_MODEL] and checkpoint.layout != "run"
        if whole or len([p for p in found if p != parts.OTHER]) > 1:
            return MULTIMODAL
        if found[parts.MM_PROJECTOR]:
            return PROJECTOR
    has_layers = any(name.startswith(parts.LAYERS_PREFIX) for name in names)
    has_vision = bool(found[parts.VISION_TOWER] or found[parts.MM_PROJECTOR])
    whole_model = CHECKPOINTS[(family or VITA_FAMILY).name]
    if has_layers:
        return whole_model if has_vision or family is not None else LANGUAGE_MODEL
    if found[parts.MM_PROJECTOR] and not found[parts.VISION_TOWER]:
        return PROJECTOR
    if found[parts.AUDIO_ADAPTER] and len(found) == 1:
        return AUDIO_ADAPTER
    if not found[parts.MM_PROJECTOR] and wrapper_of(names) is None and _has_tower(checkpoint):
        return TOWER
    return whole_model if has_vision else UNKNOWN


def _read_names(checkpoint: Checkpoint, family: ModelFamily | None) -> Mapping[str, Tensor]:
    """Return the tensors without those of a tower that the family's loader does not read."""
    config, names = checkpoint.config or {}, checkpoint.tensors
    if family is None or family.tower_source(config, Load(True)) is not TowerSource.DIRECTORY:
        return names
    return {n: tensor for n, tensor in names.items() if not n.startswith(parts.TOWER_MODULE)}


def wrapper_of(names: Iterable[str]) -> str | None:
    """Return what stands before VITA's names of a language model or a projector; None if nothing.

    Lightning's ``model.`` and DistributedDataParallel's ``module.`` are such.
    """
    for name in names:
        words = name.split(".", _LONGEST_WRAPPER)
        for length in range(1, len(words)):
            wrapper = ".".join(words[:length]) + "."
            if parts.part_of(name.removeprefix(wrapper)) in _WRAPPED:
                return wrapper
    return None


def is_unmerged(names: Mapping[str, Any]) -> bool:
    """Return whether names are those of a whole model with its adapter still beside the weights."""
    text = "\n".join(names)  # what no name holds, a single look at all of them tells
    if ("base_layer" in text or "original_module" in text) and any(
        not _UNMERGED.isdisjoint(name.split(".")) for name in names
    ):
        return True
    tables = parts.EMBED_TOKENS, parts.PEFT_PREFIX + parts.EMBED_TOKENS
    return any(table in names for table in tables) and any(
        parts.part_of(name) == parts.LORA for name in (names if "lora_" in text else ())
    )


def _has_tower(checkpoint: Checkpoint) -> bool:
    shapes = {
        name.removeprefix(parts.PEFT_PREFIX): tensor.shape
        for name, tensor in checkpoint.tensors.items()
    }
    return towers.tower_of_shapes(parts.below(parts.TOWER_PREFIX, shapes) or shapes) is not None
