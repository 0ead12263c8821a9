"""What is printed reaches every terminal and every pipeline as text, and as nothing else."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fixtures.builder import write_checkpoint
from tests.conftest import Cli
from tests.forker import Forker
from vita_ckpt.cli import console

LOCALES = (
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)
# What a runner takes for a command: GitHub at the beginning of a line, both anywhere in it.
RUNS = re.compile(r"(?im)^\s*::|##(\[|vso\[)")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / "base")


@pytest.mark.parametrize(
    "name", ["::error file=x::y", "  ::add-mask::x", "##[error]x", "a ##vso[task.x]y", "::stop-a::"]
)
def test_no_name_starts_a_command(cli: Cli, base: Path, tmp_path: Path, name: str) -> None:
    root = write_checkpoint(tmp_path / name)
    save_file({name: np.zeros(2, np.float32)}, str(tmp_path / f"{name}.safetensors"))
    other = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**other, name: name, "model_type": name}))
    for arguments in (
        ["inspect", name],
        ["inspect", name, "--json"],
        ["inspect", f"{name}.safetensors", "--tensors"],
        ["inspect", f"{name}.safetensors", "--depth", "3"],
        ["inspect", f"{name}-absent"],
        ["validate", name],
        ["validate", name, "--format", "json"],
        ["validate", name, "--format", "junit"],
        ["validate", name, f"{name}-absent", "--format", "sarif"],
        ["diff", "base", name],
        ["explain", name],
        ["history", name],
        ["set", name, name],
        ["clean", name],
    ):
        result = cli(*arguments)
        assert not RUNS.search(result.out), arguments
        assert not RUNS.search(result.err), arguments


@pytest.mark.parametrize("locale", LOCALES)
def test_output_never_fails_after_the_work(base: Path, locale: dict[str, str]) -> None:
    with Forker(environment={**os.environ, **locale}, encoding="latin-1") as forker:
        for arguments, code in (
            (["set", "base", "mm_hidden_size=7", "--in-place"], 0),
            (["set", "base", "mm_hidden_size=7", "--out", "日本"], 0),
            (["inspect", "base"], 0),
            (["validate", "base"], 1),
            (["diff", "base", "日本"], 0),
            (["inspect", "nö"], 3),
            (["--help"], 0),
        ):
            done = forker.run(arguments, environment={**os.environ, **locale})
            assert done.code == code, (arguments, done)
            assert "internal-error" not in done.err
            assert "?" not in done.out


@pytest.mark.parametrize("encoding", ["idna", "undefined"])
def test_an_encoding_that_is_none_for_text(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr("sys." + name, io.TextIOWrapper(written, encoding=encoding))
    console.prepare()
    console.say("→ a line\n\udcff" + "x" * 200)
    assert written.getvalue().decode() == "→ a line\n\\udcff" + "x" * 200 + "\n"


@pytest.mark.usefixtures("base")
def test_a_full_stdout_changes_nothing_in_work_that_is_done(forker: Forker) -> None:
    def run(*arguments: str) -> tuple[int, list[str]]:
        done = forker.run(arguments, out="/dev/full")
        return done.code, done.err.splitlines()

    for last in ([], ["--json"]):
        work = ["--quiet", "set", "base", "mm_hidden_size=7"]
        code, lines = run(*work, "--out", f"out{len(last)}", *last)
        assert (code, len(lines)) == (0, 1)
        assert "stdout could not be written: no space left on device" in lines[0]
        assert Path(f"out{len(last)}").is_dir()
        code, lines = run(*work, "--dry-run", *last)
        assert (code, len(lines)) == (3, 1)
    for arguments in (
        ["validate", "base"],
        ["inspect", "base"],
        ["validate", "base", "--format=json"],
    ):
        code, lines = run(*arguments)
        assert code == 3
        assert lines == ["error: system: no space left on device"]


def test_json_is_json_whatever_the_checkpoint_says(cli: Cli, base: Path) -> None:
    def strict(text: str) -> None:
        json.loads(text, parse_constant=pytest.fail)

    (base / "vita_ckpt.json").write_text(
        '{"needs_alignment": false, '
        '"operations": [{"time": NaN, "arguments": {"a": [-Infinity, 1e999]}}]}'
    )
    strict(cli("history", base, "--json").out)
    work = ["set", base, "mm_hidden_size=7", "--json"]
    strict(cli(*work, "--dry-run").out)
    strict(cli(*work, "--out", "out", "--plan-out", "plan.json").out)
    strict(Path("plan.json").read_text())
    strict(Path("out/vita_ckpt.json").read_text())
    strict(cli("history", "out", "--json").out)
    strict(cli("set", base, "mm_hidden_size=9", "--in-place", "--json").out)
    strict((base / "vita_ckpt.json").read_text())
    for command in ("inspect", "explain"):
        strict(cli(command, base, "--json").out)


@pytest.mark.parametrize(
    ("variables", "option", "expected"),
    [
        ({}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
        ({"FORCE_COLOR": "1"}, ["--color", "auto"], True),
        ({"NO_COLOR": "", "FORCE_COLOR": ""}, [], False),
    ],
)
def test_verdicts_are_coloured_where_asked(
    forker: Forker, base: Path, variables: dict[str, str], option: list[str], expected: bool
) -> None:
    (base / "config.json").write_text((base / "config.json").read_text().replace("16", "24"))
    clean = {name: value for name, value in os.environ.items() if "COLOR" not in name}
    for arguments in (["validate", str(base)], ["inspect", str(base)], ["bogus"]):
        done = forker.run([*arguments, *option], environment=clean | variables)
        printed = done.out + done.err
        assert ("\x1b[31m" in printed) == expected, printed
        assert printed.count("\x1b[0m") == len(re.findall("\x1b\\[3[123]m", printed))


def test_json_and_files_have_no_colour(forker: Forker, base: Path, tmp_path: Path) -> None:
    arguments = ["validate", str(base), "--color", "always", "--output", f"text={tmp_path / 'r'}"]
    done = forker.run([*arguments, "--format", "json"])
    assert "\x1b" not in done.out + (tmp_path / "r").read_text()
