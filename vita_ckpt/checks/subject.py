"""Hold what the rules judge: a checkpoint with everything around it that they need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vita_ckpt.checks.inspect import Inspection
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import CONFIG


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkpoint as it was read, and what was found around it.

    ``unread`` names tensors in files that could not be read. ``tower_config`` is the tower's own
    config, ``processor`` the ``preprocessor_config.json`` that goes with it, ``tokens`` the number
    of tokens that the tokenizer knows; each None where there is none to be found.
    ``audio_reachable`` is set if ``mm_audio_encoder`` leads somewhere, ``base`` is the
    checkpoint that a LoRA run was trained on.
    """

    checkpoint: Checkpoint
    inspection: Inspection
    unread: frozenset[str] = frozenset()
    tower_directory: TowerDirectory | None = None
    tower_config: Mapping[str, Any] | None = None
    processor: Mapping[str, Any] | None = None
    tokens: int | None = None
    audio_reachable: bool = False
    base: Checkpoint | None = None

    @property
    def kind(self) -> str:
        """The kind that the checkpoint was taken for."""
        return self.inspection.kind

    @property
    def config(self) -> Mapping[str, Any]:
        """The checkpoint's config; empty if it has none."""
        return self.checkpoint.config or {}

    @property
    def config_path(self) -> str:
        """The path of the config, for a finding; empty if there is none."""
        file = self.checkpoint.files.get(CONFIG)
        return file.path if file is not None else ""
