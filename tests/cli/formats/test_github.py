"""Reports as workflow commands, read as GitHub's runner reads them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from hypothesis import given

from tests.cli.reports import BROKEN, CLEAN, HOSTILE_REPORTS, findings_of, rendered
from vita_ckpt.checks.rules import RULES
from vita_ckpt.core.report import Report


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
