"""The hooks of this repository run what ``make lint`` runs, and fetch nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def lint() -> list[str]:
    """The commands of the target ``lint``, with the Makefile's variables filled in."""
    makefile = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^([A-Z]+) :?= (.*)$", makefile, re.M))
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    commands: str = recipe
    while found := re.search(r"\$\(([A-Z]+)\)", commands):
        commands = commands.replace(found[0], variables[found[1]])
    return [line.strip() for line in commands.splitlines()]


def test_the_hooks_run_what_make_lint_runs() -> None:
    (repository,) = CONFIG["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == lint()


def test_the_hooks_fetch_nothing() -> None:
    (repository,) = CONFIG["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False
