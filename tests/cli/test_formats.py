"""Reports in every format, read back by readers that know nothing of us, with hostile names."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import jsonschema
import junitparser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pydantic import BaseModel
from sarif_pydantic import Sarif

from vita_ckpt import __version__
from vita_ckpt.checks.rules import RULES, Rule, finding
from vita_ckpt.cli.formats import FORMATS, renderer
from vita_ckpt.core.report import Finding, Report
from vita_ckpt.errors import printable

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "report-v1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

BROKEN = Report(
    "ckpts/vita",
    "vita-checkpoint",
    (
        finding("more-embeddings-than-tokens", "model.embed_tokens.weight", "expected 8, got 9"),
        finding(
            "tower-path-absolute",
            "mm_vision_tower",
            "got /data/tower",
            hint="give a relative one",
            file=os.path.abspath("ckpts/vita/config.json"),
        ),
        finding(
            "missing-shard",
            "model-00002-of-00002.safetensors",
            "expected a file, got nothing",
            hint="download it again",
            file=os.path.abspath("ckpts/vita/model-00002-of-00002.safetensors"),
        ),
        finding("missing-tensor", "a", "expected [4], got nothing"),
        finding("missing-tensor", "b", "expected [2], got nothing"),
    ),
)
CLEAN = Report("/elsewhere/projector", "projector", ())
REPORTS = (BROKEN, CLEAN)

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07",
    "a\nb\r\n::error::x",
    "::set-output name=a::b",
    "##[error]x",
    "x ##vso[task.setvariable variable=a]b",
    "::stop-commands::x",
    "www.example.org http://example.org a@example.org @user #123 GH-1 o/r#1 o/r@" + "ab12" * 10,
    "%0A::warning::%25",
    "file.bin,line=1:2",
    "a | b | c",
    "`code` ``more`` \\` *bold* _it_ ~~no~~ $x$",
    "<script>alert(1)</script><b>&amp;",
    "[link](javascript:alert)![image](http://x)",
    "]]></failure><testcase/>",
    "\x00\x0b\x7f\x85\ufffe\uffff\ufeff",
    "\udcff\ud800",
    "\u202eright to left\u2028",
    "../../etc/passwd",
    "//host/share",
    "x" * 2000,
    "a b#c?d%20e",
    "日本語/é.safetensors",
    "",
    " ",
    "- ",
    "C:\\Windows",
)
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), max_size=30),
    st.text("`|*_<>&[]()\\%:,\n\r\x1b\x00\udcff\uffff#$!\"'", max_size=12),
)
FINDINGS = st.builds(
    Finding,
    rule=st.sampled_from([*RULES, "no-such-rule"]),
    severity=st.sampled_from(["error", "warning", "note"]),
    subject=NAMES,
    message=NAMES,
    hint=NAMES,
    file=st.one_of(NAMES, NAMES.map("/root/{}".format)),
)
HOSTILE_REPORTS = st.lists(
    st.builds(Report, path=NAMES, kind=NAMES, findings=st.lists(FINDINGS, max_size=4).map(tuple)),
    max_size=3,
)


# What a text node of GitHub's pages turns into a link, as its parser and its filters find it.
AUTOLINKS = re.compile(
    r"(?i)www\.|(https?|ftp)://|mailto:|xmpp:|[a-z0-9._+-]+@[a-z0-9]|@[a-z0-9]|#[0-9]|GH-[0-9]"
    r"|\b[0-9]*[a-f][0-9a-f]{39}\b"
)


def rendered(name: str, reports: Sequence[Report], rules: Mapping[str, Rule] = RULES) -> str:
    text = renderer(name)(reports, rules)
    assert text.endswith("\n")
    assert not {c for c in text if c != "\n" and printable(c) != c}
    text.encode()
    return text


def findings_of(reports: Sequence[Report]) -> list[Finding]:
    return [found for report in reports for found in report.findings]


def test_text_is_one_screen() -> None:
    assert rendered("text", REPORTS).splitlines() == [
        "ckpts/vita",
        "  vita-checkpoint · 3 errors, 1 warning, 1 note",
        "",
        "severity    rule                         file                              what",
        "error       missing-shard                model-00002-of-00002.safetensors  expected a "
        "file, got nothing",
        "error       missing-tensor                                                 a: expected "
        "[4], got nothing",
        "error       missing-tensor                                                 b: expected "
        "[2], got nothing",
        "warning     tower-path-absolute          config.json                       "
        "mm_vision_tower: got /data/tower",
        "note        more-embeddings-than-tokens                                    "
        "model.embed_tokens.weight: expected 8, got 9",
        "",
        "→ missing-shard: download it again",
        "→ tower-path-absolute: give a relative one",
        "",
        "/elsewhere/projector",
        "  projector · nothing found",
        "",
        "2 checkpoints: 3 errors, 1 warning, 1 note",
    ]
    assert rendered("text", [CLEAN]).splitlines()[-1] == "1 checkpoint: nothing found"


@given(HOSTILE_REPORTS)
def test_text_has_a_line_for_each_finding(reports: list[Report]) -> None:
    lines = rendered("text", reports).splitlines()
    rows = [line for line in lines if re.match(r"(error|warning|note) ", line)]
    assert len(rows) >= len(findings_of(reports))


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


def read_junit(text: str) -> list[junitparser.TestSuite]:
    """The suites, once it is sure that every number in the file is what the file holds."""
    parsed = junitparser.JUnitXml.fromstring(text.encode())
    said = (parsed.tests, parsed.failures, parsed.errors, parsed.skipped)
    suites = list(parsed)
    for suite in suites:
        numbers = (suite.tests, suite.failures, suite.errors, suite.skipped)
        suite.update_statistics()
        assert numbers == (suite.tests, suite.failures, suite.errors, suite.skipped)
    parsed.update_statistics()
    assert said == (parsed.tests, parsed.failures, parsed.errors, parsed.skipped)
    return suites


def test_junit_has_a_case_for_each_rule() -> None:
    broken, clean = read_junit(rendered("junit", REPORTS))
    assert (broken.name, clean.name) == ("ckpts/vita", "/elsewhere/projector")
    assert [(p.name, p.value) for p in broken.properties()] == [("kind", "vita-checkpoint")]
    (passed,) = clean
    assert (passed.name, passed.classname, passed.is_passed) == (
        "nothing found",
        "/elsewhere/projector",
        True,
    )
    shard, tensor, tower, tokens = broken
    assert [case.name for case in broken] == [
        "missing-shard",
        "missing-tensor",
        "tower-path-absolute",
        "more-embeddings-than-tokens",
    ]
    assert {case.classname for case in broken} == {"ckpts/vita"}
    assert (shard.is_failure, tensor.is_failure, tower.is_skipped, tokens.is_passed) == (True,) * 4
    assert shard.result[0].message == RULES["missing-shard"].title
    assert shard.result[0].text == (
        "model-00002-of-00002.safetensors: expected a file, got nothing (download it again)"
    )
    assert tensor.result[0].text == "a: expected [4], got nothing\nb: expected [2], got nothing"
    assert tower.result[0].text.endswith("got /data/tower (give a relative one)")
    assert tokens.system_out == "model.embed_tokens.weight: expected 8, got 9"


@given(HOSTILE_REPORTS)
def test_junit_is_read_whatever_the_names_are(reports: list[Report]) -> None:
    suites = read_junit(rendered("junit", reports))
    assert len(suites) == len(reports)
    for suite, report in zip(suites, reports, strict=True):
        rules = {found.rule for found in report.findings} or {"nothing found"}
        assert {case.name for case in suite} == rules
        failed = {found.rule for found in report.findings if found.severity == "error"}
        assert {case.name for case in suite if case.is_failure} == failed


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


def read_commands(text: str) -> Iterator[tuple[str, dict[str, str], str]]:
    """Workflow commands as GitHub's runner reads them."""

    def decoded(value: str, *escapes: str) -> str:
        for escape in (*escapes, "%0D", "%0A", "%25"):
            value = value.replace(escape, unquote(escape))
        return value

    for line in text.splitlines()[:-1]:
        assert line.startswith("::")
        head, _, data = line[2:].partition("::")
        command, _, properties = head.partition(" ")
        pairs = (pair.split("=", 1) for pair in properties.split(","))
        yield command, {k: decoded(v, "%3A", "%2C") for k, v in pairs}, decoded(data)


