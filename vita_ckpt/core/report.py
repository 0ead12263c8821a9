"""Represent findings about a checkpoint, and the report that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, Literal

from vita_ckpt.core.anatomy.parts import LABELS, part_of
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed

# The severity of a finding; only an error makes a checkpoint unsound.
Severity = Literal["error", "warning", "note"]

# So many tensors of a part are named one by one where the same is wrong with them.
MOST_ALIKE: Final = 12
_OF_TENSORS: Final = (
    *("missing-tensor", "unexpected-tensor", "shape-mismatch", "integer-tensor"),
    *("empty-tensor", "value-nan", "value-inf", "value-all-zero"),
)

SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem found in a checkpoint.

    ``rule`` is a stable id, ``subject`` a tensor, config key or file. ``message`` is one line with
    what was expected and what was found. ``file`` is the path of the affected file, empty where the
    finding is about the checkpoint as a whole.
    """

    rule: str
    severity: Severity
    subject: str
    message: str
    hint: str = ""
    file: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON values; invalid Unicode is escaped as ``\\udcff``."""
        return {key: _unicode(value) for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, repr=False)
class Report(Displayed):
    """What was found at ``path``, which was taken for a ``kind`` such as ``vita-checkpoint``.

    ``read`` is false for a path that could not be read at all: the finding says why. ``family``
    names the family of a model or a run that is of another one than VITA.
    """

    path: str
    kind: str
    findings: tuple[Finding, ...]
    read: bool = True
    family: str | None = None

    @property
    def what(self) -> str:
        """The kind, with the family where the kind does not say it."""
        is_said = self.family is None or self.kind.endswith("-checkpoint")
        return self.kind if is_said else f"{self.kind} of {self.family}"

    def count(self, severity: Severity) -> int:
        """Count the findings of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON: one of the ``reports`` of ``schemas/report-v1.json``."""
        return {
            "path": _unicode(self.path),
            "kind": _unicode(self.kind),
            "family": None if self.family is None else _unicode(self.family),
            "read": self.read,
            **outcome(self.findings),
            "findings": [finding.to_dict() for finding in worst_first(self.findings)],
        }

    def condensed(self) -> Report:
        """Return the report with its findings as :func:`condensed` returns them, worst first."""
        return replace(self, findings=condensed(worst_first(self.findings)))

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield path and kind, the number of findings, and the worst of them."""
        yield "path", self.path
        yield "kind", self.kind
        yield from finding_rows(self.findings)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rules counted for the reports of a run, and which configuration file said so.

    ``file`` is empty where no file was obeyed. ``disregarded`` names configuration files that came
    with what was validated, and were therefore not obeyed.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    strict: bool = False
    file: str = ""
    disregarded: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as JSON: the ``policy`` of ``schemas/report-v1.json``."""
        return {
            "file": _unicode(self.file),
            "select": [_unicode(rule) for rule in self.select],
            "ignore": [_unicode(rule) for rule in self.ignore],
            "strict": self.strict,
            "disregarded": [_unicode(path) for path in self.disregarded],
        }

    def fails(self, reports: Iterable[Report]) -> bool:
        """Return whether there is an error, or with ``strict`` a warning."""
        return any(
            report.count("error") or (self.strict and report.count("warning")) for report in reports
        )

    def sentences(self) -> list[str]:
        """Say in one sentence each what was obeyed, left out and disregarded."""
        said = []
        choice = [f"selects {' '.join(self.select)}"] if self.select else []
        choice += [f"ignores {' '.join(self.ignore)}"] if self.ignore else []
        choice += ["warnings fail too"] if self.strict else []
        if self.file:
            said.append(f"configuration {self.file}: {', '.join(choice) or 'every rule counts'}")
        elif choice:
            said.append(f"options: {', '.join(choice)}")
        said += [
            f"configuration {path} is not obeyed: it lies in what is validated"
            for path in self.disregarded
        ]
        return said


def outcome(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return ``ok`` and the number of findings of each severity, as JSON values."""
    severities = [finding.severity for finding in findings]
    numbers = {f"{severity}s": severities.count(severity) for severity in SEVERITIES}
    return {"ok": "error" not in severities, **numbers}


def finding_rows(findings: Iterable[Finding]) -> Iterator[tuple[str, object]]:
    """Yield rows for a screen: the number of findings by severity, then each, worst first."""
    ordered = worst_first(findings)
    yield from ((key, count) for key, count in outcome(ordered).items() if count or key == "ok")
    for finding in ordered:
        yield finding.severity, f"{finding.rule}: {finding.subject[:40]}: {finding.message}"


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings: errors, then warnings, then notes."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def condensed(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings with one for each part of which more than twelve tensors share a rule.

    It stands where the first of them stood, and says how many there are.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if finding.rule in _OF_TENSORS:
            groups.setdefault((finding.rule, part_of(finding.subject)), []).append(finding)
    many = {key: group for key, group in groups.items() if len(group) > MOST_ALIKE}
    said: set[tuple[str, str]] = set()
    kept: list[Finding] = []
    for finding in findings:
        key = (finding.rule, part_of(finding.subject)) if many else ("", "")
        if finding.rule not in _OF_TENSORS or key not in many:
            kept.append(finding)
        elif key not in said:
            said.add(key)
            message = f"{len(many[key])} tensors of the {LABELS[key[1]]}; the first: "
            kept.append(replace(finding, message=message + finding.message))
    return tuple(kept)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Return whether one of them is an error."""
    return any(finding.severity == "error" for finding in findings)


def _unicode(text: str) -> str:
    # Python accepts a lone surrogate in JSON; most other readers reject it.
    return text.encode("utf-8", "backslashreplace").decode()
