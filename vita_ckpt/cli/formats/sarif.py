"""``sarif``: SARIF 2.1.0, for code scanning."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from vita_ckpt import __version__
from vita_ckpt.checks.rules import Rule
from vita_ckpt.cli.formats import wording
from vita_ckpt.cli.render import path
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.report import Finding, Report, Selection, worst_first
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.errors import printable, redacted

# Names the address of the project's documentation, below which the page of the rules lies.
_DOCS: Final = "VITA_CKPT_DOCS"
_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"


def render(
    reports: Sequence[Report], rules: Mapping[str, Rule], selection: Selection = Selection()
) -> str:
    """Render one run with every rule of the table. Severities are the levels of the same names."""
    order = {rule: index for index, rule in enumerate(rules)}
    driver = {
        "name": "vita-ckpt",
        "version": __version__,
        "rules": [_rule(rule) for rule in rules.values()],
    }
    results = [
        _result(report, finding, order)
        for report in reports
        for finding in worst_first(report.findings)
    ]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(reports, selection)],
        "results": results,
    }
    return json_text({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}) + "\n"


def _invocation(reports: Sequence[Report], selection: Selection) -> dict[str, Any]:
    """Say whether everything could be read, and which rules counted."""
    return {
        "executionSuccessful": all(report.read for report in reports),
        "toolConfigurationNotifications": [
            {"level": "note", "message": {"text": _no_links(printable(sentence))}}
            for sentence in selection.sentences()
        ],
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": _no_links(f"{wording.title(report)}: could not be read")},
            }
            for report in reports
            if not report.read
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    docs = os.environ.get(_DOCS, "").rstrip("/")
    page = f"{docs}/rules.md#{rule.id}" if docs.startswith("https://") else None
    return {
        "id": rule.id,
        **({"helpUri": page} if page else {}),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {
            "text": rule.why,
            **({"markdown": f"{rule.why} [Rules]({page})"} if page else {}),
        },
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(report: Report, finding: Finding, order: Mapping[str, int]) -> dict[str, Any]:
    uri = _uri(finding.file or report.path)
    identity = "\0".join((finding.rule, _uri(report.path), uri, finding.subject))
    fingerprint = hashlib.sha256(_unicode(identity)).hexdigest()
    location: dict[str, Any] = {
        # Code scanning shows only what has a line; a tensor has none.
        "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}},
    }
    if finding.subject:
        location["logicalLocations"] = [{"fullyQualifiedName": printable(finding.subject)}]
    return {
        "ruleId": printable(finding.rule),
        **({"ruleIndex": order[finding.rule]} if finding.rule in order else {}),
        "level": finding.severity,
        "message": {"text": _no_links(wording.sentence(finding))},
        "locations": [location],
        # What was expected and got may change: the same thing is still wrong.
        "partialFingerprints": {
            "finding/v1": fingerprint[:32],
            # GitHub knows an alert again by this one alone, and would make it of the line's text.
            "primaryLocationLineHash": f"{fingerprint[:16]}:1",
        },
    }


def _uri(name: str) -> str:
    """Return a relative reference if ``name`` is below the working directory, else a full URI."""
    shown = redacted(path(name or os.curdir))
    if is_remote(shown):
        return quote(_unicode(shown), safe="/:@")
    encoded = quote(_unicode(shown))
    return encoded if not os.path.isabs(shown) else f"file://{encoded}"


def _unicode(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _no_links(text: str) -> str:
    """Escape brackets, because SARIF messages render ``[text](target)`` as a link."""
    return text.replace("](", "] (")
