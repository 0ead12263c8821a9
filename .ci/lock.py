"""Write requirements-action.txt: what the action installs, each file by its digest.

``python .ci/lock.py`` asks pip which wheels it would take on each platform for each Python, at the
versions of constraints.txt. It goes online and installs nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements-action.txt"

_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
_GLIBC = ("2_39", "2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17", "2_12", "2_5")


def _linux(machine: str, newest: str) -> tuple[str, ...]:
    versions = _GLIBC[_GLIBC.index(newest) :]
    return (*(f"manylinux_{v}_{machine}" for v in versions), f"manylinux2014_{machine}")


_PLATFORMS = (
    *(_linux(m, glibc) for m in ("x86_64", "aarch64") for glibc in ("2_39", "2_28", "2_17")),
    ("macosx_15_0_arm64",),
    ("macosx_12_0_arm64",),
    ("macosx_15_0_x86_64",),
    ("macosx_12_0_x86_64",),
    ("win_amd64",),
    ("win_arm64",),
)

# pip evaluates markers for the Python that runs it. These are the packages that other Pythons need.
_OLD = 'python_version < "3.11"'
_NEW = 'python_version >= "3.11"'
_WINDOWS = 'sys_platform == "win32"'
_ONLY_OLD = ("tomli", "exceptiongroup")
_ONLY_WINDOWS = ("colorama", "0.4.6")
Pin = tuple[str, str]


def main() -> int:
    """Write the lock."""
    # Not all of constraints.txt runs on Python 3.10: there it is the newest that does.
    new = _closure("-c", str(ROOT / "constraints.txt"))
    tags = [argument for tag in _PLATFORMS[0] for argument in ("--platform", tag)]
    old = _closure("--python-version", "3.10", *tags, *_ONLY_OLD)
    marks = {pin: "" if pin in old else _NEW for pin in new}
    marks |= {pin: _OLD for pin in old if pin not in new} | {_ONLY_WINDOWS: _WINDOWS}
    hashes: defaultdict[Pin, set[str]] = defaultdict(set)
    targets = [(python, platform) for python in _PYTHONS for platform in _PLATFORMS]
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda target: _files(marks, *target), targets):
            for pin, digest in found:
                hashes[pin].add(digest)
    lines = ["# Made by 'make lock' of pyproject.toml and constraints.txt. Do not edit."]
    for pin in sorted(marks):
        name, version = pin
        mark = f"; {marks[pin]}" if marks[pin] else ""
        digests = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(hashes[pin]))
        lines.append(f"{name}=={version}{mark}{digests}")
    LOCK.write_text("\n".join(lines) + "\n")
    return 0


def _closure(*arguments: str) -> list[Pin]:
    """Return what the package needs, and what builds it."""
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.M | re.S)
    assert listed is not None  # noqa: S101 - our own file
    needed = [r for r in re.findall(r'"(.*)",', listed[1]) if ";" not in r]
    return [_pin(item) for item in _pip([*arguments, *needed, "hatchling"])]


def _files(
    marks: dict[Pin, str], python: str, platform: tuple[str, ...]
) -> Iterable[tuple[Pin, str]]:
    """Yield the digest of the wheel that pip takes of each pin."""
    old, windows = python == "3.10", platform[0].startswith("win")
    takes = {"": True, _OLD: old, _NEW: not old, _WINDOWS: windows}
    wanted = [f"{name}=={version}" for (name, version), mark in marks.items() if takes[mark]]
    where = [argument for tag in platform for argument in ("--platform", tag)]
    while True:
        try:
            report = _pip(["--no-deps", "--python-version", python, *where, *wanted])
        except LookupError as error:  # no wheel for so old a system
            wanted.remove(str(error.args[0]))
            continue
        hashes = [item["download_info"]["archive_info"]["hashes"] for item in report]
        return [(_pin(item), h["sha256"]) for item, h in zip(report, hashes, strict=True)]


def _pin(item: dict[str, Any]) -> Pin:
    return item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]


def _pip(arguments: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as nowhere:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-"]
        command += ["--ignore-installed", "--only-binary=:all:", "--target", nowhere]
        done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)  # noqa: S603
    missing = re.search(r"No matching distribution found for (\S+==\S+)", done.stderr)
    if missing is not None:
        raise LookupError(missing[1])
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()[-600:]}")
    return list(json.loads(done.stdout)["install"])


if __name__ == "__main__":
    sys.exit(main())
