"""The values check on 4.5 GB of VITA-1.5's names and shapes, against two threads that only read.

Usage: python benchmarks/values.py [--dir DIR] [--runs N]. The files are in the page cache; the
processes are interleaved, and each says how long its own work took, its imports left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import Runs, claim, machine, run
from fixtures.builder import FULL, write_checkpoint, write_safetensors

CHECK = """
import resource, sys, time
import numpy
from vita_ckpt.api.validate import check_values
from vita_ckpt import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
started, before = time.perf_counter(), cpu()
assert check_values(checkpoint) == []
print(time.perf_counter() - started, cpu() - before)
"""
# The fastest reader that was found: large steps in turn, each read in pieces that stay in a cache,
# into pages of their own.
READ = """
import glob, mmap, os, resource, sys, threading, time
files = [os.open(path, os.O_RDONLY) for path in sorted(glob.glob(sys.argv[1] + "/*.safetensors"))]
steps = iter([(f, at) for f in files for at in range(0, os.fstat(f).st_size, 32 << 20)])
lock = threading.Lock()
def read():
    buffer = memoryview(mmap.mmap(-1, 1 << 20))
    while True:
        with lock:
            file, at = next(steps, (None, 0))
        if file is None:
            return
        end = at + (32 << 20)
        while at < end and (count := os.preadv(file, [buffer], at)):
            at += count
def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
started, before = time.perf_counter(), cpu()
threads = [threading.Thread(target=read) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(time.perf_counter() - started, cpu() - before)
"""
LARGE = (1 << 15, 1 << 15)


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.runs)


def build(root: Path) -> None:
    """A 4.5 GB checkpoint in four shards; a 2 GB tensor whose numbers go up to 511."""
    write_checkpoint(root / "usual", dataclasses.replace(FULL, layers=4), dtype="BF16", shards=4)
    (root / "large").mkdir()
    path = root / "large" / "model.safetensors"
    write_safetensors(path, {"weight": ("BF16", LARGE)}, up_to_511)


def up_to_511(_name: str, nbytes: int) -> Iterator[bytes]:
    """Random numbers, in every megabyte some from 2 on."""
    pool = bytearray(random.Random(0).randbytes(1 << 24))
    pool[1::2] = bytes(byte & 0xC3 for byte in pool[1::2])
    for _ in range(nbytes >> 24):
        yield bytes(pool)


def measure(root: Path, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root,))
    builder.start()
    builder.join()
    kept = []
    for name, limit in (("usual", 1.3), ("large", 1.3)):
        size = sum(path.stat().st_size for path in (root / name).glob("*.safetensors"))
        print(f"{TITLES[name]}: {size / 1e9:.2f} GB, load {os.getloadavg()[0]:.1f}")
        results = {"check_values": Runs(), "two threads that only read": Runs()}
        for turn in range(runs + 1):
            for script, found in zip((CHECK, READ), results.values(), strict=True):
                seconds, cpu, peak = own_seconds([sys.executable, "-c", script, str(root / name)])
                if turn:
                    found.seconds.append(seconds)
                    found.cpu.append(cpu)
                    found.peak = max(found.peak, peak)
        show_rates(results, size)
        ours, reader = results.values()
        kept.append(claim("check_values / only reading", ours.middle / reader.middle, limit))
        print(f"       the same of CPU seconds: {ours.middle_cpu / reader.middle_cpu:.2f}")
        _, bare = run([sys.executable, "-c", "import numpy"])
        kept.append(claim("peak above importing numpy, MB", (ours.peak - bare) / 1e6, 80))
    return 0 if all(kept) else 1


TITLES = {
    "usual": "weights below 2, as most are",
    "large": "numbers up to 511 in every block",
}


def show_rates(results: dict[str, Runs], size: int) -> None:
    """One line per command."""
    for name, runs in results.items():
        spread = f"{min(runs.seconds):.3f}–{max(runs.seconds):.3f}"
        print(
            f"  {name:<28} {runs.middle:7.3f} s  ({spread}, n={len(runs.seconds)})"
            f"  {size / runs.middle / 1e9:5.2f} GB/s  peak {runs.peak / 1e6:6.1f} MB"
        )


def own_seconds(command: list[str]) -> tuple[float, float, int]:
    """The two numbers that a command prints, and its peak resident bytes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    seconds, cpu = map(float, printed.split())
    return seconds, cpu, usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
