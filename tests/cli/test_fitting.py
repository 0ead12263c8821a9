"""Tables fit a terminal, and no word is broken."""

from __future__ import annotations

import os
import pty
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Cli
from vita_ckpt.cli.fitting import fit
from vita_ckpt.cli.render import table

CELLS = st.text(st.sampled_from("ab ./,"), max_size=40)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.integers(10, 100))
def test_cells_keep_their_text_and_fit(rows: list[tuple[str, str, str]], width: int) -> None:
    headers = ["one", "two", "three"]
    found, heads = fit(rows, headers, width)
    assert heads == headers
    for row, cells in zip(rows, found, strict=True):
        for before, after in zip(row, cells, strict=True):
            assert "".join(after.split()) == "".join(before.split())
    free = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    if sum(free) + 4 <= width:
        assert all("\n" not in cell for row in found for cell in row)


def test_words_are_not_broken() -> None:
    row = ["model.vision_tower.encoder.weight", "a few words", "F32"]
    headers = ["tensor", "what it is", "type"]
    found, _ = fit([row], headers, 38)
    assert found == [["model.vision_tower.\nencoder.weight", "a few words", "F32"]]
    found, heads = fit([row], headers, 25)
    assert found == [["model.\nvision_tower.\nencoder.\nweight", "a few\nwords", "F32"]]
    assert heads == ["tensor", "what\nit is", "type"]


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("command", ["inspect", "validate", "rules", "diff", "merge-projector"])
def test_tables_of_commands(
    cli: Cli,
    base: Path,
    adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    command: str,
) -> None:
    arguments = {
        "inspect": [base.name],
        "validate": [base.name],
        "rules": [],
        "diff": [base.name, base.name],
        "merge-projector": [
            *("--base", base.name, "--adapter", adapter.name, "--out", "x", "--dry-run")
        ],
    }[command]
    monkeypatch.chdir(base.parent)
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = cli(command, *arguments).out
    monkeypatch.delenv("COLUMNS")
    free = cli(command, *arguments).out
    assert sorted(narrow.split()) == sorted(free.split())
    tables = [line for line in narrow.splitlines() if "   " in line]
    assert max(map(len, tables), default=0) <= width


def test_a_terminal_is_as_wide_as_it_says(base: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 40, 60, 0, 0))
    done = subprocess.Popen(
        [sys.executable, "-m", "vita_ckpt", "rules"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    lines = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        lines += piece
    os.close(ours)
    assert done.wait() == 0
    assert max(map(len, lines.decode().splitlines())) <= 60


def test_without_a_terminal_nothing_is_wrapped(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, cli("rules").out.splitlines())) > 80
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert table([["x" * 200, "y z"]], ["a", "b"]).splitlines()[1] == "x" * 200 + "  y z"
