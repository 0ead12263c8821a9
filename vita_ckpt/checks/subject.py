"""Define the subject of a check: a checkpoint with its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from vita_ckpt.checks.inspection.summary import Inspection
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.families import VITA, ModelFamily
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.binding.modules import Surroundings
from vita_ckpt.core.binding.result import Binding, PartSource
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.rivals import Rival


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint as it was read, what was found around it, and how a loader binds it.

    ``unread`` names tensors in files that could not be read. ``tokens`` is the number of tokens in
    the tokenizer, None if it was not found. ``base`` is the checkpoint that a LoRA run was trained
    on, ``binding`` None for what no loader builds a language model from.
    ``rivals`` compare other weights in the directory with the checkpoint's, ``taken`` names files
    that hold what a stale index promises elsewhere. ``surroundings`` is what lies around it and
    decides what binds. ``unused_tower`` names a tensor by which a stored tower that the loader does
    not take differs from the directory's, None if it does not, or that is not known. ``family`` is
    the model's: VITA's if its config does not name another.
    """

    checkpoint: Checkpoint
    inspection: Inspection
    unread: frozenset[str] = frozenset()
    tokens: int | None = None
    base: Checkpoint | None = None
    binding: Binding | None = None
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()
    surroundings: Surroundings = field(default_factory=Surroundings)
    unused_tower: str | None = None
    family: ModelFamily = VITA

    @property
    def kind(self) -> str:
        """The detected kind of the checkpoint."""
        return self.inspection.kind

    @property
    def reads_directory(self) -> bool:
        """Whether the loader ends with the directory's tower, whatever is stored."""
        part = None if self.binding is None else self.binding.part(parts.VISION_TOWER)
        from_directory = part is not None and part.source is PartSource.TOWER_DIRECTORY
        return from_directory and self.family is not VITA

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's config; empty if it has none."""
        return self.checkpoint.config or {}

    @property
    def config_path(self) -> str:
        """The path of the config, for a finding; empty if there is no config."""
        file = self.checkpoint.files.get(self.checkpoint.config_file)
        return file.path if file is not None else ""

    @property
    def tower_directory(self) -> TowerDirectory | None:
        """What ``mm_vision_tower`` leads to; None if the config names no tower."""
        return self.surroundings.tower

    @property
    def tower_config(self) -> Mapping[str, Any] | None:
        """The tower's own config: its directory's, which loaders read, or one that is carried."""
        return next(iter(self.surroundings.tower_configs), None)

    @property
    def processor(self) -> Mapping[str, Any] | None:
        """The tower's ``preprocessor_config.json``; None if it was not found."""
        return self.surroundings.processor

    @property
    def audio_directory(self) -> AudioDirectory | None:
        """What ``mm_audio_encoder`` leads to; None if the config names none."""
        return self.surroundings.audio
