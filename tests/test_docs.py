"""The documentation says what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click

from docs import generate
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli.main import cli
from vita_ckpt.core.error_codes import ERRORS
from vita_ckpt.model import tokenizer_process
from vita_ckpt.storage.hub import errors as hub_errors
from vita_ckpt.storage.system import os_errors

ROOT = Path(__file__).parent.parent


def codes_in(path: Path) -> set[str]:
    """Every code that a module passes as the first argument of an error."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        name = ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", "")
        if name.endswith("Error") and isinstance(node, ast.Call) and node.args:
            constants = (n for n in ast.walk(node.args[0]) if isinstance(n, ast.Constant))
            texts = (str(constant.value) for constant in constants)
            found |= {text for text in texts if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", text)}
    return found


def test_every_error_code_is_explained() -> None:
    used = (
        {code for code, _ in (*os_errors.CODES.values(), os_errors.OTHERWISE)}
        | hub_errors.MEANINGS.keys()
        | set(tokenizer_process.CODES)
    )
    for path in (ROOT / "vita_ckpt").rglob("*.py"):
        used |= codes_in(path)
    for path in (ROOT / "vita_ckpt" / "checks" / "explain").glob("*.py"):
        stops = re.findall(r'tracer\.stop\(\s*"([a-z0-9-]+)"', path.read_text())
        used |= set(stops) - RULES.keys()
    assert len(used) > 70
    assert ERRORS.keys() == used


def test_the_page_of_errors_is_the_table() -> None:
    assert generate.ERRORS_PAGE.read_text() == generate.errors_page()


def test_the_command_reference_is_the_commands_help() -> None:
    assert generate.REFERENCE.read_text() == generate.reference()


def test_the_design_page_lists_every_module() -> None:
    assert generate.DESIGN.read_text() == generate.design()


def test_the_page_of_rules_is_the_table() -> None:
    assert generate.RULES_PAGE.read_text() == generate.rules_page()


def test_every_code_of_a_broken_file_is_a_rule() -> None:
    """What reading raises, validate says: it needs a severity and an explanation."""
    codes: set[str] = set()
    for name in (
        "formats/json_file",
        "formats/safetensors",
        "formats/torch_reader",
        "formats/torch_zip",
        "formats/unpickler",
        "reading/checkpoint",
        "reading/index",
        "reading/shards",
        "reading/survey",
        "stores/local",
    ):
        codes |= codes_in(ROOT / "vita_ckpt" / "storage" / f"{name}.py")
    raised_elsewhere = {
        "not-found",
        "key-not-found",
        "not-a-checkpoint",
        "not-a-weight-file",
        "input-changed",
    }
    assert codes - raised_elsewhere <= RULES.keys()


def test_every_finding_has_a_rule() -> None:
    used: set[str] = set()
    for path in (ROOT / "vita_ckpt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if name in ("finding", "Finding") and isinstance(node, ast.Call) and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    used.add(str(first.value))
    assert len(used) > 30
    assert used <= RULES.keys()


def test_the_demo_prints_what_is_shown_of_it() -> None:
    printed = generate.demo()
    assert generate.steady(generate.README.read_text()) == generate.steady(generate.readme(printed))
    shown = generate.steady(generate.DEMO.read_text())
    assert shown == generate.steady(generate.demo_page(printed))


def test_the_readme_is_short() -> None:
    """At most 150 lines, no sentence over 25 words, every command in its table."""
    text = generate.README.read_text()
    assert len(text.splitlines()) <= 150
    prose = re.sub(r"```.*?```|^    .*?$|^\|.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"\]\([^)]*\)|<!--.*?-->", "", prose)
    sentences = re.split(r"[.?:](?=\s)|\n\n|\n- ", prose)
    assert [one for one in sentences if len(one.split()) > 25] == []
    for name in cli.list_commands(click.Context(cli)):
        assert f"| `{name}` |" in text


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
    ):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), (page, link)


def test_the_python_of_the_docs_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    golden = ROOT / "fixtures" / "golden" / "A7"
    for written, real in (
        ("path/to/checkpoint", golden / "base"),
        ("path/to/run", golden / "mm_projector_fp32"),
        ("path/to/merged", tmp_path / "merged"),
    ):
        code = code.replace(written, str(real))
    exec(compile(code, "python.md", "exec"), {})
    assert (tmp_path / "merged" / "config.json").exists()
