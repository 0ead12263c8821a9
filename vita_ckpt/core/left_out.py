"""Define the reasons why something in a checkpoint's directory is not part of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class LeftOut(Enum):
    """A reason why something in a directory is not part of the checkpoint, or is not uploaded.

    Its string is the reason as reports word it.
    """

    TRAINING_STATE = auto()
    OTHER_WEIGHTS = auto()
    KILLED_RUN = auto()
    OTHER_CHECKPOINTS = auto()
    TOO_DEEP = auto()
    UNREADABLE = auto()
    BROKEN_LINK = auto()
    DIRECTORY_LINK = auto()
    NOT_REGULAR = auto()
    OUTSIDE_LINK = auto()
    PARTIAL_DOWNLOAD = auto()
    HIDDEN = auto()
    NOT_UTF8 = auto()
    PICKLE = auto()

    def __str__(self) -> str:
        return _WORDING[self]


_WORDING: Final[Mapping[LeftOut, str]] = {
    LeftOut.TRAINING_STATE: "state of the run that trained the checkpoint",
    LeftOut.OTHER_WEIGHTS: "a weight file that is not part of the checkpoint",
    LeftOut.KILLED_RUN: "left by a run that was killed",
    LeftOut.OTHER_CHECKPOINTS: "a directory of other checkpoints or hidden",
    LeftOut.TOO_DEEP: "nested too deeply",
    LeftOut.UNREADABLE: "not readable",
    LeftOut.BROKEN_LINK: "a broken link",
    LeftOut.DIRECTORY_LINK: "a link to a directory",
    LeftOut.NOT_REGULAR: "not a regular file",
    LeftOut.OUTSIDE_LINK: "a link out of the directory",
    LeftOut.PARTIAL_DOWNLOAD: "what an interrupted download or copy left",
    LeftOut.HIDDEN: "hidden",
    LeftOut.NOT_UTF8: "a name that is not UTF-8",
    LeftOut.PICKLE: "a pickle that is no weight file",
}


def left_out_to_json(left_out: Mapping[str, LeftOut]) -> list[dict[str, str]]:
    """Return each name with the reason why it is not part of the checkpoint, as JSON values."""
    return [{"name": name, "reason": str(reason)} for name, reason in left_out.items()]
