"""The page for programs says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from tests.conftest import GOLDEN, Cli, Result
from vita_ckpt import errors
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli import main
from vita_ckpt.core.error_codes import ERRORS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "automation.md").read_text()
SCHEMAS = ROOT / "vita_ckpt" / "schemas"


def table(title: str) -> list[list[str]]:
    """Return the cells of the table of a section, without its head."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def commands() -> dict[str, click.Command]:
    context = click.Context(main.cli)
    found = {n: main.cli.get_command(context, n) for n in main.cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options(command: click.Command) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_the_exit_codes_are_those_of_the_code() -> None:
    said = {int(code) for code, *_ in table("Exit codes")}
    of_errors = {getattr(errors, name).exit_code for name in dir(errors) if name.endswith("Error")}
    source = Path(main.__file__).read_text()
    literal = {int(code) for code in re.findall(r"\breturn (\d+)$", source, re.M)}
    assert said == of_errors | literal | {0, 1, main._INTERRUPTED}
    assert main.cli.help is not None
    for code in said - {130}:
        assert re.search(rf"\b{code} ", main.cli.help)


def test_every_command_with_json_has_its_schema() -> None:
    *rows, (changing, _) = table("Reports")
    said = {n: link for names, link in rows for n in re.findall("`([a-z-]+)`", names)}
    paths = {re.findall(r"\((.*?)\)", link)[0] for _, link in table("Reports")}
    assert {Path(path).name for path in paths} == {p.name for p in SCHEMAS.glob("*.json")}
    assert all((ROOT / "docs" / path).exists() for path in paths)
    assert changing == "every command that changes or extracts"
    with_json = {name for name, command in commands().items() if "--json" in options(command)}
    surgeries = {n for n in with_json if "--out" in options(commands()[n])}
    assert with_json - surgeries - {"rules"} == said.keys()


def test_every_command_is_in_the_table_of_what_may_be_run_again() -> None:
    rows = table("What is safe to run again")
    named = [name for row in rows for name in re.findall(r"`([a-z][a-z-]+)`", row[0])]
    assert sorted(named) == sorted(commands())
    in_place = {n for n, command in commands().items() if "--in-place" in options(command)}
    (row,) = (row for row in rows if "with `--out`" in row[0])
    assert set(re.findall(r"`([a-z][a-z-]+)`", row[0])) == in_place


def test_the_codes_on_the_page_are_codes() -> None:
    for code in ("output-exists", "lora-already-merged", "hub-failed"):
        assert f"`{code}`" in PAGE
        assert code in ERRORS.keys() | RULES.keys()


def test_the_variables_are_read() -> None:
    source = "".join(path.read_text() for path in (ROOT / "vita_ckpt").rglob("*.py"))
    for names, _ in table("Settings"):
        for name in re.findall(r"`([A-Z_]+)`", names):
            assert name.startswith("HF_") or f'"{name}"' in source, name


def reported(result: Result, schema: str) -> Any:
    """Return the report that a command printed, which fits its schema."""
    assert result.code == 0
    report = json.loads(result.out)
    jsonschema.validate(report, json.loads((SCHEMAS / f"{schema}.json").read_text()))
    return report


def test_what_is_said_of_running_again_holds(cli: Cli, tmp_path: Path) -> None:
    base, out = GOLDEN / "A7" / "base", tmp_path / "out"
    run = ("set", base, "image_aspect_ratio=pad", "--out", out, "--json")
    first = cli(*run)
    assert first.code == 0
    jsonschema.validate(
        json.loads(first.out), json.loads((SCHEMAS / "summary-v1.json").read_text())
    )
    again = cli(*run)
    assert (again.code, "error: output-exists: " in again.err) == (2, True)
    in_place = ("set", out, "image_aspect_ratio=pad", "--in-place")
    assert "nothing to change" in cli(*in_place).out
    assert cli("set", out, "image_aspect_ratio=square", "--in-place").code == 0
    assert reported(cli("undo", out, "--json"), "put-back-v1")["restored"]["operation"] == "set"
    assert cli("undo", out).code == 3
    assert reported(cli("recover", out, "--json"), "put-back-v1")["restored"] is None
    assert reported(cli("clean", out, "--json"), "clean-v1")["found"] == []
    rules = json.loads(cli("rules", "--json").out)
    assert {frozenset(one) for one in rules} == {frozenset(("id", "severity", "title", "why"))}


@pytest.mark.parametrize("name", [path.name for path in SCHEMAS.glob("*.json")])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads((SCHEMAS / name).read_text()))