def test_github_annotates_files() -> None:
    text = rendered("github", [CLEAN, BROKEN])
    commands = list(read_commands(text))
    assert [command for command, _, _ in commands] == ["error"] * 3 + ["warning", "notice"]
    assert commands[0] == (
        "error",
        {"file": "ckpts/vita/model-00002-of-00002.safetensors", "title": "missing-shard"},
        "ckpts/vita, model-00002-of-00002.safetensors: expected a file, got nothing "
        "(download it again)",
    )
    assert commands[1][1] == {"title": "missing-tensor"}
    assert text.splitlines()[-1] == "2 checkpoints: 3 errors, 1 warning, 1 note"


@given(HOSTILE_REPORTS)
def test_github_runs_no_command_of_a_names(reports: list[Report]) -> None:
    commands = list(read_commands(rendered("github", reports)))
    assert len(commands) == len(findings_of(reports))
    for command, properties, _ in commands:
        assert command in ("error", "warning", "notice")
        assert set(properties) <= {"file", "title"}
        assert properties["title"] in {*RULES, "no-such-rule"}


class _Page(HTMLParser):
    """The text of a page's cells and headings, and every tag in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self._text: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "h3"):
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "h3") and self._text is not None:
            place = self.headings if tag == "h3" else self.rows[-1]
            place.append("".join(self._text))
            self._text = None


def read_markdown(text: str) -> _Page:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return _Page(parser.render(text))


@given(HOSTILE_REPORTS)
def test_markdown_shows_names_as_they_are(reports: list[Report]) -> None:
    page = read_markdown(rendered("markdown", reports))
    plain = {"p", "strong", "h3", "code", "table", "thead", "tbody", "tr", "th", "td", "wbr"}
    assert page.tags <= plain
    assert len(page.headings) == len(reports)
    rows = [row for row in page.rows if row]
    assert len(rows) == len(findings_of(reports))
    for severity, rule, _, what in rows:
        assert severity in ("error", "warning", "note")
        assert rule in {*RULES, "no-such-rule"}
        assert what == what.strip()


def test_markdown_is_a_table() -> None:
    hostile = " ".join(name for name in HOSTILE if name.isprintable() and len(name) < 100)
    report = Report("a|b", "k", (finding("config-type", "key", hostile, file="a|b/c*d*.json"),))
    page = read_markdown(rendered("markdown", [report]))
    assert page.headings == ["a|b"]
    ((severity, rule, file, what),) = (row for row in page.rows if row)
    assert (severity, rule, file) == ("error", "config-type", "c*d*.json")
    assert what.split() == f"key: {printable(hostile)}".split()


def test_the_same_reports_give_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys; from tests.cli.test_formats import *; "
        "sys.stdout.buffer.write(''.join(rendered(name, REPORTS) for name in FORMATS).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
    )
    assert done.stdout.decode() == "".join(rendered(name, REPORTS) for name in FORMATS)


@given(HOSTILE_REPORTS)
def test_markdown_makes_no_link_of_a_name(reports: list[Report]) -> None:
    for text in html.unescape(rendered("markdown", reports)).split("<wbr>"):
        assert not AUTOLINKS.search(text.replace("mailto:", "").replace("xmpp:", ""))


@given(HOSTILE_REPORTS)
def test_no_format_starts_a_command_of_azure_or_github(reports: list[Report]) -> None:
    for name in FORMATS:
        text = rendered(name, reports)
        assert "##[" not in text
        assert "##vso[" not in text.lower()


def test_credentials_are_in_no_report() -> None:
    report = Report(
        "https://me:secret@host/hf_abcdefghijklmnopqrstuv",
        "https://host/x?X-Amz-Signature=secret",
        (
            finding(
                "missing-shard",
                "ssh://:secret@host/a",
                "GET /a?b=c&token=secret",
                hint="https://secret@host hf_abcdefghijklmnopqrstuvsecret",
                file="https://me:secret@host/a?secret",
            ),
        ),
    )
    for name in FORMATS:
        text = rendered(name, [report])
        assert "secret" not in text
        assert "hf_abc" not in text
