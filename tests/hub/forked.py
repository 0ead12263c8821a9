"""Command lines in forks of one process that has imported what they import: starting costs little.

Each is a process of its own: with its environment, which huggingface_hub reads when it is imported,
its working directory, and the end of an interpreter.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType

from tests.conftest import Result

_LONGEST = 120  # seconds


class Forker:
    """The process that is forked."""

    def __init__(self, warnings: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *warnings, "-c", "from tests.hub.forked import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Forker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], said: Path
    ) -> Result:
        """Run the command line; what it says lies below the directory ``said`` meanwhile."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = said / "out", said / "err"
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environment": dict(environment),
            "out": str(out),
            "err": str(err),
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Result(code, out.read_text(), err.read_text())


def serve() -> None:
    """Fork for every request, wait for the command line to end, and say how it did."""
    _warm()
    for line in iter(sys.stdin.buffer.readline, b""):
        pid = os.fork()
        if pid == 0:
            _become(**json.loads(line))
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _warm() -> None:
    import huggingface_hub  # noqa: F401
    from huggingface_hub import HfApi, hf_hub_download, utils  # noqa: F401

    for package in ("core", "storage", "storage.hub", "surgery", "checks", "api", "cli"):
        for module in pkgutil.iter_modules(import_module(f"vita_ckpt.{package}").__path__):
            import_module(f"vita_ckpt.{package}.{module.name}")
    # What it is made of stays; it is imported anew, with the environment of each run.
    for name in [n for n in sys.modules if n.split(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a fork has no need to look at all that again


def _become(
    arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str
) -> None:
    from vita_ckpt.cli.main import main

    signal.alarm(_LONGEST)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # somebody may have asked while it was warmed
    for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o600), descriptor)
    main(arguments)
