"""Word what several formats need: a finding in one line, its file, the counts.

Everything here is one printable line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from vita_ckpt.cli import render
from vita_ckpt.core.report import SEVERITIES, Finding, Report
from vita_ckpt.errors import printable


def sentence(finding: Finding, *, hint: bool = True) -> str:
    """``subject: message (hint)``; a subject that is the finding's own file is left out."""
    text = printable(finding.message)
    if finding.subject and finding.subject not in (finding.file, os.path.basename(finding.file)):
        text = f"{printable(finding.subject)}: {text}"
    return f"{text} ({printable(finding.hint)})" if hint and finding.hint else text


def place(report: Report, finding: Finding) -> str:
    """Return the finding's file: its name within the checkpoint, or a path; empty without one."""
    if not finding.file:
        return ""
    name = os.path.relpath(finding.file, report.path or os.curdir)
    inside = name != os.curdir and name.split(os.sep)[0] != os.pardir
    return printable(name if inside else render.path(finding.file))


def title(report: Report) -> str:
    """Return the path of a checkpoint as a person would type it."""
    return printable(render.path(report.path or os.curdir))


def counts(findings: Iterable[Finding]) -> str:
    """``1 error, 2 warnings``; ``nothing found`` if that is so."""
    severities = [finding.severity for finding in findings]
    numbers = ((severities.count(severity), severity) for severity in SEVERITIES)
    texts = [f"{number} {word}{'s' if number > 1 else ''}" for number, word in numbers if number]
    return ", ".join(texts) or "nothing found"


def summary(reports: Sequence[Report]) -> str:
    """``3 checkpoints: 1 error``."""
    findings = [finding for report in reports for finding in report.findings]
    return f"{len(reports)} checkpoint{'s' if len(reports) != 1 else ''}: {counts(findings)}"
