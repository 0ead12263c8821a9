"""Findings: what is wrong with a checkpoint, as data; a report is what was found in one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning", "note"]

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    ``rule`` is a stable id, ``subject`` a tensor, config key or file; ``message`` is one line with
    what was expected and what was found; ``file`` the path of the file that it is about, empty
    where it is about the checkpoint as a whole.
    """

    rule: str
    severity: Severity
    subject: str
    message: str
    hint: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found at ``path``, which was taken for a ``kind`` such as ``vita-checkpoint``."""

    path: str
    kind: str
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Count the findings of this severity."""
        return sum(finding.severity == severity for finding in self.findings)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings by severity: errors, warnings, notes."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def has_errors(findings: Iterable[Finding]) -> bool:
    """Return whether one of them is an error."""
    return any(finding.severity == "error" for finding in findings)
