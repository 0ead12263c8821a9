"""verify on several processes of this machine: bytes and memory of each, equality with one process.

Usage: python benchmarks/scale.py [--dir DIR] [--ranks N] [--layers N] [--dtype NAME]. The language
model has ``--layers`` layers of VITA-1.5's shapes, by default few enough for 5 GB in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
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
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        base = built(Path(name), "base", arguments.layers)
        kept = pipeline(base, arguments.dtype, arguments.ranks, "cpu")
    return 0 if all(kept) else 1


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
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    processes = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
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
    texts = [process.communicate()[0] for process in processes]
    report: dict[str, Any] = json.loads(texts[0])
    return report


def told(report: dict[str, Any]) -> dict[str, Any]:
    """What a report says of the checkpoint."""
    return {key: value for key, value in report.items() if key not in _COSTS}


if __name__ == "__main__":
    sys.exit(main())
