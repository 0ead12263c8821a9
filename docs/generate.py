"""Writes what can be generated: the command reference and the demo's output in the README.

Usage: python -m docs.generate. A test compares the files with what this would write.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vita_ckpt
from docs.api import EXAMPLES, NOT_RUN
from vita_ckpt.checks.rules import GROUPS
from vita_ckpt.cli.main import cli
from vita_ckpt.core.error_codes import SECTIONS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "cli.md"
RULES_PAGE = ROOT / "docs" / "rules.md"
API_PAGE = ROOT / "docs" / "api.md"
SCHEMAS_PAGE = ROOT / "docs" / "schemas.md"
SCHEMAS = ROOT / "vita_ckpt" / "schemas"
ERRORS_PAGE = ROOT / "docs" / "errors.md"
README = ROOT / "README.md"
DEMO = ROOT / "docs" / "demo.md"
DESIGN = ROOT / "docs" / "design.md"
HOUSE_BEGIN, HOUSE_END = "<!-- house: written by docs/generate.py -->\n", "<!-- house ends -->\n"
# The folders of the package, in the order in which they are read.
FOLDERS = (
    "",
    "cli",
    "cli/commands",
    "cli/formats",
    "cli/html",
    "api",
    "api/plans",
    "model",
    "model/audio",
    "model/towers",
    "model/verification",
    "surgery",
    "surgery/vision",
    "checks",
    "checks/explain",
    "checks/inspection",
    "storage",
    "storage/in_place",
    "storage/writing",
    "storage/reading",
    "storage/reading/training",
    "storage/hub",
    "storage/formats",
    "storage/tensors",
    "storage/stores",
    "storage/system",
    "core",
    "core/anatomy",
    "core/anatomy/audio",
    "core/anatomy/families",
    "core/anatomy/towers",
    "core/anatomy/towers/families",
    "core/binding",
    "core/training",
)
# The commands of the demo that the README shows.
IN_THE_README = ("$ mkdir", "$ vita-ckpt merge-projector", "$ vita-ckpt verify demo-out/merged")
BEGIN, END = "<!-- demo: written by docs/generate.py -->\n", "<!-- demo ends -->\n"


def reference() -> str:
    """The help of every command, as one page."""
    text = "# Commands\n\nWritten by `docs/generate.py` from the commands themselves.\n"
    for title, help_text in _helps():
        text += f"\n## `{title}`\n\n```\n{help_text}\n```\n"
    return text


def rules_page() -> str:
    """Every rule of validate, verify and diff, as one page."""
    text = (
        "# Rules\n\nWritten by `docs/generate.py` from the table in `vita_ckpt/checks/rules.py`.\n"
    )
    for group, rules in GROUPS.items():
        text += f"\n## {group[0].upper()}{group[1:]}\n\n"
        text += "| rule | severity | what | why |\n|---|---|---|---|\n"
        for rule in rules:
            name = f'<a id="{rule.id}"></a>`{rule.id}`'
            text += f"| {name} | {rule.severity} | {rule.title} | {rule.why} |\n"
    return text


def errors_page() -> str:
    """Return the page of every error code: what is before the first heading stays as it is."""
    text = ERRORS_PAGE.read_text().partition("\n## ")[0].rstrip() + "\n"
    for section in SECTIONS:
        text += f"\n## {section.title}\n\n| code | what it means |\n|---|---|\n"
        for row in section.rows:
            codes = ", ".join(f"`{code}`" for code in row.codes)
            text += f"| {codes} | {row.meaning} |\n"
        if section.remark:
            text += f"\n{textwrap.fill(section.remark, 120)}\n"
    return text


def api_page() -> str:
    """Return the page of every public function: signature, what it does, an example."""
    text = (
        "# Python API\n\nWritten by `docs/generate.py` from the functions themselves, with the "
        "examples of `docs/api.py`,\nwhich a test runs. [From Python](python.md) is the guide, "
        "with the methods of a live model.\n"
    )
    for group, examples in EXAMPLES.items():
        text += f"\n## {group}\n"
        text += "".join(_function(name, f"pycon\n{one.strip()}") for name, one in examples.items())
    text += "\n## Upload\n"
    return text + "".join(_function(name, f"python\n{one}") for name, one in NOT_RUN.items())


def _function(name: str, example: str) -> str:
    function = getattr(vita_ckpt, name)
    signature = re.sub(r"<function (\w+) at 0x\w+>", r"\1", str(inspect.signature(function)))
    said = inspect.cleandoc(function.__doc__)
    said = re.sub(r":\w+:`~?(?:vita_ckpt\.)?([\w.]+)`", r"`\1`", said).replace("``", "`")
    call = name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    shown = "\n".join(textwrap.wrap(call, 100, subsequent_indent="    ", break_on_hyphens=False))
    return f"\n### `{name}`\n\n```python\n{shown}\n```\n\n{said}\n\n```{example}\n```\n"


def schemas_page() -> str:
    """Return the page of the JSON reports: what prints each, and its keys."""
    text = (
        "# JSON reports\n\nWritten by `docs/generate.py` from the schemas in the package. A "
        "version keeps every key and\nevery value of an enumeration; more may be added.\n"
    )
    for path in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text())
        text += f"\n## {path.stem}\n\n{schema['title']}: {schema['description']}\n\n"
        text += f"[{path.name}](../vita_ckpt/schemas/{path.name})\n\n"
        text += "| key | what it is |\n|---|---|\n"
        for key, value in schema["properties"].items():
            text += f"| `{key}` | {_type(value, schema)} |\n"
    return text


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return in words what a value of a schema may be."""
    if "$ref" in value:
        return _type(schema["$defs"][value["$ref"].rpartition("/")[2]], schema)
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    for several in ("anyOf", "oneOf"):
        if several in value:
            return " or ".join(dict.fromkeys(_type(one, schema) for one in value[several]))
    kinds = value.get("type", "any")
    said = " or ".join([kinds] if isinstance(kinds, str) else kinds)
    if "items" in value and isinstance(value["items"], dict):
        said += f" of {_type(value['items'], schema)}"
    described = value.get("description")
    return f"{said}: {described}" if described else said


