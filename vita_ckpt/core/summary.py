"""Summarise what a plan will do: tensors, config, files, and the bytes to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Final, Literal

from vita_ckpt.core.checkpoint import Tensor
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.left_out import LeftOut, left_out_to_json

SUMMARY_VERSION: Final = 1

# How a plan changes a tensor or a file.
PlannedChange = Literal["added", "removed", "replaced"]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that a plan changes, with the reason and both sides; None where it is absent.

    The JSON form keeps only dtype and shape of the two sides.
    """

    name: str
    change: PlannedChange
    before: Tensor | None
    after: Tensor | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return {
            "name": self.name,
            "change": self.change,
            "before": _dtype_and_shape(self.before),
            "after": _dtype_and_shape(self.after),
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class PlannedKey:
    """A key of ``config.json`` that a plan sets, and why; ``before`` is None if it was not set."""

    key: str
    before: Any
    after: Any
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return {"key": self.key, "before": self.before, "after": self.after, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file beside the weights that a plan adds, replaces or removes, and why."""

    name: str
    change: PlannedChange
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FileSize:
    """A file's name below the checkpoint, and its size in bytes or the number of bytes written."""

    name: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, repr=False)
class Summary(Displayed):
    """A summary of what a plan will do.

    ``base`` is None for a plan without a base. ``patched`` files are written in part, ``rewritten``
    ones whole, ``carried`` ones stay unchanged. ``left_out`` maps what else is in the base's
    directory to the reason why it is not carried. ``bytes_to_write`` excludes the files that record
    the operation, whose size is not known in advance.
    """

    operation: str
    base: str | None
    donors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    tensors: tuple[PlannedTensor, ...] = ()
    config: tuple[PlannedKey, ...] = ()
    files: tuple[PlannedFile, ...] = ()
    patched: tuple[FileSize, ...] = ()
    rewritten: tuple[FileSize, ...] = ()
    carried: tuple[FileSize, ...] = ()
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    bytes_to_write: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON, in the form that a surgery prints with ``--json``."""
        lists = {
            name: [item.to_dict() for item in getattr(self, name)]
            for name in ("tensors", "config", "files", "patched", "rewritten", "carried")
        }
        return {
            "format": "vita-ckpt-summary",
            "version": SUMMARY_VERSION,
            "operation": self.operation,
            "base": self.base,
            "donors": list(self.donors),
            "notes": list(self.notes),
            **lists,
            "left_out": left_out_to_json(self.left_out),
            "bytes_to_write": self.bytes_to_write,
        }


def _dtype_and_shape(tensor: Tensor | None) -> dict[str, Any] | None:
    if tensor is None:
        return None
    return {"dtype": tensor.dtype, "shape": list(tensor.shape)}
