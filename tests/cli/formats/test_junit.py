"""Reports as JUnit, read back by a reader that knows nothing of us."""

from __future__ import annotations

import junitparser
from hypothesis import given

from tests.cli.reports import HOSTILE_REPORTS, REPORTS, rendered
from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.report import Report


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
