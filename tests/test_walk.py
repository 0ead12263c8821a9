"""A stranger's walk: in a fresh clone, what the README says is typed as it is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import on_a_terminal

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LATIN_1 = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "latin-1",
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files that git has or would take, with a program ``vita-ckpt``."""
    home = tmp_path_factory.mktemp("stranger")
    place = home / "vita-ckpt"
    for name in _files():
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
    program = home / "bin" / "vita-ckpt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vita_ckpt "$@"\n')
    program.chmod(0o755)
    return place


def _files() -> list[str]:
    """Return the names of the files of a clone; of an unpacked archive, all of them."""
    git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is not None and (ROOT / ".git").exists():
        listed = subprocess.run(git, check=True, capture_output=True, text=True)
        return [name for name in listed.stdout.split("\0") if name]
    walked = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(name) for name in walked if not name.parts[0].startswith(".venv")]


def typed(clone: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Type a line in the clone; nothing of this checkout is on the path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = f"{clone.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", line],
        cwd=clone,
        env={**kept, "PATH": path, "PYTHONPATH": str(clone), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def steady(text: str) -> str:
    return re.sub(r"\b\d+\.\d s\b|\bpeak [0-9.]+ [kMG]B| on (cpu|cuda:\d+),", "…", text)


def test_the_commands_of_the_readme_run_as_written(clone: Path) -> None:
    """In a row, as somebody copies them; each prints what is shown of it."""
    (block,) = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    shown = [part.partition("\n") for part in re.split(r"(?m)^\$ ", block) if part]
    assert len(shown) == 3
    shutil.rmtree(clone / "demo-out", ignore_errors=True)
    for line, _, output in shown:
        done = typed(clone, line)
        assert done.returncode == 0, (line, done.stderr)
        assert steady(done.stdout.rstrip()) == steady(output.rstrip())


def test_the_commands_in_the_text_run(clone: Path) -> None:
    """With a checkpoint for CKPT; those that ask the hub are left out."""
    lines = [
        line for line in re.findall(r"`(vita-ckpt [^`]+)`", README) if "VITA-MLLM/" not in line
    ]
    assert lines
    base, copy = clone / "fixtures/golden/A7/base", clone.parent / "copy"
    shutil.copytree(base, copy)
    for line in lines:
        words = line.replace("CKPT", shlex.quote(str(copy))).replace("PATH", "../tower")
        done = typed(clone, words)
        assert done.returncode == 0, (line, done.stderr)
    for line in (
        f"vita-ckpt inspect {base} --html {clone.parent / 'a.html'}",
        f"vita-ckpt diff {base} {copy} --html {clone.parent / 'b.html'}",
        f"vita-ckpt validate {base} --output html={clone.parent / 'c.html'}",
    ):
        done = typed(clone, line)
        assert done.returncode == 0, (line, done.stderr)


COMMANDS = (
    ("inspect", "BASE"),
    ("diff", "BASE", "ADAPTER"),
    ("validate", "BASE", "ADAPTER"),
    ("explain", "BASE"),
    ("rules",),
    ("--help",),
    ("swap-tower", "--help"),
    ("rules", "missing-tensor"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_terminal_of_this_width(command: tuple[str, ...], columns: int, clone: Path) -> None:
    """Tables and help fit; a line that is longer is a sentence, which a terminal wraps itself."""
    golden = clone / "fixtures/golden/A7"
    places = {"BASE": golden / "base", "ADAPTER": golden / "mm_projector_fp32"}
    arguments = [places.get(word, word) for word in command]
    environment = {"PYTHONPATH": str(clone), "NO_COLOR": "1"}
    code, shown, _ = on_a_terminal(*arguments, columns=columns, cwd=clone, environment=environment)
    assert code in (0, 1), shown
    assert "Traceback" not in shown
    # What is typed is not broken: an example is one line.
    lines = [line for line in shown.splitlines() if not line.startswith("    vita-ckpt ")]
    table = [line for line in lines if re.search(r"\S {2,}\S", line) or "--help" in command]
    too_wide = [line for line in table if len(line.encode("latin-1").decode("utf-8")) > columns]
    assert too_wide == []


@pytest.mark.parametrize("terminal", [True, False])
def test_in_a_latin_1_locale(terminal: bool, clone: Path) -> None:
    base = clone / "fixtures/golden/A7/base"
    words = ("inspect", base)
    if terminal:
        environment = {**LATIN_1, "PYTHONPATH": str(clone)}
        code, shown, _ = on_a_terminal(*words, cwd=clone, environment=environment)
    else:
        done = subprocess.run(
            [sys.executable, "-m", "vita_ckpt", *map(str, words)],
            cwd=clone,
            env={**os.environ, **LATIN_1, "PYTHONPATH": str(clone)},
            capture_output=True,
            check=False,
        )
        assert done.stderr == b""
        code, shown = done.returncode, done.stdout.decode("latin-1")
    assert code == 0, shown
    assert "128->64" in shown  # the arrow is spelt
    assert "·" in shown  # Latin-1 has it
    assert "\x1b[" not in shown or terminal


def test_colour_on_a_terminal_only(clone: Path) -> None:
    base = clone / "fixtures/golden/A7/base"
    environment = {"PYTHONPATH": str(clone)}
    _, shown, _ = on_a_terminal("inspect", base, cwd=clone, environment=environment)
    assert "\x1b[32myes\x1b[0m" in shown
    _, _, piped = on_a_terminal("inspect", base, stdout=False, cwd=clone, environment=environment)
    assert "\x1b[" not in piped
