"""What the action installs is locked, file by file, and agrees with what the project declares."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from vita_ckpt import __version__

ROOT = Path(__file__).parent.parent
LINE = re.compile(
    r'([a-z0-9.-]+)==([0-9a-z.]+)(; (?:python_version (?:<|>=) "3\.11"|sys_platform == "win32"))?'
    r"((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)
OLD = '; python_version < "3.11"'


def locked() -> list[tuple[str, str, str]]:
    text = (ROOT / "requirements-action.txt").read_text()
    comment, _, lines = text.partition("\n")
    assert comment.startswith("#")
    assert LINE.sub("", lines) == "", "every line names one version and its digests"
    return [(name, version, mark) for name, version, mark, _ in LINE.findall(lines)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)
    assert listed is not None
    return {normal(name) for name in re.findall(r'^    "([\w.-]+)', listed[1], re.M)}


def test_everything_that_is_declared_is_locked() -> None:
    assert declared() | {"hatchling"} <= {name for name, _, _ in locked()}


def test_the_versions_are_those_of_the_constraints() -> None:
    pins = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    wanted = {normal(name): version for name, version in pins}
    for name, version, mark in locked():
        if mark != OLD and name in wanted:
            assert version == wanted[name], name
    # Only what another Python or system needs may be missing there.
    assert {n for n, _, mark in locked() if not mark} <= wanted.keys()


def test_the_action_takes_nothing_else() -> None:
    install = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][0]["run"]
    calls = [line.strip() for line in install.splitlines() if line.lstrip().startswith('"${pip')]
    assert len(calls) == 3
    assert "--require-hashes" in calls[0]
    assert "requirements-action.txt" in calls[0]
    assert all("--no-build-isolation" in call for call in calls[1:])
    assert "--no-deps" in calls[1]
    assert "constraints.txt" in calls[2]


def test_the_documented_tag_is_one_that_there_will_be() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, re.M)
    coming = re.findall(r"The first release will be (\d+\.\d+\.\d+)\.", changes)
    assert __version__ in (*released[:1], *coming)
    tags = re.findall(r"rev: (\S+)", (ROOT / "docs" / "ci.md").read_text())
    assert tags == [f"v{__version__}"]
