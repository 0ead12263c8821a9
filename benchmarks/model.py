"""verify on checkpoints of VITA-1.5's names and shapes: memory at full size, time against resident.

Usage: python benchmarks/model.py [--dir DIR] [--runs N] [--dtype NAME] [--layers N]. DIR takes
17 GB for a while. On a CPU without bfloat16 instructions a bf16 pass takes minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine, run
from fixtures.builder import FULL, write_checkpoint, write_tower

READ = """
import sys
buffer = bytearray(1 << 24)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=FULL.layers)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        root = Path(name)
        kept = [*small(root, arguments.runs, arguments.dtype)]
        shutil.rmtree(root / "small")
        kept += full(root, arguments.layers, arguments.dtype)
    return 0 if all(kept) else 1


def build(root: Path, name: str, layers: int) -> None:
    """A checkpoint with random weights and the directory of its tower beside it."""
    write_checkpoint(root / name, dataclasses.replace(FULL, layers=layers), dtype="BF16", shards=4)
    write_full_tower(root)


def write_full_tower(root: Path) -> None:
    """The tower's directory, for its config: it need not have all layers."""
    if not (root / FULL.tower.path).exists():
        write_tower(root / FULL.tower.path, dataclasses.replace(FULL.tower, layers=1))
        config = root / FULL.tower.path / "config.json"
        described = json.loads(config.read_text())
        described |= {"num_hidden_layers": FULL.tower.layers, "num_attention_heads": 16}
        config.write_text(json.dumps(described))


def built(root: Path, name: str, layers: int) -> Path:
    """Built in a process of its own: a child's peak counts what its parent held when forked."""
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root, name, layers))
    builder.start()
    builder.join()
    return root / name


def small(root: Path, runs: int, dtype: str) -> list[bool]:
    """One layer fits into memory: streamed against reading the files and a resident pass."""
    base = built(root, "small", 1)
    size = sum(path.stat().st_size for path in base.iterdir())
    print(f"verify, {size / 1e9:.2f} GB, {dtype}")
    reads, streamed, resident = [], [], []
    for _ in range(runs):
        shards = [str(path) for path in base.glob("*.safetensors")]
        reads.append(run([sys.executable, "-c", READ, *shards])[0])
        streamed.append(seconds(base, dtype, "cpu=0"))
        resident.append(seconds(base, dtype, "cpu=100GB"))
    for what, values in (
        ("reading the files", reads),
        ("pass, streamed", streamed),
        ("pass, resident", resident),
    ):
        print(f"  {what:<20} {median(values):8.2f} s  ({min(values):.2f}–{max(values):.2f})")
    ratio = median(streamed) / (median(reads) + median(resident))
    return [claim("streamed / (reading + resident pass)", ratio, 2)]


def full(root: Path, layers: int, dtype: str) -> list[bool]:
    """The whole model in less memory than its largest tensors."""
    base = built(root, "full", layers)
    size = sum(path.stat().st_size for path in base.iterdir())
    command = [*verify(base, dtype), "--device", "cpu", "--max-memory", "cpu=512MB"]
    took, peak = run(command, may_find=True)
    print(f"verify, {size / 1e9:.2f} GB, {dtype}: {took:.1f} s, peak {peak / 1e6:.0f} MB")
    return [claim("verify of the whole model, peak GB", peak / 1e9, 2)]


def seconds(base: Path, dtype: str, memory: str) -> float:
    """Seconds of the pass alone, as verify reports them."""
    command = [*verify(base, dtype), "--device", "cpu", "--max-memory", memory, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return float(json.loads(done.stdout)["pass_seconds"])


def verify(base: Path, dtype: str) -> list[str]:
    """The command; random weights may well overflow float16, which is a finding, not a failure."""
    return [sys.executable, "-m", "vita_ckpt", "verify", str(base), "--dtype", dtype]


if __name__ == "__main__":
    sys.exit(main())
