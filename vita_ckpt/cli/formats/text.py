"""``text``: what a person reads in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.cli.render import table
from vita_ckpt.core.report import Report, Selection, worst_first
from vita_ckpt.errors import printable


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render a table for each checkpoint, worst first, with its hints, and a summary line."""
    return "".join(f"{line}\n" for report in reports for line in _checkpoint(report)) + (
        f"{wording.summary(reports)}\n"
    )


def _checkpoint(report: Report) -> Iterator[str]:
    yield wording.title(report)
    yield f"  {printable(report.what)} · {wording.counts(report.findings)}"
    yield ""
    if not report.findings:
        return
    findings = worst_first(report.findings)
    rows = [
        (one.severity, one.rule, wording.place(report, one), wording.sentence(one, hint=False))
        for one in findings
    ]
    yield table(rows, ("severity", "rule", "file", "what"))
    # The findings of one rule mostly have one hint: it is said once.
    hints = dict.fromkeys((one.rule, one.hint) for one in findings if one.hint)
    if hints:
        yield ""
        yield from (f"→ {printable(rule)}: {printable(hint)}" for rule, hint in hints)
    yield ""
