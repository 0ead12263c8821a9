"""Findings as a page: grouped by cause, bounded, readable without colour."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from tests.cli.pages import read_page
from tests.cli.reports import BROKEN, CLEAN, HOSTILE, HOSTILE_REPORTS, REPORTS, rendered
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.core.report import Report


def test_findings_are_grouped_by_their_cause() -> None:
    page = rendered("html", REPORTS)
    reader = read_page(page)
    for found in BROKEN.findings:
        assert found.message in reader.text
        assert RULES[found.rule].title in reader.text
        assert RULES[found.rule].why in reader.text
        assert found.hint in reader.text
    # Two missing tensors are one cause; the worst come first.
    causes = page.split("<summary>")[1:]
    assert [cause.partition("<code>")[2].partition("</code>")[0] for cause in causes] == [
        "missing-shard",
        "missing-tensor",
        "tower-path-absolute",
        "more-embeddings-than-tokens",
    ]
    assert "× 2" in causes[1]
    # Severities are words, not only colours.
    for word in ("error", "warning", "note", "sound"):
        assert f">{word}</span>" in page


def test_the_worst_checkpoint_comes_first() -> None:
    page = rendered("html", [CLEAN, BROKEN])
    assert page.index('id="checkpoint-1"') < page.index(">missing-shard<")
    assert page.index(">missing-shard<") < page.index('id="checkpoint-2"')


@settings(max_examples=30)
@given(HOSTILE_REPORTS)
def test_no_name_is_markup(reports: list[Report]) -> None:
    read_page(rendered("html", reports))


def test_ten_thousand_findings_stay_a_small_page() -> None:
    many = tuple(
        finding("missing-tensor", f"{HOSTILE[n % len(HOSTILE)]}{n}", HOSTILE[-n % len(HOSTILE)])
        for n in range(10_000)
    )
    one = rendered("html", [Report("ckpt", "vita-checkpoint", many)])
    assert len(one.encode()) < 2_000_000
    read_page(one)
    assert "× 10,000" in one
    assert "more, left out here: --output json=FILE keeps every finding" in one
    # Every finding a cause of its own, and many checkpoints.
    causes = tuple(replace(found, hint=f"h{n}") for n, found in enumerate(many))
    several = rendered("html", [Report(f"c{n}", "vita-checkpoint", causes) for n in range(3)])
    assert len(several.encode()) < 2_000_000
    read_page(several)
    sound = rendered("html", [Report(f"c{n}" * 99, "vita-checkpoint", ()) for n in range(1_000)])
    assert len(sound.encode()) < 2_000_000
    read_page(sound)
