"""``json``: everything, for programs; the schema is ``schemas/report-v1.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from vita_ckpt import __version__
from vita_ckpt.checks.rules import Rule
from vita_ckpt.core.report import Report, Selection, outcome
from vita_ckpt.core.strict_json import json_text

REPORT_VERSION: Final = 1


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render in ASCII; bytes of a name that are no Unicode are spelled out as ``\\udcff``."""
    findings = [finding for report in reports for finding in report.findings]
    value = {
        "format": "vita-ckpt-report",
        "version": REPORT_VERSION,
        "tool": {"name": "vita-ckpt", "version": __version__},
        **outcome(findings),
        "ok": not selection.fails(reports),
        "policy": selection.to_dict(),
        "reports": [
            {**report.to_dict(), "ok": not selection.fails([report])} for report in reports
        ],
    }
    return json_text(value) + "\n"
