"""Start ``vita-ckpt`` in several processes that a launcher's variables make one run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Result

ROOT = Path(__file__).parent.parent
# One thread each: the number of threads changes the last digits of logits.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


Process = subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what a launcher sets for one of its processes."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def started(
    size: int, *arguments: object, command: str = "verify", missing: int | None = None
) -> Iterator[list[Process]]:
    """Start every rank but ``missing``, and leave none behind."""
    port = free_port()
    processes: list[Process] = []
    try:
        for rank in range(size):
            if rank != missing:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "vita_ckpt", command, *map(str, arguments)],
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        env={**ENVIRONMENT, **variables(rank, size, port)},
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def results(processes: Sequence[Process], seconds: float = 120) -> list[Result]:
    """Wait for processes, and return what each of them did."""
    done = [process.communicate(timeout=seconds) for process in processes]
    return [
        Result(process.returncode, *texts) for process, texts in zip(processes, done, strict=True)
    ]


def launched(size: int, *arguments: object, command: str = "verify") -> list[Result]:
    """Run all ranks to their end."""
    with started(size, *arguments, command=command) as processes:
        return results(processes)


def alone(*arguments: object, command: str = "verify") -> Result:
    """Run one process."""
    done = subprocess.run(
        [sys.executable, "-m", "vita_ckpt", command, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def wait_for_weights(process: Process, file: Path, seconds: float = 180) -> None:
    """Wait until a process has mapped a file of weights."""
    deadline = time.monotonic() + seconds
    while str(file) not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)


def assert_alike(size: int, command: str, *arguments: object) -> str:
    """Return what one process says, which ``size`` of them say too, the first alone."""
    one = alone(*arguments, command=command)
    first, *others = launched(size, *arguments, command=command)
    assert (first.code, first.out, first.err) == (one.code, one.out, one.err)
    assert {(other.code, other.out, other.err) for other in others} == {(one.code, "", "")}
    return one.out
