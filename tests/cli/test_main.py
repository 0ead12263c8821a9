"""What every command has: usage, streams, --quiet, --debug, --version."""

from __future__ import annotations

import errno
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fixtures.builder import read_tensors
from tests.conftest import Cli, assert_one_error
from vita_ckpt import apply, plan_merge_projector
from vita_ckpt.cli import main


def test_usage_errors_are_one_line_too(cli: Cli, base: Path) -> None:
    assert_one_error(cli("merge-projector", "--base", base), 2, "usage", "--adapter", "--help")
    assert_one_error(cli("nonsense"), 2, "usage", "nonsense")
    assert "example" not in cli("inspect", base, "--jsn").err
    assert "--zzz'. For example: vita-ckpt inspect " in cli("inspect", base, "--zzz").err.replace(
        "No such option: --zzz", "No such option '--zzz'"
    )


def test_a_mistyped_command_is_guessed(cli: Cli) -> None:
    assert_one_error(cli("inspct", "x"), 2, "usage", "inspct", "Did you mean 'inspect'?")
    assert_one_error(cli("merge_projector"), 2, "usage", "'merge-projector'?")
    assert "mean" not in cli("zzz").err


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (("rules", "tower-absnt"), 2, "did you mean 'tower-absent'?"),
        (("rules", "not-a-chekpoint"), 2, "did you mean 'not-a-checkpoint'?"),
        (("validate", "BASE", "--ignore", "missing-tenser"), 2, "did you mean 'missing-tensor'?"),
        (("validate", "BASE", "--format", "juint"), 2, "did you mean 'junit'?"),
        (("diff", "BASE", "BASE", "--output", "sariff=x"), 2, "did you mean 'sarif'?"),
        (("set", "BASE", "mm_vison_tower=x", "--dry-run"), 2, "did you mean 'mm_vision_tower'?"),
        (("convert", "BASE", "--dtype", "bfloat61", "--dry-run"), 2, "did you mean 'bfloat16'?"),
        (
            ("merge-projector", "--base=BASE", "--adapter=BASE", "--with=embed_token", "--dry-run"),
            2,
            "did you mean 'embed_tokens'?",
        ),
        (("inspect", "BASE", "--tensors", "*mm_projetor*"), 0, "did you mean '*mm_projector*'?"),
        (("diff", "BASE", "BASE", "--only", "*mm_projetor*"), 1, "did you mean '*mm_projector*'?"),
        (("diff", "BASE", "BASE", "--only", "config:mm_vison_tower"), 1, "'mm_vision_tower'?"),
        (("diff", "BASE", "BASE", "--only", "file:zzz"), 1, "zzz matches no file"),
        (
            ("convert", "BASE", "--dtype=f16", "--keep=*lm_haed*", "--dry-run"),
            0,
            "--keep *lm_haed* matches no tensor (did you mean '*lm_head*'?)",
        ),
        (("convert", "BASE", "--keep=*norm*", "--dry-run"), 0, "--keep limits --dtype"),
        (("set", "BASE", "use_s2=true", "--carry=x.pkl", "--dry-run"), 0, "--carry x.pkl matches"),
        (("set", "BASE", "image_aspect_ratio=padd", "--dry-run"), 2, "did you mean 'pad'?"),
        (("set", "BASE", "mm_projector_type=mlp3x_glu", "--dry-run"), 2, "'mlp3x_gelu'?"),
        (("set", "use_s2=true", "BASE", "--dry-run"), 2, "CHECKPOINT comes first"),
        (("explain", "BASE", "--loader", "vita1.5"), 2, "Did you mean 'vita-1.5'?"),
        (("explain", "BASE", "--only", "x"), 2, "It is an option of diff."),
        (("inspect", "BASE", "--jsn"), 2, "Did you mean"),
        (("inspect", "--tensors", "BASE"), 2, "name CHECKPOINT first"),
        (("BASE",), 2, "It is a path: vita-ckpt inspect "),
        (("inspect", "BASEE"), 3, "did you mean 'base'? check the path"),
        (("swap-tower", "--base=BASE", "--tower=BASE", "--projector=reint"), 3, "'reinit'?"),
        (("swap-audio-encoder", "--base=BASE", "--audio-encoder=BASE"), 3, "with final.pt"),
        (("merge-projector", "BASE", "x"), 2, "For example: vita-ckpt merge-projector --base "),
        (("rules", "a", "b"), 2, "For example: vita-ckpt rules"),
        (("push", "org/name", "BASE"), 2, "DIR comes first"),
        (("undo", "BASE/config.json"), 3, "name the directory "),
        (("undo", "BASE/confg"), 3, "did you mean 'config.json'?"),
        (("resize-embeddings", "BASE", "--tokens=9", "--init=meen"), 2, "did you mean 'mean'?"),
    ],
)
def test_what_is_mistyped_is_guessed(
    cli: Cli, base: Path, arguments: tuple[str, ...], code: int, hint: str
) -> None:
    result = cli(*(word.replace("BASE", str(base)) for word in arguments))
    assert result.code == code
    assert hint in result.err + result.out


