"""Start ``vita-ckpt`` in several processes that a launcher's variables make one run."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import Result
from tests.forker import ROOT, Fork, Forker

# One thread each: the number of threads changes the last digits of logits.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# What a rank sets before it imports torch.
_SILENT = {"TORCH_CPP_LOG_LEVEL": "FATAL"}


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


class Ranks(Forker):
    """A process that has imported torch, of which ranks are forks."""

    def __init__(self) -> None:
        super().__init__("warm_for_torch", environment={**ENVIRONMENT, **_SILENT})

    @contextmanager
    def started(
        self, size: int, *arguments: object, command: str = "verify", missing: int | None = None
    ) -> Iterator[list[Fork]]:
        """Start every rank but ``missing``, and leave none behind."""
        port = free_port()
        processes: list[Fork] = []
        try:
            for rank in range(size):
                if rank != missing:
                    environment = {**ENVIRONMENT, **variables(rank, size, port)}
                    processes.append(self.start([command, *arguments], environment=environment))
            yield processes
        finally:
            for process in processes:
                process.kill()

    def launched(self, size: int, *arguments: object, command: str = "verify") -> list[Result]:
        """Run all ranks to their end."""
        with self.started(size, *arguments, command=command) as processes:
            return results(processes)

    def alone(self, *arguments: object, command: str = "verify") -> Result:
        """Run one process."""
        return self.run([command, *arguments], environment=ENVIRONMENT)

    def assert_alike(self, size: int, command: str, *arguments: object) -> str:
        """Return what one process says, which ``size`` of them say too, the first alone."""
        one = self.alone(*arguments, command=command)
        first, *others = self.launched(size, *arguments, command=command)
        assert (first.code, first.out, first.err) == (one.code, one.out, one.err)
        assert {(other.code, other.out, other.err) for other in others} == {(one.code, "", "")}
        return one.out


def results(processes: Sequence[Fork], seconds: float = 120) -> list[Result]:
    """Wait for processes, and return what each of them did."""
    return [process.result(seconds) for process in processes]


def wait_for_weights(process: Fork, file: Path, seconds: float = 180) -> None:
    """Wait until a process has mapped a file of weights."""
    deadline = time.monotonic() + seconds
    while str(file) not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
