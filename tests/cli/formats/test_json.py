"""Reports as JSON, against their schema."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given

from tests.cli.reports import HOSTILE_REPORTS, REPORTS, SCHEMA, VALIDATOR, rendered
from vita_ckpt import __version__
from vita_ckpt.core.report import Report


def test_json_says_everything() -> None:
    report = json.loads(rendered("json", REPORTS))
    VALIDATOR.validate(report)
    assert {key: report[key] for key in report if key != "reports"} == {
        "format": "vita-ckpt-report",
        "version": 1,
        "tool": {"name": "vita-ckpt", "version": __version__},
        "ok": False,
        "errors": 3,
        "warnings": 1,
        "notes": 1,
        "policy": {"file": "", "select": [], "ignore": [], "strict": False, "disregarded": []},
    }
    broken, clean = report["reports"]
    assert clean == {
        "path": "/elsewhere/projector",
        "kind": "projector",
        "family": None,
        "read": True,
        "ok": True,
        "errors": 0,
        "warnings": 0,
        "notes": 0,
        "findings": [],
    }
    assert [found["rule"] for found in broken["findings"]] == [
        "missing-shard",
        "missing-tensor",
        "missing-tensor",
        "tower-path-absolute",
        "more-embeddings-than-tokens",
    ]
    assert broken["findings"][0] == {
        "rule": "missing-shard",
        "severity": "error",
        "subject": "model-00002-of-00002.safetensors",
        "message": "expected a file, got nothing",
        "hint": "download it again",
        "file": os.path.abspath("ckpts/vita/model-00002-of-00002.safetensors"),
    }


@given(HOSTILE_REPORTS)
def test_json_keeps_its_schema_and_every_name(reports: list[Report]) -> None:
    value = json.loads(rendered("json", reports))
    VALIDATOR.validate(value)
    for report, said in zip(reports, value["reports"], strict=True):
        for text in (said["path"], *(f["subject"] for f in said["findings"])):
            text.encode()
        if report.path.isprintable():
            assert said["path"] == report.path
        assert len(said["findings"]) == len(report.findings)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("reports", 0, "findings", 0, "severity"), "fatal"),
        (("reports", 0, "findings", 0, "rule"), "Not Kebab"),
        (("reports", 0, "findings", 0, "line"), 1),
        (("reports", 0, "errors"), -1),
        (("version",), 2),
        (("ok",), "yes"),
    ],
)
def test_a_mutated_report_fails_the_schema(path: tuple[str | int, ...], value: Any) -> None:
    report: Any = json.loads(rendered("json", REPORTS))
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not VALIDATOR.is_valid(report)


def test_every_object_of_the_schema_is_closed() -> None:
    def closed(schema: Any) -> int:
        children = schema.values() if isinstance(schema, dict) else schema
        below = sum(closed(child) for child in children if isinstance(child, dict | list))
        if not (isinstance(schema, dict) and "properties" in schema):
            return below
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
        return below + 1

    VALIDATOR.check_schema(SCHEMA)
    assert closed(SCHEMA) == 5
