"""inspect, validate and diff of 100,000 tensors, against json.loads of their headers.

Usage: python benchmarks/many_tensors.py [--dir DIR] [--runs N]. CPU seconds of whole processes
count; of the peer those for two checkpoints beside diff, which reads two.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import Spec, write_checkpoint

PARSE = """
import json, sys
from pathlib import Path
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    with open(path, "rb") as file:
        json.loads(file.read(int.from_bytes(file.read(8), "little")))
"""
TOOL = [sys.executable, "-m", "vita_ckpt"]
# By Mixtral's names: 32 layers of 1,040 experts with three matrices each.
MANY = dataclasses.replace(Spec(), model_type="vita-mixtral", layers=32, experts=1040)
# How many checkpoints a command reads, and what it may take.
LIMITS = {"inspect": (1, 5), "validate": (1, 8), "diff, a copy": (2, 10)}


def main() -> int:
    """Build, measure, compare; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        base, copy = Path(name) / "base", Path(name) / "copy"
        write_checkpoint(base, MANY, dtype="BF16", shards=4)
        shutil.copytree(base, copy)
        found = in_turn(
            {
                "json.loads of the headers": [sys.executable, "-c", PARSE, str(base)],
                "inspect": [*TOOL, "inspect", str(base)],
                "validate": [*TOOL, "validate", str(base)],
                "diff, a copy": [*TOOL, "diff", str(base), str(copy)],
            },
            arguments.runs,
            may_fail=True,
        )
    show(found)
    parse = found["json.loads of the headers"].middle_cpu
    kept = [
        claim(f"{name} / json.loads", found[name].middle_cpu / (parse * read), limit)
        for name, (read, limit) in LIMITS.items()
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
