"""``html``: a page that opens anywhere, with findings grouped by their cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.cli.html.blocks import Section, badge, document, folded, more, table, within
from vita_ckpt.cli.html.markup import Child, Markup, joined, tag
from vita_ckpt.cli.render import counted
from vita_ckpt.core.report import SEVERITIES, Finding, Report, Selection, worst_first

_MOST_SECTIONS: Final = 100  # checkpoints that have a section of their own, the worst first
_ALL_FINDINGS: Final = 1_200_000  # bytes of the page that tables of findings may take together
_LEAST: Final = 2_000  # bytes for those of one cause, however many there are
_OPEN: Final = 3  # causes of a checkpoint that are unfolded
_JSON: Final = "--output json=FILE keeps every finding"


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render a table of the checkpoints, and a section for each with its findings by cause."""
    ordered = sorted(reports, key=_badness)
    shown = ordered[:_MOST_SECTIONS]
    budget = _ALL_FINDINGS // max(len(shown), 1)
    sections = [
        Section(f"checkpoint-{number}", wording.title(report), _checkpoint(report, rules, budget))
        for number, report in enumerate(shown, 1)
    ]
    if len(reports) > 1:
        sections.insert(0, Section("checkpoints", "Checkpoints", _overview(ordered)))
    findings = [finding for report in reports for finding in report.findings]
    lead = (
        tag("p", _verdict(findings), " ", wording.summary(reports)),
        (tag("p", sentence, class_="soft") for sentence in selection.sentences()),
    )
    one = wording.title(reports[0]) if len(reports) == 1 else counted(len(reports), "checkpoint")
    return document("validate", one, lead, sections)


def _badness(report: Report) -> tuple[int, ...]:
    return tuple(-report.count(severity) for severity in SEVERITIES)


def _verdict(findings: Sequence[Finding]) -> Markup:
    severities = {finding.severity for finding in findings}
    if not severities:
        return badge("sound", "good")
    worst = next(severity for severity in SEVERITIES if severity in severities)
    return badge(worst, worst)


def _counts(report: Report) -> str | None:
    return wording.counts(report.findings) if report.findings else None


def _overview(reports: Sequence[Report]) -> Child:
    rows = (
        (
            tag("a", wording.title(report), href=f"#checkpoint-{number}")
            if number <= _MOST_SECTIONS
            else wording.title(report),
            report.what if report.read else "could not be read",
            *(report.count(severity) for severity in SEVERITIES),
        )
        for number, report in enumerate(reports, 1)
    )
    headers = ("checkpoint", "kind", *(f"{severity}s" for severity in SEVERITIES))
    return table(
        "Checkpoints, the worst first",
        headers,
        rows,
        total=len(reports),
        kinds="n rrr",
        rest=_JSON,
    )


def _checkpoint(report: Report, rules: Mapping[str, Rule], nbytes: int) -> Iterator[Markup]:
    yield tag("p", f"{report.what} · ", _verdict(report.findings), " ", _counts(report))
    causes: dict[tuple[str, str], list[Finding]] = {}
    for finding in worst_first(report.findings):
        causes.setdefault((finding.rule, finding.hint), []).append(finding)
    each = max(nbytes // max(len(causes), 1) - _LEAST, _LEAST)
    blocks = (
        _cause(report, rules.get(rule), hint, found, each, open_=number < _OPEN)
        for number, ((rule, hint), found) in enumerate(causes.items())
    )
    shown = list(within(blocks, nbytes))
    yield from shown
    if len(shown) < len(causes):
        yield tag("p", more(len(causes) - len(shown), _JSON))


def _cause(
    report: Report,
    rule: Rule | None,
    hint: str,
    findings: Sequence[Finding],
    nbytes: int,
    *,
    open_: bool,
) -> Markup:
    worst = findings[0]
    title = rule.title if rule is not None else ""
    summary = joined(
        (
            badge(worst.severity, worst.severity),
            " ",
            tag("code", worst.rule),
            f" {title} " if title else " ",
            tag("span", f"× {len(findings):,}", class_="soft") if len(findings) > 1 else None,
        )
    )
    rows = (
        (_subject(report, finding), finding.message, wording.place(report, finding) or "–")
        for finding in findings
    )
    return folded(
        summary,
        tag("p", rule.why, class_="soft") if rule is not None else None,
        tag("p", tag("strong", "What to do: "), hint) if hint else None,
        table(
            f"{worst.rule}: {counted(len(findings), 'finding')}",
            ("subject", "what", "file"),
            rows,
            total=len(findings),
            kinds="ntn",
            nbytes=nbytes,
            rest=_JSON,
        ),
        open_=open_,
    )


def _subject(report: Report, finding: Finding) -> str:
    """Return the subject; a file as it is named within the checkpoint."""
    is_file = finding.subject and finding.subject == finding.file
    return wording.place(report, finding) if is_file else finding.subject or "–"
