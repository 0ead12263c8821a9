"""Describe a directory as a loader sees it: its files, and what each holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from vita_ckpt.core.checkpoint import Tensor, TensorRef, bytes_by_dtype, count_forms
from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Trouble:
    """The reason why a file cannot be read: error code and one-line message."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file of which only the header was read; ``trouble`` is set if that failed.

    ``format`` is the format that a safetensors file's ``__metadata__`` names: None without
    ``__metadata__``, empty if it names no format.
    """

    name: str
    tensors: Mapping[str, TensorRef] = field(default_factory=dict)
    format: str | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """An index, which maps each tensor to a file; ``metadata`` is None if it is absent.

    ``mismatch`` is the first thing that it says otherwise than the files that it names.
    """

    name: str
    weight_map: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] | None = None
    trouble: Trouble | None = None
    mismatch: Trouble | None = None


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """All weight files of a directory, or a lone weight file, before any is selected.

    ``names`` are the regular files directly in the directory, sorted. ``files`` are the weight
    files among them and those that an index names, ``indexes`` the indexes. ``config_trouble`` is
    the reason why ``config`` could not be read. ``serving_config`` is what config.json says where
    VITA's config is in another file. ``lone`` is set where ``root`` is itself a weight
    file. ``other_pickled`` names a tensor by which complete pickled weights differ from the
    safetensors files beside them; None if there are none, or they are the same.
    """

    root: str
    names: tuple[str, ...]
    files: Mapping[str, WeightFile]
    indexes: Mapping[str, Index]
    config: Mapping[str, Any] | None = None
    config_trouble: Trouble | None = None
    adapter_config: Mapping[str, Any] | None = None
    serving_config: Mapping[str, Any] | None = None
    lone: bool = False
    other_pickled: str | None = None

    def path_of(self, name: str) -> str:
        """Return the full path of one of the files."""
        return self.root if self.lone else f"{self.root}/{name}"


def other_total_size(metadata: Mapping[str, Any], tensors: Iterable[Tensor]) -> int | None:
    """Return the bytes of tensors if an index's metadata says another number; None if it is right.

    An index need not say one.
    """
    said, size = metadata.get("total_size"), sum(bytes_by_dtype(count_forms(tensors)).values())
    return size if said is not None and said != size else None
