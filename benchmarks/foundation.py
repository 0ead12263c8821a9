"""inspect, validate, merge-projector, swap-tower on 5 GB of VITA-1.5's shapes, against peers.

Usage: python benchmarks/foundation.py [--dir DIR] [--runs N]. DIR takes about 25 GB for a while;
inputs are random bytes, input and output lie on one file system, the runs are interleaved.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import (
    FULL,
    TowerSpec,
    mm_projector,
    write_adapter,
    write_checkpoint,
    write_tower,
)

# The shapes of google/siglip-so400m-patch14-384.
SO400M = TowerSpec("siglip", 1152, 27, 4304, 384, 14, "siglip-so400m")

USUAL_SCRIPT = """
import glob, os, shutil, sys
from safetensors import safe_open
from safetensors.torch import load_file, save_file
base, adapter, out = sys.argv[1:]
os.makedirs(out)
new = load_file(adapter)
for path in sorted(glob.glob(os.path.join(base, "*"))):
    target = os.path.join(out, os.path.basename(path))
    if not path.endswith(".safetensors"):
        shutil.copy(path, target)
        continue
    tensors = load_file(path)
    tensors.update({name: new[name] for name in tensors if name in new})
    save_file(tensors, target, metadata={"format": "pt"})
os.sync()
"""


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.runs)


def build(root: Path) -> None:
    """A 5 GB checkpoint in four shards, a tiny one, and a projector for the large one."""
    large = dataclasses.replace(FULL, layers=5)
    write_checkpoint(root / "base", large, dtype="BF16", shards=4)
    write_checkpoint(root / "small", dtype="BF16")
    shapes = mm_projector(FULL.projector, FULL.mm_hidden, FULL.hidden)
    write_adapter(root / "mm_projector.safetensors", shapes, dtype="BF16")
    write_tower(root / SO400M.name, SO400M, dtype="F32")


def measure(root: Path, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root,))
    builder.start()
    builder.join()
    base, small, adapter = root / "base", root / "small", root / "mm_projector.safetensors"
    size = sum(path.stat().st_size for path in base.iterdir())
    print(f"base: {size / 1e9:.2f} GB in {len(list(base.glob('*.safetensors')))} shards")
    tool = str(Path(sys.executable).with_name("vita-ckpt"))
    peer = [sys.executable, "-c", "import click, json"]

    print("inspect")
    found = in_turn(
        {
            "vita-ckpt inspect, 5 GB": [tool, "inspect", str(base)],
            "vita-ckpt inspect, tiny": [tool, "inspect", str(small)],
            "import click, json": peer,
        },
        max(runs, 15),
    )
    show(found)
    whole, tiny, imports = found.values()
    kept = [
        claim("inspect / import click, json", whole.middle / imports.middle, 2),
        claim("inspect, peak MB", whole.peak / 1e6, 60),
    ]
    print(f"       5 GB / tiny: {whole.middle / tiny.middle:.2f}")

    print("validate, headers and the values of the projector")
    found = in_turn(
        {
            "vita-ckpt validate, 5 GB": [tool, "validate", str(base)],
            "import click, json, numpy": [sys.executable, "-c", "import click, json, numpy"],
        },
        max(runs, 9),
    )
    show(found)
    whole, imports = found.values()
    kept += [
        claim("validate / import click, json, numpy", whole.middle / imports.middle, 5),
        claim("validate, peak MB", whole.peak / 1e6, 80),
    ]

    print("merge-projector")
    out = str(root / "out")
    merge = [tool, "-q", "merge-projector", "--base", str(base)]
    merge += ["--adapter", str(adapter), "--out", out]
    copy = ["sh", "-c", 'cp -r "$0" "$1" && sync', str(base), out]
    script = [sys.executable, "-c", USUAL_SCRIPT, str(base), str(adapter), out]

    def clear(_name: str) -> None:
        shutil.rmtree(out)
        os.sync()

    found = in_turn(
        {"vita-ckpt merge-projector": merge, "cp -r and sync": copy, "the usual script": script},
        runs,
        clear,
    )
    show(found)
    ours, copied, usual = found.values()
    kept += [
        claim("merge-projector / (cp -r and sync)", ours.middle / copied.middle, 1.2),
        claim("merge-projector, peak MB", ours.peak / 1e6, 150),
    ]
    print(f"       merge-projector / the usual script: {ours.middle / usual.middle:.2f}")

    print("swap-tower, a 1.6 GB tower in float32 into a base in bfloat16, the projector drawn anew")
    tower = str(root / SO400M.name)
    swap = [tool, "-q", "swap-tower", "--base", str(base), "--tower", tower]
    swap += ["--projector", "reinit", "--out", out]
    both = ["sh", "-c", 'mkdir "$2" && cp -r "$0" "$1" "$2" && sync', str(base), tower, out]
    found = in_turn({"vita-ckpt swap-tower": swap, "cp -r of both and sync": both}, runs, clear)
    show(found)
    ours, copied = found.values()
    kept += [
        claim("swap-tower / (cp -r of both and sync)", ours.middle / copied.middle, 1.2),
        claim("swap-tower, peak MB", ours.peak / 1e6, 150),
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
