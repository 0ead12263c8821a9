"""Summarise what a plan will do: tensors, config, files, and the bytes to write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from vita_ckpt.core.checkpoint import Tensor
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.left_out import LeftOut, left_out_to_json

SUMMARY_VERSION: Final = 1

# What a plan does to a tensor or a file.
PlannedChange = Literal["added", "removed", "replaced"]


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that a plan changes, why, and what it is before and after; None on a side without.

    Of the two sides the JSON form keeps dtype and shape.
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
    """A key of ``config.json`` that a plan sets, and why; None where it is not set before."""

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
    """The name of a file below the checkpoint, and bytes of it: all, or those that are written."""

    name: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, repr=False)
class Summary(Displayed):
    """What a plan will do.

    ``base`` is None for a plan that starts from nothing. ``patched`` files are written in part,
    ``rewritten`` ones whole, ``carried`` ones stay as they are; ``left_out`` says of what else lies
    in the base's directory why it is not carried. ``bytes_to_write`` counts all but the files that
    say what was done, whose size is not known before.
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
        """Return the summary as JSON, in the form that ``--json`` prints of a surgery."""
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
