"""The formats of reports: one file each, a pure function of reports and rules to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from vita_ckpt.checks.rules import Rule
    from vita_ckpt.core.report import Report, Selection


class Render(Protocol):
    """Render reports, with the rules that were looked at, and which of them counted."""

    def __call__(
        self,
        reports: Sequence[Report],
        rules: Mapping[str, Rule],
        selection: Selection = ...,
    ) -> str:
        """Return whole lines."""
        ...


FORMATS: Final = ("text", "json", "junit", "sarif", "github", "markdown", "html")


def renderer(name: str) -> Render:
    """Return the renderer of one of ``FORMATS``. It gives whole lines of Unicode, and is pure.

    Paths below the working directory are written relative to it. What comes from a checkpoint is
    escaped as the format demands: no name can end a line, move a cursor or add markup.
    """
    render: Render = import_module(f"{__name__}.{name}").render
    return render
