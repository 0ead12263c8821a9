"""``github``: workflow commands, which GitHub shows as annotations of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.cli.render import path
from vita_ckpt.core.report import SEVERITIES, Finding, Report, Selection, Severity
from vita_ckpt.errors import printable

_COMMANDS: Final[Mapping[Severity, str]] = {
    "error": "error",
    "warning": "warning",
    "note": "notice",
}
_DATA: Final = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY: Final = {**_DATA, **str.maketrans({":": "%3A", ",": "%2C"})}


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render one command per finding, the worst first: GitHub shows ten of each severity."""
    lines = [
        _command(report, finding)
        for severity in SEVERITIES
        for report in reports
        for finding in report.findings
        if finding.severity == severity
    ]
    said = [
        f"::notice title=policy::{printable(sentence).translate(_DATA)}"
        for sentence in selection.sentences()
    ]
    return "".join(f"{line}\n" for line in [*lines, *said, wording.summary(reports)])


def _command(report: Report, finding: Finding) -> str:
    properties = {"title": printable(finding.rule)}
    where = wording.title(report)
    if finding.file:
        file = path(finding.file)
        # An annotation is put at a file only if its path can be written on a line.
        if printable(file) == file:
            properties = {"file": file, **properties}
        where += f", {wording.place(report, finding)}"
    listed = ",".join(f"{key}={value.translate(_PROPERTY)}" for key, value in properties.items())
    message = f"{where}: {wording.sentence(finding)}".translate(_DATA)
    return f"::{_COMMANDS[finding.severity]} {listed}::{message}"
