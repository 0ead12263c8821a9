"""On a GPU: the goldens against the CPU, how fast weights get there, and verify at full size.

Usage: python benchmarks/gpu.py [--dir DIR] [--golden CASES] [--runs N] [--layers N]
[--device cuda|cpu]. DIR takes 17 GB for a while. CASES are goldens beside the repository's. Exit 2
where there is no GPU. The peer of loading reads the same files with two threads into pinned memory
and copies them to the GPU. The runs are interleaved, each in a process of its own, and time starts
once everything is imported and the GPU is awake. ``--device cpu`` rehearses every step with a
checkpoint of a few kilobytes and claims nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine
from benchmarks.model import built, verify
from benchmarks.scale import pipeline
from fixtures.builder import FULL, Spec, write_checkpoint, write_tower
from vita_ckpt import load_model

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"

OURS = """
import sys, time, torch, vita_ckpt.model.load
from transformers import Qwen2ForCausalLM
device = sys.argv[2]
torch.zeros(1, device=device)
started = time.perf_counter()
model = vita_ckpt.load_model(sys.argv[1], device=device)
if device != "cpu":
    torch.cuda.synchronize()
print(time.perf_counter() - started)
assert device == "cpu" or not model.streams
"""
PEER = """
import os, sys, threading, time, torch
from glob import glob
device = sys.argv[2]
cuda = device != "cpu"
torch.zeros(1, device=device)
started = time.perf_counter()
STEP, THREADS = 32 << 20, 2
pieces = []
for path in sorted(glob(sys.argv[1] + "/*.safetensors")):
    size, file = os.path.getsize(path), os.open(path, os.O_RDONLY)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    pieces += [(file, at, target[at : at + STEP]) for at in range(0, size, STEP)]
def read(number):
    buffers = [torch.empty(STEP, dtype=torch.uint8, pin_memory=cuda) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2 * cuda)] or [None, None]
    for turn, (file, at, target) in enumerate(pieces[number::THREADS]):
        buffer, event = buffers[turn % 2], copied[turn % 2]
        if cuda:
            event.synchronize()
        assert os.preadv(file, [buffer.numpy()[: len(target)]], at) == len(target)
        target.copy_(buffer[: len(target)], non_blocking=True)
        if cuda:
            event.record()
threads = [threading.Thread(target=read, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if cuda:
    torch.cuda.synchronize()
print(time.perf_counter() - started)
"""


def main() -> int:
    """Compare, build, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--golden", type=Path, default=GOLDEN)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=FULL.layers)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        return rehearse(arguments.dir, arguments.golden)
    if not torch.cuda.is_available():
        print("no GPU that torch sees: nothing was measured", file=sys.stderr)
        return 2
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"{machine()}\n{', '.join(names)}, CUDA {torch.version.cuda}")
    kept = goldens("cuda:0", arguments.golden)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        base = built(Path(name), "full", arguments.layers)
        kept += loading(base, arguments.runs, "cuda:0")
        kept += full(base, "cuda:0")
        # Two ranks on one card talk by gloo.
        kept += pipeline(base, "bfloat16", 2, "cuda:0")
    return 0 if all(kept) else 1


def rehearse(directory: Path | None, more: Path) -> int:
    """Run every step on the CPU with a tiny checkpoint: the code, not the figures."""
    print(f"{machine()}\na rehearsal on the CPU: the figures mean nothing")
    if not all(goldens("cpu", more)):
        return 1
    with tempfile.TemporaryDirectory(dir=directory, prefix="vita-ckpt-bench-") as name:
        spec = Spec()
        base = write_checkpoint(Path(name) / "tiny", spec)
        write_tower(Path(name) / spec.tower.path, spec.tower)
        loading(base, 1, "cpu")
        full(base, "cpu")
        pipelined = pipeline(base, "bfloat16", 2, "cpu")
    return 0 if all(pipelined) else 1


def goldens(device: str, more: Path) -> list[bool]:
    """Image features, embeddings and logits of every golden, in float32."""
    print(f"goldens, {device} against the CPU, float32")
    kept = []
    for case in cases(more):
        inputs = load_file(case / "inputs.safetensors")
        found = [outputs(case, inputs, place) for place in (device, "cpu")]
        worst = max(
            float(((one.cpu() - other) ** 2).sum() / (other**2).sum())
            for one, other in zip(*found, strict=True)
        )
        kept.append(claim(f"{case.name}, NMSE", worst, 1e-9))
    return kept


def cases(more: Path) -> list[Path]:
    """The cases of VITA and of its relatives, as far as they are here."""
    names = (*(f"A{number}" for number in range(1, 9)), *(f"F{number}" for number in range(1, 18)))
    places = [(GOLDEN / name, more / name) for name in names]
    found = (next((place for place in pair if place.is_dir()), None) for pair in places)
    return [place for place in found if place is not None]


def outputs(case: Path, inputs: dict[str, Tensor], device: str) -> list[Tensor]:
    """What a model makes of pictures and of text."""
    names = ("swapped_by_upstream", "base", "merged_by_upstream")
    root = next(case / name for name in names if (case / name).is_dir())
    named = json.loads((root / "config.json").read_text())["mm_vision_tower"]
    # A config may name its tower on the hub; VITA's is in the checkpoint.
    near = (case / str(named), *sorted(case.glob("tower-*")))
    tower = next((place for place in near if place.is_dir()), None)
    model = load_model(root, device=device, dtype="float32", tower=tower)
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    tiles: dict[str, Any] = {
        key: inputs[key] for key in ("tiles_per_image", "image_sizes") if key in inputs
    }
    with torch.inference_mode():
        return [
            model.encode_images(pixels),
            model.embed_multimodal(ids, pixels, **tiles),
            model(input_ids=ids, pixel_values=pixels, **tiles).logits,
            model(input_ids=inputs["text_input_ids"]).logits,
        ]


def loading(base: Path, runs: int, device: str) -> list[bool]:
    """load_model to the GPU against the peer, the files in the page cache."""
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"load to the GPU, {size / 1e9:.2f} GB")
    ways = {"load_model": OURS, "two threads, pinned": PEER}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(device == "cpu", runs + 1):  # the first warms a GPU up
        for name, code in ways.items():
            command = [sys.executable, "-c", code, str(base), device]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            if turn:
                found[name].append(float(done.stdout))
    for name, took in found.items():
        print(
            f"  {name:<20} {median(took):6.2f} s ({min(took):.2f}–{max(took):.2f}, n={len(took)})  "
            f"{size / median(took) / 1e9:.2f} GB/s"
        )
    ours, peer = (median(took) for took in found.values())
    return [claim("time of load_model / peer: 0.8x of its rate", ours / peer, 1.25)]


def full(base: Path, device: str) -> list[bool]:
    """verify from end to end; random weights may well overflow float16, which is a finding."""
    command = [*verify(base, "bfloat16"), "--device", device, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    report = json.loads(done.stdout)
    print(
        f"verify, {report['dtype']} on {report['device']}: load {report['load_seconds']:.1f} s, "
        f"pass {report['pass_seconds']:.1f} s, peak {report['peak_memory'] / 1e9:.1f} GB, "
        f"findings: {sorted({one['rule'] for one in report['findings']}) or 'none'}"
    )
    return [done.returncode in (0, 1) and not report["streamed"]]


if __name__ == "__main__":
    sys.exit(main())
