"""``json``: everything, for programs; the schema is ``schemas/report-v1.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from vita_ckpt import __version__
from vita_ckpt.checks.rules import Rule
from vita_ckpt.core.report import SEVERITIES, Finding, Report, has_errors, worst_first
from vita_ckpt.core.strict_json import json_text

REPORT_VERSION: Final = 1


def render(reports: Sequence[Report], rules: Mapping[str, Rule]) -> str:
    """ASCII; bytes of a name that are no Unicode are spelled out as ``\\udcff``."""
    findings = [finding for report in reports for finding in report.findings]
    value = {
        "format": "vita-ckpt-report",
        "version": REPORT_VERSION,
        "tool": {"name": "vita-ckpt", "version": __version__},
        **_outcome(findings),
        "reports": [
            {
                "path": _unicode(report.path),
                "kind": _unicode(report.kind),
                **_outcome(report.findings),
                "findings": [
                    {key: _unicode(value) for key, value in asdict(finding).items()}
                    for finding in worst_first(report.findings)
                ],
            }
            for report in reports
        ],
    }
    return json_text(value) + "\n"


def _outcome(findings: Sequence[Finding]) -> dict[str, Any]:
    severities = [finding.severity for finding in findings]
    numbers = {f"{severity}s": severities.count(severity) for severity in SEVERITIES}
    return {"ok": not has_errors(findings), **numbers}


def _unicode(text: str) -> str:
    # A lone surrogate is legal in JSON for Python, and an error for most other readers.
    return text.encode("utf-8", "backslashreplace").decode()
