"""In place: a 55 MB projector into 5 GB and into 15.9 GB of VITA-1.5's shapes, and back.

Usage: python benchmarks/in_place.py [--dir DIR] [--runs N]. DIR takes about 22 GB for a while;
inputs are random bytes. The peer is dd with conv=fsync of twice the projector, on the same file
system in the same turn: what an undo journal must write at least.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import FULL, mm_projector, write_adapter, write_checkpoint

SECONDS_OVER = 0.5


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.runs)


def build(root: Path) -> None:
    """Both checkpoints in four shards, and a projector for either."""
    write_checkpoint(root / "5 GB", dataclasses.replace(FULL, layers=5), dtype="BF16", shards=4)
    write_checkpoint(root / "16 GB", FULL, dtype="BF16", shards=4)
    shapes = mm_projector(FULL.projector, FULL.mm_hidden, FULL.hidden)
    write_adapter(root / "mm_projector.safetensors", shapes, dtype="BF16")


def measure(root: Path, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root,))
    builder.start()
    builder.join()
    adapter = root / "mm_projector.safetensors"
    nbytes = adapter.stat().st_size
    for name in ("5 GB", "16 GB"):
        size = sum(path.stat().st_size for path in (root / name).iterdir())
        print(f"{name}: {size / 1e9:.2f} GB, projector {nbytes / 1e6:.1f} MB")
    tool = str(Path(sys.executable).with_name("vita-ckpt"))
    commands: dict[str, list[str]] = {}
    for name in ("5 GB", "16 GB"):
        base = str(root / name)
        merge = [tool, "-q", "merge-projector", "--base", base, "--adapter", str(adapter)]
        commands[f"merge in place, {name}"] = [*merge, "--in-place"]
        commands[f"undo, {name}"] = [tool, "undo", base]
    scratch = str(root / "scratch")
    commands["dd conv=fsync of 2 x 55 MB"] = [
        *("dd", "status=none", "if=/dev/zero", f"of={scratch}", "bs=1M"),
        *(f"count={2 * nbytes >> 20}", "conv=fsync"),
    ]
    found = in_turn(commands, runs)
    show(found)
    small, small_undo, large, large_undo, dd = found.values()
    limit = 3 * dd.middle + SECONDS_OVER
    print(f"       3 x dd + {SECONDS_OVER} s: {limit:.3f} s")
    kept = [
        claim("merge in place: 16 GB less 5 GB, s", large.middle - small.middle, 0.15),
        claim("merge in place, 16 GB / (3 x dd + 0.5 s)", large.middle / limit, 1),
        claim("undo: 16 GB less 5 GB, s", large_undo.middle - small_undo.middle, 0.15),
        claim("undo, 16 GB / (3 x dd + 0.5 s)", large_undo.middle / limit, 1),
        claim("merge in place, peak MB", large.peak / 1e6, 150),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
