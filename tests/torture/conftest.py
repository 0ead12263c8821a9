"""Fixtures of the torture: a runner for each worker, and what each sweep has counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.torture.memory import in_memory
from tests.torture.runner import Runner
from tests.torture.scenarios import Prepared, Scenario, prepare

_COUNTED = "torture"


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with in_memory(request, tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with Runner(tmp_path_factory.mktemp("runner")) as runner:
        yield runner


@pytest.fixture(scope="session")
def known() -> dict[str, Prepared]:
    """Scenarios that this worker has prepared: they hold their files in memory."""
    return {}


@pytest.fixture
def prepared(
    scenario: Scenario, runner: Runner, tmp_path: Path, known: dict[str, Prepared]
) -> Prepared:
    if scenario.name not in known:
        known[scenario.name] = prepare(scenario, runner, tmp_path)
    return known[scenario.name]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """What a sweep counts; it is printed at the end."""
    counts: Counter[str] = Counter()
    yield counts
    record_property(_COUNTED, ", ".join(f"{count} {what}" for what, count in counts.items()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = {
        f"{report.nodeid.partition('::')[2]}: {value}"
        for report in terminalreporter.stats.get("", [])  # of what comes after a test
        for name, value in report.user_properties
        if name == _COUNTED
    }
    if lines and terminalreporter.config.option.markexpr == "torture":
        terminalreporter.section("runs and states checked")
        for line in sorted(lines):
            terminalreporter.write_line(line)
