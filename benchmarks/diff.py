"""diff of two checkpoints of VITA-1.5's names and shapes, against two threads that only read both.

Usage: python benchmarks/diff.py [--dir DIR] [--runs N] [--layers N]. DIR takes 12 GB for a while.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import FULL, write_checkpoint

# A file each, a megabyte at once, as diff reads them.
READ = """
import sys
from concurrent.futures import ThreadPoolExecutor

def read(path):
    buffer = bytearray(1 << 20)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass

with ThreadPoolExecutor(2) as threads:
    list(threads.map(read, sys.argv[1:]))
"""


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.layers, arguments.runs)


def build(root: Path, layers: int) -> None:
    """A checkpoint, a copy of it, and one in which every value is another."""
    spec = dataclasses.replace(FULL, layers=layers)
    write_checkpoint(root / "base", spec, dtype="BF16", shards=4)
    shutil.copytree(root / "base", root / "copy")
    write_checkpoint(root / "other", spec, dtype="BF16", shards=4, seed=1)


def measure(root: Path, layers: int, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root, layers))
    builder.start()
    builder.join()
    base, copy, other = (str(root / name) for name in ("base", "copy", "other"))
    size = sum(path.stat().st_size for path in Path(base).iterdir())
    print(f"diff of two checkpoints of {size / 1e9:.2f} GB, BF16, files in the page cache")
    tool = [str(Path(sys.executable).with_name("vita-ckpt")), "diff", base]
    files = [str(path) for folder in (base, other) for path in Path(folder).glob("*.safetensors")]
    found = in_turn(
        {
            "two threads that read both": [sys.executable, "-c", READ, *files],
            "diff, a copy": [*tool, copy],
            "diff, every value another": [*tool, other],
            "diff --values, every value another": [*tool, other, "--values"],
        },
        runs,
    )
    show(found)
    read, same, _, values = found.values()
    print(f"       diff --values / reading, CPU: {values.middle_cpu / read.middle_cpu:.2f}")
    kept = [
        claim("diff --values / reading", values.middle / read.middle, 2.5),
        claim("diff of a copy / reading", same.middle / read.middle, 2),
        claim("diff --values, peak MB", values.peak / 1e6, 150),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
