"""The command blocks of pages: read, and run as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import Cli

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SHELL = re.compile(r"[|&;<>$`]|\|\|")
OR_SAID = re.compile(r'(?P<command>vita-ckpt [^|&;<>$`]+) \|\| echo "exit \$\?"')


@dataclass(frozen=True)
class Block:
    """Commands under a heading, and lines of what they print."""

    section: str
    commands: tuple[str, ...]
    printed: tuple[str, ...]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, each with the ``text`` block that follows it."""
    found: list[Block] = []
    section = ""
    parts = re.split(r"(?ms)^(## .*?$|```(?:sh|text)\n.*?^```$)", page.read_text())
    for part in parts:
        if part.startswith("## "):
            section = part.removeprefix("## ")
        elif part.startswith("```sh\n"):
            body = part.removeprefix("```sh\n").removesuffix("```")
            found.append(Block(section, tuple(body.splitlines()), ()))
        elif part.startswith("```text\n"):
            lines = part.removeprefix("```text\n").removesuffix("```").splitlines()
            found[-1] = Block(section, found[-1].commands, tuple(lines))
    return found


def indented(page: Path) -> list[str]:
    """The commands of ours in the indented blocks of a page, joined where they are continued."""
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text()).replace("\\\n", " ")
    return re.findall(r"(?m)^    (vita-ckpt .*)$", text)


def run(cli: Cli, found: list[Block]) -> None:
    """Run the blocks one after the other, and find what they are said to print."""
    for block in found:
        out = "".join(execute(cli, command) for command in block.commands)
        said = " ".join(out.split())
        for line in block.printed:
            assert " ".join(line.split()) in said, (block.commands, line, out)


def execute(cli: Cli, line: str) -> str:
    """Run one line, and return what it prints; it has to succeed."""
    if line.startswith("cd "):
        os.chdir(line.removeprefix("cd "))
        return ""
    said = OR_SAID.fullmatch(line)
    if line.startswith("vita-ckpt ") and (said or not SHELL.search(line)):
        done = cli(*shlex.split(said["command"] if said else line)[1:])
        if said and done.code:
            return f"{done.out}{done.err}exit {done.code}\n"
        assert done.code == 0, (line, done)
        return done.out + done.err
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = subprocess.run(
        ["sh", "-ec", line],
        check=False,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert shell.returncode == 0, (line, shell.stdout)
    return shell.stdout
