"""What a page names is there: commands, options, rules, errors, functions, schemas."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import click
import pytest

import vita_ckpt
from tests.docs.blocks import DOCS, ROOT
from vita_ckpt.api.validate import KINDS
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli.main import cli
from vita_ckpt.core.binding.loaders import LOADER_NAMES
from vita_ckpt.core.error_codes import ERRORS

# The changelog names what was.
PAGES = sorted(
    (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *DOCS.rglob("*.md"))
)
# Words with a hyphen that are no rule and no error, and options that are another program's.
OTHERS = {
    "vita-ckpt",
    "vita-mixtral",  # a model type
    "mixtral-8x7b",  # a name of upstream's loader
    "internal-error",  # a bug
    "exit-code",  # an output of the action
    "import-linter",
    "checkpoint-500",
    "lora-run",
}
OTHER_OPTIONS = {"--node-rank", "--model"}


@cache
def options() -> dict[str, frozenset[str]]:
    """The options of every command, and of the root as ``""``."""
    context = click.Context(cli)
    found = {"": frozenset(name for one in cli.params for name in one.opts) | {"--help", "-h"}}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        own = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        found[name] = found[""] | own
    return found


def code(text: str) -> list[str]:
    """The code of a page: spans, and lines of blocks, joined where they are continued."""
    blocks = re.findall(r"(?ms)^ *```.*?\n(.*?)^ *```", text)
    rest = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    blocks += re.findall(r"(?m)(?:^    .*\n)+", rest)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *(span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", rest))]


def unknown(text: str) -> list[str]:
    """What a page names, and is not there."""
    bad: list[str] = []
    known = {option for every in options().values() for option in every}
    codes = {*RULES, *ERRORS, *options(), *KINDS, *LOADER_NAMES}
    for piece in code(text):
        for command, rest in re.findall(r"vita-ckpt ([a-z][a-z-]*)([^|;&\n]*)", piece):
            if command not in options():
                bad.append(f"vita-ckpt {command}")
            else:
                used = re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
                bad += [f"{command} {one}" for one in used if one not in options()[command]]
        for option in re.findall(r"^(--[a-z][a-z-]*)", piece):
            bad += [option] * (option not in known | OTHER_OPTIONS)
        for name in re.findall(r"\bvita_ckpt((?:\.[A-Za-z_]\w*)+)", piece):
            bad += [f"vita_ckpt{name}"] * (not is_there(name.removeprefix(".").split(".")))
        if re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", piece):
            bad += [piece] * (piece not in codes | OTHERS)
    return bad


def is_there(names: list[str]) -> bool:
    """Whether ``vita_ckpt.a.b`` is a file, or what the package and its modules have."""
    if names[-1] in ("json", "md", "toml", "tmp"):
        return True
    found: object = vita_ckpt
    for name in names:
        if not hasattr(found, name):
            if not isinstance(found, ModuleType) or find_spec(f"{found.__name__}.{name}") is None:
                return False
            found = import_module(f"{found.__name__}.{name}")
        else:
            found = getattr(found, name)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page: Path) -> None:
    assert unknown(page.read_text()) == []


def test_what_was_removed_is_noticed() -> None:
    page = """
`vita-ckpt melt X`, `vita-ckpt inspect X --melt`, `--melt`, `melted-tensor`, `vita_ckpt.melt()`

    vita-ckpt merge-projector --base A \\
        --melt 3

```python
vita_ckpt.checks.melt
```
"""
    assert sorted(unknown(page)) == [
        "--melt",
        "inspect --melt",
        "melted-tensor",
        "merge-projector --melt",
        "vita-ckpt melt",
        "vita_ckpt.checks.melt",
        "vita_ckpt.melt",
    ]
