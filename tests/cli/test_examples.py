"""Every example of every ``--help`` does what it shows."""

from __future__ import annotations

import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from tests.conftest import GOLDEN, Cli
from vita_ckpt import apply, plan_merge_projector
from vita_ckpt.cli import main
from vita_ckpt.cli.examples import EXAMPLES

# "push" needs a hub: the tests of the hub run it.
RUN = sorted(EXAMPLES.keys() - {"push"})
# What VITA-1.5 is where the command needs something that fits it.
OTHER_BASES = {
    "merge-lora": "L4/base",
    "merge-audio-adapter": "U1/base",
    "extract-audio-adapter": "U1/base",
    "swap-audio-encoder": "U1/base",
    "extract-audio-encoder": "U1/base",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out what the examples name, and make it the working directory."""
    for name, source in (
        ("old", "A7/base"),
        ("run", "A7/mm_projector_fp32"),
        ("tower-internvit", "A7/tower-internvit"),
        ("siglip-384", "A2/tower-siglip"),
        ("lora-run", "L4/lora"),
        ("audio-run", "U1/audio_run"),
        ("audio-encoder", "U1/audio-encoder"),
        ("tower-siglip", "L4/tower-siglip"),
        ("zero-run", "T2/run"),
        ("fsdp-run", "T9/run"),
    ):
        shutil.copytree(GOLDEN / source, tmp_path / name)
    apply(plan_merge_projector(tmp_path / "old", tmp_path / "run"), tmp_path / "VITA-1.5")
    monkeypatch.chdir(tmp_path)


def test_every_command_has_one() -> None:
    group = main.cli
    assert EXAMPLES.keys() == set(group.list_commands(click.Context(group)))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_they_are_shown_as_they_are_typed(cli: Cli, name: str) -> None:
    shown = cli(name, "--help").out
    for line in EXAMPLES[name]:
        assert f"  {line}\n" in shown.replace(" \\\n       ", "")
        assert line.startswith("vita-ckpt ")


@pytest.mark.parametrize("name", [None, *sorted(EXAMPLES)])
def test_a_help_fits(cli: Cli, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line fits the terminal, and a narrow one breaks no word."""
    shown = {}
    for columns in (60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown[columns] = cli(*([name] if name else []), "--help").out
        assert max(map(len, shown[columns].splitlines())) <= columns
    words = {at: [w for w in text.split() if w != "\\"] for at, text in shown.items()}
    assert words[60] == words[80]


@pytest.mark.parametrize("name", RUN)
@pytest.mark.usefixtures("here")
def test_they_run(cli: Cli, name: str) -> None:
    if name == "verify" and find_spec("torch") is None:
        assert "model-extra-missing" in cli("verify", "VITA-1.5").err
        return
    if name in OTHER_BASES:
        shutil.rmtree("VITA-1.5")
        shutil.copytree(GOLDEN / OTHER_BASES[name], "VITA-1.5")
    for line in EXAMPLES[name]:
        done = cli(*shlex.split(line)[1:])
        assert done.code == 0, (line, done)
