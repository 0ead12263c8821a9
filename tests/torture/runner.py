"""Runs of the command line: forked from a zygote, traced or disturbed, killed if they never end."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from fixtures.builder import Spec, write_checkpoint
from tests.torture.faults import Fault
from tests.torture.injector import Injection
from tests.torture.operations import Traced

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """How a run ended: its exit code, or minus the signal; what it said; its trace.

    Of the calls that faults were put into: ``calls``, the most of each name that a thread made, and
    how many ``failed``.
    """

    code: int
    out: str
    err: str
    timed_out: bool = False
    calls: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    trace: list[str] = field(default_factory=list)

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
        rehearsed = write_checkpoint(scratch / "rehearsed", Spec())
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.torture.zygote", str(rehearsed)],
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
        injections: Sequence[Injection] = (),
    ) -> Run:
        """A run to its end, under strace with these options, or with faults in its calls."""
        pid = self.start(argv, cwd, injections=[asdict(one) for one in injections])
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
            run = self.wait(pid)
        lines = trace.read_text().splitlines()
        trace.unlink()
        return replace(run, trace=lines)

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

    def wait(self, pid: int) -> Run:
        """How a run ended; after half a minute, or when it seems to be endless, it is killed."""
        return Run(**self._ask(wait=pid, seconds=30))

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