def readme(printed: str) -> str:
    """The README with what the demo ``printed`` for some of its commands between its marks."""
    before, rest = README.read_text().split(BEGIN)
    blocks = re.split(r"(?m)^(?=\$ )", printed)
    shown = "".join(block for block in blocks if block.startswith(IN_THE_README)).rstrip()
    return f"{before}{BEGIN}```console\n{shown}\n```\n{END}{rest.split(END)[1]}"


def demo_page(printed: str) -> str:
    """All that the demo ``printed``, as one page."""
    return (
        f"# What `make demo` prints\n\nWritten by `docs/generate.py`.\n\n```console\n{printed}```\n"
    )


def house() -> str:
    """Return a table for each folder of the package: its modules and the first line of each."""
    package = ROOT / "vita_ckpt"
    found = {str(p.parent.relative_to(package)).removeprefix(".") for p in package.rglob("*.py")}
    if found != set(FOLDERS):
        raise LookupError(found ^ set(FOLDERS))
    text = ""
    for folder in FOLDERS:
        place = package / folder
        title = f"vita_ckpt/{folder}/".replace("//", "/")
        text += f"\n### `{title}`\n\n{_summary(place / '__init__.py')}\n"
        modules = sorted(path for path in place.glob("*.py") if path.name != "__init__.py")
        if modules:
            text += "\n| module | what it does |\n|---|---|\n"
            text += "".join(f"| `{path.stem}` | {_summary(path)} |\n" for path in modules)
    return text


def design() -> str:
    """Return the design page with the tables of :func:`house` between their marks."""
    before, rest = DESIGN.read_text().split(HOUSE_BEGIN)
    return before + HOUSE_BEGIN + house() + HOUSE_END + rest.split(HOUSE_END)[1]


def _summary(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (
        (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].replace("``", "`")
    )


def steady(text: str) -> str:
    """``text`` without the figures that differ from run to run, and from machine to machine."""
    text = re.sub(r"\b\d+\.\d s\b|\bpeak [0-9.]+ [kMG]B", "…", text)
    return re.sub(r" on (cpu|cuda:\d+),", " on …,", text)


def demo() -> str:
    """What ``make demo`` prints to stdout, run in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("examples", "fixtures"):
            os.symlink(ROOT / name, Path(directory) / name)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "examples/demo.sh"],
            cwd=directory,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PATH": path},
        )
    return done.stdout.rstrip() + "\n"


def _helps() -> Iterator[tuple[str, str]]:
    names = ["-h", "--help"]
    context = cli.context_class(
        cli, info_name="vita-ckpt", terminal_width=80, max_content_width=80, help_option_names=names
    )
    yield "vita-ckpt", cli.get_help(context)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is None:
            raise LookupError(name)
        child = command.context_class(
            command, context, info_name=name, terminal_width=80, max_content_width=80
        )
        yield f"vita-ckpt {name}", command.get_help(child)


if __name__ == "__main__":
    REFERENCE.write_text(reference())
    RULES_PAGE.write_text(rules_page())
    ERRORS_PAGE.write_text(errors_page())
    API_PAGE.write_text(api_page())
    SCHEMAS_PAGE.write_text(schemas_page())
    DESIGN.write_text(design())
    printed = demo()
    for page, text in ((README, readme(printed)), (DEMO, demo_page(printed))):
        if not page.exists() or steady(text) != steady(page.read_text()):
            page.write_text(text)
