"""Reports as SARIF, read back by a model that knows nothing of us."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from pydantic import BaseModel
from sarif_pydantic import Sarif

from tests.cli.reports import HOSTILE_REPORTS, REPORTS, findings_of, rendered
from vita_ckpt import __version__
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.core.report import Finding, Report

# Of the standard, though the model has no field for them.
KNOWN_EXTRAS = {"columnKind", "toolConfigurationNotifications", "toolExecutionNotifications"}


def assert_known_fields(value: object) -> None:
    """The model keeps fields that it does not know as extras: there must be none."""
    if isinstance(value, BaseModel):
        assert set(value.model_extra or {}) <= KNOWN_EXTRAS, value.model_extra
        for name in type(value).model_fields:
            assert_known_fields(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            assert_known_fields(item)


def test_sarif_places_each_result_at_its_file_and_rule() -> None:
    text = rendered("sarif", REPORTS)
    sarif = Sarif.model_validate_json(text)
    assert_known_fields(sarif)
    assert sarif.version == "2.1.0"
    (run,) = sarif.runs
    driver = run.tool.driver
    assert (driver.name, driver.version) == ("vita-ckpt", __version__)
    assert [rule.id for rule in driver.rules] == list(RULES)
    for rule in driver.rules:
        assert rule.short_description.text == RULES[rule.id].title
        assert rule.help.text == RULES[rule.id].why
        assert rule.default_configuration.level == RULES[rule.id].severity
    assert [
        (
            one.rule_id,
            driver.rules[one.rule_index].id,
            one.level.value,
            one.locations[0].physical_location.artifact_location.uri,
            one.locations[0].logical_locations[0].fully_qualified_name,
        )
        for one in run.results[:2]
    ] == [
        (
            "missing-shard",
            "missing-shard",
            "error",
            "ckpts/vita/model-00002-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ),
        ("missing-tensor", "missing-tensor", "error", "ckpts/vita", "a"),
    ]


def test_sarif_leads_to_the_page_of_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    def rules(docs: str) -> list[dict[str, object]]:
        monkeypatch.setenv("VITA_CKPT_DOCS", docs)
        run = json.loads(rendered("sarif", REPORTS))["runs"][0]
        found: list[dict[str, object]] = run["tool"]["driver"]["rules"]
        return found

    page = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
    for rule in rules("https://example.org/o/r/blob/main/docs/"):
        name = rule["id"]
        assert rule["helpUri"] == f"https://example.org/o/r/blob/main/docs/rules.md#{name}"
        assert f'<a id="{name}"></a>' in page
    for docs in ("", "javascript:alert(1)", "/etc"):
        assert not any("helpUri" in rule for rule in rules(docs))


def test_github_knows_an_alert_again() -> None:
    """Its own hash would be of the text of a line, which a weight file does not have."""
    results = json.loads(rendered("sarif", REPORTS))["runs"][0]["results"]
    hashes = [one["partialFingerprints"]["primaryLocationLineHash"] for one in results]
    assert all(re.fullmatch(r"[0-9a-f]{16}:1", one) for one in hashes)
    assert len(set(hashes)) == len(results)


def test_sarif_knows_a_finding_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prints(*findings: Finding) -> list[str]:
        report = Report("ckpts/vita", "vita-checkpoint", findings)
        run = json.loads(rendered("sarif", [report]))["runs"][0]
        return [result["partialFingerprints"]["finding/v1"] for result in run["results"]]

    def found(subject: str, message: str) -> Finding:
        path = os.path.abspath("ckpts/vita/config.json")
        return finding("config-type", subject, message, file=path)

    before = prints(found("a", "got 1"), found("b", "got 1"))
    assert len(set(before)) == 2
    monkeypatch.chdir(tmp_path)  # another machine, another working directory
    assert prints(found("b", "got 2"), found("a", "got 3")) == before[::-1]


@given(HOSTILE_REPORTS)
def test_sarif_is_read_whatever_the_names_are(reports: list[Report]) -> None:
    few = {rule: RULES[rule] for rule in list(RULES)[:3]}
    sarif = Sarif.model_validate_json(rendered("sarif", reports, few))
    assert_known_fields(sarif)
    results = sarif.runs[0].results
    assert len(results) == len(findings_of(reports))
    for result in results:
        uri = result.locations[0].physical_location.artifact_location.uri
        assert re.fullmatch(r"(file:///)?([A-Za-z0-9._~/-]|%[0-9A-F]{2})+", uri)
        assert "](" not in result.message.text


def test_a_uri_leads_back_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b#c?d%20e.bin", "日本語.safetensors", "x:y.bin"):
        for path in (tmp_path / name, tmp_path.parent / name):
            report = Report("c", "k", (finding("missing-shard", "s", "m", file=str(path)),))
            (result,) = json.loads(rendered("sarif", [report]))["runs"][0]["results"]
            uri = urlsplit(result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"])
            assert (uri.scheme, uri.netloc, uri.query, uri.fragment) == (
                "" if path.parent == tmp_path else "file",
                "",
                "",
                "",
            )
            assert os.path.join(tmp_path, unquote(uri.path)) == str(path)
