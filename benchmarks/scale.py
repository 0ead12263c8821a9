"""Commands in several processes of this machine: bytes, memory, and equality with one process.

Usage: python benchmarks/scale.py [--dir DIR] [--ranks N] [--layers N] [--dtype NAME] [--only WHAT].
The language model has ``--layers`` layers of VITA-1.5's shapes, by default few enough for 10 GB in
DIR. ``--only`` is ``verify`` or ``scans``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine
from benchmarks.model import built, verify

# What differs between any two runs.
_COSTS = ("load_seconds", "pass_seconds", "peak_memory", "ranks")


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", choices=["verify", "scans"])
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        base = built(Path(name), "base", arguments.layers)
        kept = []
        if arguments.only != "scans":
            kept += pipeline(base, arguments.dtype, arguments.ranks, "cpu")
        if arguments.only != "verify":
            kept += scans(base, arguments.ranks)
    return 0 if all(kept) else 1


def scans(base: Path, size: int) -> list[bool]:
    """Each rank's share of the bytes, its memory, and that the report is one process's."""
    other = shutil.copytree(base, base.with_name("other"))
    shard = next(iter(sorted(other.glob("*.safetensors"))))
    with open(shard, "r+b") as file:  # the last tensor's last value is another
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")
    whole = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    kept = []
    for name, arguments, sides in (
        ("validate --values", ["validate", str(base), "--values", "--json"], 1),
        ("diff --values", ["diff", str(base), str(other), "--values", "--json"], 2),
    ):
        command = [sys.executable, "-m", "vita_ckpt", *arguments]
        outcomes = [measured(command, processes) for processes in (1, size)]
        (one, (alone,)), (together, ranks) = outcomes
        print(
            f"{name}, {sides} × {whole / 1e9:.2f} GB: one process {alone.seconds:.1f} s, "
            f"{alone.peak / 1e6:.0f} MB; {size} ranks {max(r.seconds for r in ranks):.1f} s"
        )
        for number, rank in enumerate(ranks):
            print(
                f"  rank {number}: read {rank.read / 1e9:.2f} GB, CPU {rank.cpu:.1f} s, peak "
                f"{rank.peak / 1e6:.0f} MB"
            )
        kept.append(claim(f"{name}: reports that differ from one process's", one != together, 0))
        most = max(rank.read for rank in ranks) / alone.read
        kept.append(claim(f"{name}: the largest share of what one reads", most, 1 / size + 0.1))
    return kept


@dataclass(frozen=True)
class Rank:
    """What a process took: seconds by the clock and of CPUs, and bytes."""

    seconds: float
    cpu: float
    read: int
    peak: int


def measured(command: list[str], size: int) -> tuple[str, list[Rank]]:
    """Run a command in ``size`` processes; return rank 0's output, and what each took."""
    started = time.perf_counter()
    found = []
    with tempfile.TemporaryFile("w+") as output:
        processes = start(command, size, output.fileno())
        for process in processes:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            counts = Path(f"/proc/{process.pid}/io").read_text().split()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - started
            cpu = usage.ru_utime + usage.ru_stime
            found.append(Rank(seconds, cpu, int(counts[1]), usage.ru_maxrss * 1024))
        output.seek(0)
        return output.read(), found


def pipeline(base: Path, dtype: str, size: int, device: str) -> list[bool]:
    """Every rank's share, and that the logits are those of one process."""
    with tempfile.TemporaryDirectory(prefix="vita-ckpt-bench-") as name:
        goldens = [Path(name) / "one", Path(name) / "ranks"]
        reports = []
        for processes, golden in zip((1, size), goldens, strict=True):
            command = [*verify(base, dtype), "--device", device, "--json"]
            command += ["--max-memory", "cpu=512MB"] if device == "cpu" else []
            reports.append(launched([*command, "--save-golden", str(golden)], processes))
        same = goldens[0].read_bytes() == goldens[1].read_bytes()
    one, report = reports
    same &= told(one) == told(report)
    whole = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    read = [rank["bytes_read"] for rank in report["ranks"]]
    print(
        f"verify on {device}, {whole / 1e9:.2f} GB, {report['dtype']}: one process "
        f"{one['pass_seconds']:.1f} s, {one['peak_memory'] / 1e9:.2f} GB; {size} ranks "
        f"{report['pass_seconds']:.1f} s"
    )
    for rank in report["ranks"]:
        print(
            f"  rank {rank['rank']}: {rank['device']}, read {rank['bytes_read'] / whole:.1%}, peak "
            f"{rank['peak_memory'] / 1e9:.2f} GB"
        )
    return [
        claim(f"{size} ranks: reports or logits that differ from one process's", not same, 0),
        claim("read by all ranks / the files", sum(read) / whole, 1.0),
    ]


def launched(command: list[str], size: int) -> dict[str, Any]:
    """Run a command in ``size`` processes with one thread each; return rank 0's report."""
    processes = start(command, size, subprocess.PIPE)
    texts = [process.communicate()[0] for process in processes]
    report: dict[str, Any] = json.loads(texts[0])
    return report


def start(command: list[str], size: int, output: int) -> list[subprocess.Popen[bytes]]:
    """Start a command in ``size`` processes with one thread each."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [
        subprocess.Popen(
            command,
            stdout=output,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(size)
    ]


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the checkpoint."""
    return {key: value for key, value in report.items() if key not in _COSTS}


if __name__ == "__main__":
    sys.exit(main())
