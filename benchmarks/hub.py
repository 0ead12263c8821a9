"""What the hub has to send: for inspect, for a projector and for a tower, of VITA-1.5's shapes.

Usage: python benchmarks/hub.py [--dir DIR] [--layers N]. DIR takes about 8 GB for a while. The hub
is a server on loopback that counts the bytes of the bodies it sends; the language model has fewer
layers than the real one, all shapes and the vision tower are full. Then `inspect` of 4 and of 400
shards: the rounds of requests, none of which waits for another of its round, and the seconds that
it takes where every answer takes 50 ms.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine
from fixtures.builder import FULL, mm_projector, vision_tower, write_checkpoint
from fixtures.hub_server import HubServer

ROOT = Path(__file__).parent.parent
FIRST = 1 << 16  # bytes of a weight file that are read at once
QUIET = 0.2  # seconds without a request, after which a round is answered
LATENCY = 0.05  # seconds
SMALL_FILES = ("config.json", "model.safetensors.index.json")
RUN = "from vita_ckpt.cli.main import main; main()"


def main() -> int:
    """Build, serve, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.layers)


def measure(root: Path, layers: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(f"{machine()}, huggingface_hub {version('huggingface_hub')}")
    spec = dataclasses.replace(FULL, layers=layers)
    base = write_checkpoint(root / "base", spec, dtype="BF16", shards=4)
    size = sum(path.stat().st_size for path in base.iterdir())
    headers = sum(header_of(path) for path in base.glob("*.safetensors"))
    configs = sum((base / name).stat().st_size for name in SMALL_FILES)
    projector = sum(
        2 * product(s) for s in mm_projector(spec.projector, spec.mm_hidden, spec.hidden).values()
    )
    tower = sum(2 * product(s) for s in vision_tower(spec.tower).values())
    print(f"base: {size / 1e9:.2f} GB; headers {headers:,} B, configs and index {configs:,} B")
    print(f"projector {projector:,} B, tower {tower:,} B")
    with HubServer() as hub:
        hub.add("org/vita", base)
        run = Run(hub, root)
        run(["inspect", "hf://org/vita"])
        heads = sum(max(header_of(path), FIRST) for path in base.glob("*.safetensors"))
        kept = [claim("inspect, large files / (headers, at least 64 kB)", run.large / heads, 1.0)]
        told = heads + configs + run.listing
        kept.append(claim("inspect, all / (these, configs, listing)", run.sent / told, 1.02))
        kept.append(rounds(run, "org/vita", 4, 4))
        hub.add("org/many", many_shards(root / "many", 400))
        kept.append(rounds(run, "org/many", 400, 12))
        run(["extract-projector", "--from", "hf://org/vita", "--out", str(root / "p.bin")])
        kept.append(
            claim(
                "extract-projector, all / (projector + headers)",
                run.sent / (projector + headers),
                1.02,
            )
        )
        config = root / "tower.json"
        config.write_text(TOWER_CONFIG)
        extract = ["extract-tower", "--from", "hf://org/vita", "--tower-config", str(config)]
        run([*extract, "--out", str(root / "tower")])
        kept.append(
            claim("extract-tower, all / (tower + headers)", run.sent / (tower + headers), 1.02)
        )
    return 0 if all(kept) else 1


def rounds(run: Run, name: str, shards: int, most: int) -> bool:
    """Count the rounds of an inspect, and take its time at a latency."""
    run.hub.quiet, run.hub.rounds = QUIET, 0
    run(["inspect", f"hf://{name}"])
    counted = run.hub.rounds
    run.hub.quiet = 0
    without = run(["inspect", f"hf://{name}"])
    run.hub.latency = LATENCY
    seconds = run(["inspect", f"hf://{name}"])
    run.hub.latency = 0
    print(f"  {shards} shards: {seconds:.2f} s at {LATENCY * 1000:.0f} ms, {without:.2f} s at none")
    return claim(f"inspect of {shards} shards, rounds of requests", counted, most)


def many_shards(root: Path, shards: int) -> Path:
    """A checkpoint of small tensors in so many files, with headers of a usual length."""
    root.mkdir()
    weight_map: dict[str, str] = {}
    for shard in range(1, shards + 1):
        name = f"model-{shard:05}-of-{shards:05}.safetensors"
        held = {
            f"model.layers.{shard}.block_sparse_moe.experts.{n}.w1.weight": np.zeros(
                256, np.float32
            )
            for n in range(100)
        }
        save_file(held, root / name, {"format": "pt"})
        weight_map |= dict.fromkeys(held, name)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "config.json").write_text('{"model_type": "vita-Mixtral"}')
    return root


class Run:
    """Commands in processes of their own, and what the hub sent to the last of them."""

    def __init__(self, hub: HubServer, root: Path) -> None:
        self.hub = hub
        self.environment = hub.environment(root / "home", PYTHONPATH=str(ROOT))
        self.sent = self.large = self.listing = 0

    def __call__(self, arguments: list[str]) -> float:
        """Run a command, which must succeed; return the seconds."""
        self.hub.seen.clear()
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", RUN, "-q", *arguments],
            env=self.environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - started
        seen = self.hub.seen
        self.sent = sum(one.sent for one in seen)
        self.large = sum(one.sent for one in seen if one.large)
        self.listing = sum(one.sent for one in seen if one.path.startswith("/api/"))
        print(f"  {arguments[0]:<20} {self.sent:>13,} B in {len(seen)} answers, {seconds:.2f} s")
        return seconds


TOWER_CONFIG = """{"model_type": "intern_vit_6b", "hidden_size": 1024, "num_hidden_layers": 24,
"intermediate_size": 4096, "num_attention_heads": 16, "image_size": 448, "patch_size": 14,
"norm_type": "layer_norm", "qk_normalization": false, "qkv_bias": true}
"""


def header_of(path: Path) -> int:
    """Bytes of a safetensors file up to its data."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def product(shape: tuple[int, ...]) -> int:
    """Elements of a shape."""
    size = 1
    for side in shape:
        size *= side
    return size


if __name__ == "__main__":
    sys.exit(main())
