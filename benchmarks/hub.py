"""What the hub has to send: for inspect, for a projector and for a tower, of VITA-1.5's shapes.

Usage: python benchmarks/hub.py [--dir DIR] [--layers N]. DIR takes about 8 GB for a while. The hub
is a server on loopback that counts the bytes of the bodies it sends; the language model has fewer
layers than the real one, all shapes and the vision tower are full.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine
from fixtures.builder import FULL, mm_projector, vision_tower, write_checkpoint
from fixtures.hub_server import HubServer

ROOT = Path(__file__).parent.parent
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
        kept = [claim("inspect, large files / headers", run.large / headers, 1.02)]
        told = headers + configs + run.listing
        kept.append(claim("inspect, all / (headers, configs, listing)", run.sent / told, 1.02))
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


class Run:
    """Commands in processes of their own, and what the hub sent to the last of them."""

    def __init__(self, hub: HubServer, root: Path) -> None:
        self.hub = hub
        self.environment = hub.environment(root / "home", PYTHONPATH=str(ROOT))
        self.sent = self.large = self.listing = 0

    def __call__(self, arguments: list[str]) -> None:
        """Run a command, which must succeed."""
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
