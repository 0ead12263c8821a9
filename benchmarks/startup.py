"""What commands take before they work, against importing click and json: CPU seconds count.

Usage: python benchmarks/startup.py [--dir DIR] [--runs N].
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import write_checkpoint

TOOL = [sys.executable, "-m", "vita_ckpt"]
# What bash sets to ask for a completion.
ASK = ["_VITA_CKPT_COMPLETE=bash_complete", "COMP_WORDS=vita-ckpt ins", "COMP_CWORD=1"]
LIMITS = {
    "--help": 1.5,
    "completion": 1.5,
    "inspect, tiny": 2,
    "verify nope": 6,
    "verify, no argument": 6,
}


def main() -> int:
    """Measure, compare; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as everywhere, what is imported is compiled
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        base = write_checkpoint(Path(name) / "base")
        found = in_turn(
            {
                "import click, json": [sys.executable, "-c", "import click, json"],
                "--help": [*TOOL, "--help"],
                "completion": ["env", *ASK, *TOOL],
                "inspect, tiny": [*TOOL, "inspect", str(base)],
                "verify nope": [*TOOL, "verify", str(Path(name) / "nope")],
                "verify, no argument": [*TOOL, "verify"],
            },
            arguments.runs,
            may_fail=True,
        )
    show(found)
    first = found["import click, json"].middle_cpu
    kept = [
        claim(f"{name} / import click, json", found[name].middle_cpu / first, limit)
        for name, limit in LIMITS.items()
    ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
