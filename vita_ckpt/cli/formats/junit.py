"""``junit``: a suite for each checkpoint, a test case for each rule that found something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.etree import ElementTree as ET

from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.core.report import Finding, Report, Selection, worst_first
from vita_ckpt.errors import printable

# What printable leaves and XML has not.
_NOT_XML: Final = str.maketrans({"\ufffe": "\\ufffe", "\uffff": "\\uffff"})


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render errors as failures and warnings as skipped tests, whose text CI pages show too.

    Warnings that fail are failures. Notes pass, with their text as output; a checkpoint without
    findings is one test that passes.
    """
    failing = ("error", "warning") if selection.strict else ("error",)
    suites = [_suite(report, rules, failing) for report in reports]
    root = ET.Element("testsuites", {"name": "vita-ckpt", **_totals(suites)})
    if said := selection.sentences():
        properties = ET.SubElement(root, "properties")
        for sentence in said:
            attributes = {"name": "policy", "value": _xml(printable(sentence))}
            ET.SubElement(properties, "property", attributes)
    root.extend(suites)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(report: Report, rules: Mapping[str, Rule], failing: Sequence[str]) -> ET.Element:
    name = _xml(wording.title(report))
    groups: dict[str, list[Finding]] = {}
    for finding in worst_first(report.findings):
        groups.setdefault(finding.rule, []).append(finding)
    cases = [_case(report, rules.get(rule), found, failing) for rule, found in groups.items()]
    suite = ET.Element("testsuite", {"name": name})
    properties = ET.SubElement(suite, "properties")
    ET.SubElement(properties, "property", {"name": "kind", "value": _xml(printable(report.kind))})
    suite.extend(cases or [ET.Element("testcase", {"name": "nothing found"})])
    for case in suite.iter("testcase"):
        case.set("classname", name)
    suite.attrib.update(_totals([suite]))
    return suite


def _case(
    report: Report, rule: Rule | None, findings: Sequence[Finding], failing: Sequence[str]
) -> ET.Element:
    worst = findings[0]
    name = _xml(printable(worst.rule))
    case = ET.Element("testcase", {"name": name})
    message = rule.title if rule is not None else wording.counts(findings)
    if not report.read:
        body = ET.SubElement(case, "error", {"type": name, "message": "it could not be read"})
    elif worst.severity in failing:
        body = ET.SubElement(case, "failure", {"type": name, "message": message})
    elif worst.severity == "warning":
        body = ET.SubElement(case, "skipped", {"type": name, "message": message})
    else:
        body = ET.SubElement(case, "system-out")
    body.text = "\n".join(_xml(_line(report, finding)) for finding in findings)
    return case


def _line(report: Report, finding: Finding) -> str:
    parts = (wording.place(report, finding), wording.sentence(finding))
    return ": ".join(part for part in parts if part)


def _totals(elements: Sequence[ET.Element]) -> dict[str, str]:
    """Return the attributes that count the test cases below ``elements``."""

    def number(path: str) -> str:
        return str(sum(len(element.findall(path)) for element in elements))

    return {
        "tests": number(".//testcase"),
        "failures": number(".//failure"),
        "errors": number(".//error"),
        "skipped": number(".//skipped"),
    }


def _xml(line: str) -> str:
    return line.translate(_NOT_XML)