def test_the_list_of_commands_is_theirs() -> None:
    """Each summary is the first sentence of the command's own help, whole in 80 columns."""
    group, context = main.cli, click.Context(main.cli)
    listed = group.get_help(context)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        summary = str(command.help).split("\n", 1)[0].strip()
        assert any(
            line.split() == [name, *summary.split()] and len(line) <= 80
            for line in listed.splitlines()
        ), name
    commands = Path(main.__file__).parent / "commands"
    modules = {path.stem for path in commands.glob("*.py")} - {"__init__"}
    assert modules == {name.replace("-", "_") for name in group.list_commands(context)}


@pytest.mark.parametrize("arguments", ["--help", "complete"])
def test_to_list_commands_imports_none(arguments: str) -> None:
    environment = dict(os.environ)
    if arguments == "complete":
        environment |= {
            "_VITA_CKPT_COMPLETE": "bash_complete",
            "COMP_WORDS": "vita-ckpt me",
            "COMP_CWORD": "1",
        }
    code = (
        "import sys, atexit; from vita_ckpt.cli.main import main;"
        "atexit.register(lambda: print(*(n for n in sys.modules if 'cli.commands' in n"
        " or n == 'vita_ckpt.core.checkpoint'), file=sys.stderr));"
        f"main({[arguments] if arguments == '--help' else []!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "merge-projector" in done.stdout
    assert done.stderr == "\n"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--completion", "bash"], ["rules"]])
def test_a_help_that_nobody_reads_on_has_found_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    class Closed(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    assert cli(*words).code == 0


def test_a_full_stdout_is_no_bug_of_ours(base: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from vita_ckpt.cli.main import main; main()",
                "inspect",
                str(base),
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "error: system: no space left on device\n"


@pytest.mark.parametrize("streams", [">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_streams_that_lead_nowhere(base: Path, adapter: Path, tmp_path: Path, streams: str) -> None:
    """What is done is done all the same, and what fails is not taken for findings."""
    line = [sys.executable, "-c", "from vita_ckpt.cli.main import main; main()"]

    def run(*arguments: object) -> tuple[int, str]:
        words = shlex.join([*line, *map(str, arguments)])
        done = subprocess.run(
            ["sh", "-c", f"{words} {streams}"], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    out = tmp_path / "out"
    merge = ["merge-projector", "--base", base, "--adapter", adapter, "--out", out]
    code, said = run(*merge)
    assert (code, "error" in said) == (0, False)
    apply(plan_merge_projector(base, adapter), tmp_path / "same")
    weights = {name: read_tensors(tmp_path / name) for name in ("out", "same")}
    assert weights["out"] == weights["same"]
    code, said = run(*merge)
    assert (code, said.count("\n")) == (2, 1 if streams == ">&-" else 0)
    assert run("inspect", tmp_path / "nowhere")[0] == 3


def test_quiet_and_debug(cli: Cli, base: Path, adapter: Path, tmp_path: Path) -> None:
    result = cli(
        "--quiet",
        "merge-projector",
        "--base",
        base,
        "--adapter",
        adapter,
        "--out",
        tmp_path / "out",
    )
    assert (result.code, result.err) == (0, "")
    debugged = cli("--debug", "inspect", tmp_path / "nowhere")
    assert debugged.code == 3
    assert "Traceback" in debugged.err
    assert debugged.err.splitlines()[-1].startswith("error: not-found: ")


def test_quiet_and_debug_after_the_command(cli: Cli, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    spoken = cli("set", base, "mm_hidden_size=48", "--out", copy)
    hushed = cli("set", base, "mm_hidden_size=48", "--out", tmp_path / "other", "-q")
    assert (spoken.code, hushed.code, hushed.err) == (0, 0, "")
    assert spoken.err != ""
    assert "Traceback" in cli("inspect", tmp_path / "nowhere", "--debug").err
    assert cli("inspect", base, "-q").err == ""


def test_root_options(cli: Cli) -> None:
    from vita_ckpt import __version__

    assert cli("--version").out == f"vita-ckpt, version {__version__}\n"
    for shell in ("bash", "zsh", "fish"):
        assert "_VITA_CKPT_COMPLETE" in cli("--completion", shell).out
    for arguments in (
        ["--help"],
        ["-h"],
        ["inspect", "--help"],
        ["merge-projector", "-h"],
        ["extract-projector", "-h"],
        ["apply", "-h"],
    ):
        assert cli(*arguments).out.startswith("Usage: vita-ckpt")
    assert "merge-projector" in cli().err + cli().out


def test_a_table_costs_no_import_of_metadata() -> None:
    code = (
        "import sys; from vita_ckpt.cli.render import table; print(table([['a', 1]], ['x', 'y']));"
        "assert 'importlib.metadata' not in sys.modules;"
        "import importlib.metadata; print(importlib.metadata.version('tabulate'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split() == ["x", "y"]
    assert done.stdout.splitlines()[-1][0].isdigit()
