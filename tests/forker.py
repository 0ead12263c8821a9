"""Command lines in forks of one process that has imported what they import: starting costs little.

Each is a process of its own: with its environment, which huggingface_hub reads when it is imported,
its working directory, and the end of an interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import Result
from tests.forked import LONGEST

ROOT = Path(__file__).parent.parent
_Self = TypeVar("_Self", bound="Forker")


class Fork:
    """A command line that was started."""

    def __init__(self, forker: Forker, pid: int, folder: Path, encoding: str) -> None:
        self.pid = pid
        self._forker = forker
        self._folder = folder
        self._encoding = encoding
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, or minus the signal that ended it, or None while it runs."""
        return self._ended(0)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def result(self, seconds: float = LONGEST) -> Result:
        """Wait for its end, and return what it did."""
        code = self._ended(seconds)
        assert code is not None, f"it runs for more than {seconds} s"
        out, err = self._folder / "out", self._folder / "err"
        said = out.read_text(self._encoding) if out.exists() else ""
        return Result(code, said, err.read_text(self._encoding))

    def _ended(self, seconds: float) -> int | None:
        if self._code is None:
            self._code = self._forker.ask(wait=self.pid, seconds=seconds)
        return self._code


class Forker:
    """The process that is forked.

    ``warm`` is the function of ``tests.forked`` that imports what the runs import. The interpreter
    starts with the options ``warnings`` and with ``environment``; its streams have ``encoding``.
    """

    def __init__(
        self,
        warm: str = "warm",
        *,
        warnings: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        self._encoding = encoding
        self._said = tempfile.TemporaryDirectory()
        self._number = 0
        program = f"from tests.forked import serve, {warm}; serve({warm})"
        self._process = subprocess.Popen(
            [sys.executable, *warnings, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()
        self._said.cleanup()

    def start(
        self,
        arguments: Sequence[object],
        *,
        program: str | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        out: str | None = None,
    ) -> Fork:
        """Start the command line, or the Python of ``program``.

        What it prints goes to the device ``out``, if that is given.
        """
        self._number += 1
        folder = Path(self._said.name) / str(self._number)
        folder.mkdir()
        pid = self.ask(
            # In bytes, as a program is given them.
            arguments=[os.fsencode(str(argument)).hex() for argument in arguments],
            program=program,
            cwd=str(cwd or Path.cwd()),
            environment=dict(os.environ if environment is None else environment),
            out=out or str(folder / "out"),
            err=str(folder / "err"),
        )
        assert pid is not None
        return Fork(self, pid, folder, self._encoding)

    def run(self, arguments: Sequence[object], **options: Any) -> Result:
        """Run the command line to its end."""
        return self.start(arguments, **options).result()

    def ask(self, **request: Any) -> int | None:
        """Send a request to the process, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer
