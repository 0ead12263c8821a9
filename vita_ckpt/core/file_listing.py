"""Describe a directory as a loader meets it: its files, and what each holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vita_ckpt.core.checkpoint import TensorRef


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a file cannot be read: the code of the error and its one line."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file read down to its header; ``trouble`` where that failed.

    ``format`` is that of a safetensors file's ``__metadata__``: None where it has none, empty where
    it has one that does not say.
    """

    name: str
    tensors: Mapping[str, TensorRef] = field(default_factory=dict)
    format: str | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """An index: which file it names for each tensor; ``metadata`` is None where it has none."""

    name: str
    weight_map: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """A directory, or a lone weight file: nothing was chosen yet.

    ``names`` are the regular files at its top, sorted; ``files`` the weight files among them and
    those that an index names, ``indexes`` the indexes. ``config_trouble`` says why there is no
    ``config``; ``lone`` is set where ``root`` is a weight file itself.
    """

    root: str
    names: tuple[str, ...]
    files: Mapping[str, WeightFile]
    indexes: Mapping[str, Index]
    config: Mapping[str, Any] | None = None
    config_trouble: Trouble | None = None
    adapter_config: Mapping[str, Any] | None = None
    lone: bool = False

    def path_of(self, name: str) -> str:
        """The whole path of one of the files."""
        return self.root if self.lone else f"{self.root}/{name}"
