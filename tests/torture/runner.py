"""Runs of the command line: forked from a zygote, traced by strace, killed when they never end."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.torture.faults import Fault
from tests.torture.operations import Traced

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """How a run ended: its exit code, or minus the signal; what it said; its trace."""

    code: int
    out: str
    err: str
    trace: list[str] = field(default_factory=list)
    timed_out: bool = False

    @property
    def killed(self) -> bool:
        """Whether it died by SIGKILL."""
        return self.code == -signal.SIGKILL


class Runner(AbstractContextManager["Runner"]):
    """Starts runs of the command line, each a fork of one process."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        environment = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.torture.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            env=environment,
        )

    def __exit__(self, *exc: object) -> None:
        self._input.close()
        self._process.wait()
        self._output.close()

    def run(
        self,
        argv: Sequence[str],
        cwd: Path,
        *,
        strace: Sequence[str] | None = None,
        most: int = 0,
    ) -> Run:
        """A run to its end, under strace with these options; ``most`` bytes of trace are enough."""
        pid = self.start(argv, cwd)
        if strace is None:
            self.go([pid])
            return self.wait(pid)
        trace = self._scratch / f"trace-{pid}"
        with subprocess.Popen(
            ["strace", "-o", str(trace), "-p", str(pid), *strace],
            stderr=subprocess.PIPE,
            text=True,
        ) as tracer:
            assert tracer.stderr is not None
            said = tracer.stderr.readline()
            assert "attached" in said, said + tracer.stderr.read()
            self.go([pid])
            run = self.wait(pid, trace, most)
        lines = trace.read_text().splitlines()
        trace.unlink()
        return Run(run.code, run.out, run.err, lines, run.timed_out)

    def run_faulty(self, argv: Sequence[str], cwd: Path, fault: Fault) -> Run:
        """A run with a fault that comes from wrappers in it."""
        faults = {"root": str(cwd), "fault": asdict(fault), "record": None}
        pid = self.start(argv, cwd, faults=faults)
        self.go([pid])
        return self.wait(pid)

    def run_recorded(self, argv: Sequence[str], cwd: Path) -> tuple[int, list[Traced]]:
        """How many changing calls an undisturbed run makes, and what it does, by its wrappers."""
        record = self._scratch / "record"
        faults = {"root": str(cwd), "fault": None, "record": str(record)}
        pid = self.start(argv, cwd, faults=faults)
        self.go([pid])
        run = self.wait(pid)
        assert run.code == 0, run
        with open(record, "rb") as file:
            count, traced = pickle.load(file)
        record.unlink()
        return count, traced

    def start(self, argv: Sequence[str], cwd: Path, **more: Any) -> int:
        """The pid of a run that waits to go."""
        pid: int = self._ask(argv=list(argv), cwd=str(cwd), **more)["pid"]
        return pid

    def go(self, pids: Sequence[int]) -> None:
        """Let runs begin, all at once."""
        self._ask(go=list(pids))

    def wait(self, pid: int, trace: Path = Path(), most: int = 0) -> Run:
        """How a run ended; after half a minute, or with ``most`` bytes of trace, it is killed."""
        ended = self._ask(wait=pid, seconds=30, trace=(str(trace), most))
        timed_out = ended["code"] is None
        if timed_out:
            os.kill(pid, signal.SIGKILL)
            ended = self._ask(wait=pid, seconds=30, trace=("", 0))
        return Run(ended["code"], ended["out"], ended["err"], timed_out=timed_out)

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._input.write(json.dumps(request).encode() + b"\n")
        self._input.flush()
        answer: dict[str, Any] = json.loads(self._output.readline())
        return answer

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout
