"""Findings: what is wrong with a checkpoint, as data; a report is a list of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Severity = Literal["error", "warning", "note"]

_ORDER: Final[tuple[Severity, ...]] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: ``rule`` is a stable id, ``subject`` a tensor, key or file."""

    rule: str
    severity: Severity
    subject: str
    message: str
    hint: str = ""


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Findings in the order in which a person wants them: errors, warnings, notes."""
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))


def has_errors(findings: tuple[Finding, ...]) -> bool:
    """Whether one of them is an error."""
    return any(finding.severity == "error" for finding in findings)
