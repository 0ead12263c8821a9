"""``markdown``: a job summary, or a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.core.report import Report, Selection, worst_first
from vita_ckpt.errors import printable

# A character reference is never markup, in a table cell neither.
_REFERENCES: Final = str.maketrans({c: f"&#{ord(c)};" for c in "&<>\"'\\`*_~[]()!|$@:#"})
# What GitHub makes a link of, even where it is spelt by references, and in <code> too: addresses,
# mentions, issues and commits. An element in between is no part of one, and shows nothing.
_LINKS: Final = re.compile(
    r"(?i)[@#]|:(?=/)|\bwww(?=\.)|\bGH(?=-[0-9])|\b(?=[0-9]*[a-f])[0-9a-f]{4}(?=[0-9a-f]{3,36}\b)"
)


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render a heading and a table for each checkpoint, in GitHub's dialect."""
    lines = [f"**{wording.summary(reports)}**", ""]
    for sentence in selection.sentences():
        lines += [_text(printable(sentence)), ""]
    for report in reports:
        lines += _checkpoint(report)
    return "\n".join(lines)


def _checkpoint(report: Report) -> Iterator[str]:
    yield f"### {_code(wording.title(report))}"
    yield ""
    yield f"{_paragraph(printable(report.what))} · {wording.counts(report.findings)}"
    yield ""
    if not report.findings:
        return
    yield "| severity | rule | file | what |"
    yield "| --- | --- | --- | --- |"
    for one in worst_first(report.findings):
        cells = (
            one.severity,
            _code(printable(one.rule)),
            _code(wording.place(report, one)),
            _text(wording.sentence(one)),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def _text(line: str) -> str:
    return _LINKS.sub("\\g<0>\n", line).translate(_REFERENCES).replace("\n", "<wbr>")


def _paragraph(line: str) -> str:
    """Return a text that starts a paragraph, whatever it starts with: no list, no code block."""
    text = _text(line)
    return text if text[:1].isalpha() or text[:1] in ("&", "") else f"&#{ord(text[0])};{text[1:]}"


def _code(line: str) -> str:
    # As HTML: between backticks a reference would be text.
    return f"<code>{_text(line)}</code>" if line else ""
