"""Report what was done to a checkpoint: its history, an undo, an upload."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.left_out import LeftOut, left_out_to_json
from vita_ckpt.core.report import Report

HISTORY_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class PutBack:
    """A checkpoint restored to its state before ``operation``, which began at ``time``.

    ``recovered`` is set where the surgery, or an undo of it, was interrupted. ``kept`` are
    files that the surgery added and that have changed since: they are still there.
    """

    path: str
    operation: str
    time: str
    recovered: bool
    kept: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "kept": list(self.kept)}


@dataclass(frozen=True, slots=True)
class Undoable:
    """The last in-place surgery of a checkpoint, with the bytes that are kept to undo it.

    ``foreign`` is set where this user did not sign its journal for this directory: it came with the
    checkpoint, or the directory was moved or restored, or the key was lost.
    """

    operation: str
    time: str
    nbytes: int
    foreign: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; the size is ``bytes``."""
        return {
            "operation": self.operation,
            "time": self.time,
            "bytes": self.nbytes,
            "foreign": self.foreign,
        }


@dataclass(frozen=True, slots=True, repr=False)
class History(Displayed):
    """The recorded operations by which a checkpoint was made, oldest first.

    ``operations`` are those of ``vita_ckpt.json``, unchanged. ``undoable`` is None where nothing
    can be undone. ``has_manifest`` is set where digests of all files exist.
    """

    path: str
    operations: tuple[dict[str, Any], ...]
    needs_alignment: bool
    has_manifest: bool
    undoable: Undoable | None

    def to_dict(self) -> dict[str, Any]:
        """Return the history as JSON, in the form of ``schemas/history-v1.json``."""
        return {
            "format": "vita-ckpt-history",
            "version": HISTORY_VERSION,
            "path": self.path,
            "operations": list(self.operations),
            "needs_alignment": self.needs_alignment,
            "has_manifest": self.has_manifest,
            "undoable": None if self.undoable is None else self.undoable.to_dict(),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Push(Displayed):
    """The validation report and the location of a pushed checkpoint; no ``url`` if it was refused.

    ``files`` are the names of the uploaded files, ``left_out`` maps everything else to the reason
    why it was not uploaded, ``removed`` are the weights of earlier pushes that were deleted from
    the repository, ``copied`` those among ``files`` that the hub copied itself.
    """

    report: Report
    url: str | None
    files: tuple[str, ...]
    left_out: dict[str, LeftOut]
    removed: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON values, the report in its own JSON form."""
        return {
            "report": self.report.to_dict(),
            "url": self.url,
            "files": list(self.files),
            "left_out": left_out_to_json(self.left_out),
            "removed": list(self.removed),
            "copied": list(self.copied),
        }

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield the location, the uploaded files, and the findings of the validation."""
        yield "url", self.url or "refused"
        yield "files", self.files
        yield "left out", self.left_out
        yield "removed", self.removed
        yield "copied on the hub", self.copied
        yield from self.report.display_rows()
