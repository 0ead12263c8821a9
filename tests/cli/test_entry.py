"""Ctrl-C in the first moments, while modules are imported: one line, and nothing is left."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vita_ckpt

# Sends the signal to its own process at the moment in which a module is looked for.
HOOK = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
            for _ in range(1000):
                pass
sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "module",
    [
        "vita_ckpt.cli",
        "vita_ckpt.cli.main",
        "click",
        "click.core",
        "vita_ckpt.errors",
        "vita_ckpt.cli.commands.inspect",
        "vita_ckpt.api.inspect",
    ],
)
@pytest.mark.parametrize(
    "start", [["-m", "vita_ckpt"], ["-c", "import vita_ckpt.entry as e; e.main()"]]
)
def test_an_interrupt_of_an_import_is_one_line(
    tmp_path: Path, module: str, start: list[str], number: signal.Signals
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    root = Path(vita_ckpt.__file__).parent.parent
    checkpoint = root / "fixtures" / "golden" / "A1" / "base"
    done = subprocess.run(
        [sys.executable, *start, "inspect", str(checkpoint)],
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
            "AT": module,
            "NUMBER": str(int(number)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOOK.replace("default_int_handler", "SIG_IGN"))
    root = Path(vita_ckpt.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "vita_ckpt", "--version"],
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
            "AT": "click",
            "NUMBER": str(int(signal.SIGINT)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_entry_point_imports_little() -> None:
    code = (
        "import sys; known = {*sys.modules}; import vita_ckpt.entry; print({*sys.modules} - known)"
    )
    root = Path(vita_ckpt.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert loaded & {"typing", "enum", "signal", "importlib", "re", "click"} == set()
