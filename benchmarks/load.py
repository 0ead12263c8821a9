"""Loading against transformers' from_pretrained, and Mixtral's experts in little memory.

Usage: python benchmarks/load.py [--dir DIR] [--runs N] [--dtype NAME] [--layers N]. DIR takes 10 GB
for a while.

The peer loads a plain Qwen2 directory of VITA-1.5's layer shapes; ours is the same files, linked,
under a VITA config. Every run is a process of its own, all take turns, and time starts once
everything is imported. Mixtral 8x7B is 93 GB: its experts have their full size here, its layers are
three.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, machine, run
from benchmarks.model import verify, write_full_tower
from fixtures.builder import FULL, Spec, checkpoint_config, language_model, write_checkpoint

MIXTRAL = Spec(
    model_type="vita-mixtral",
    hidden=4096,
    mlp=14336,
    layers=3,
    heads=32,
    kv_heads=8,
    vocab=32000,
    experts=8,
    tower=FULL.tower,
)

COMMON = """
import json, resource, sys, time
import torch, transformers
from vita_ckpt import load_model
import vita_ckpt.model.load
path, dtype, memory = sys.argv[1:]
ids = torch.arange(8)[None] * 1000
started = time.perf_counter()
{load}
loaded = time.perf_counter()
with torch.inference_mode():
    logits = model(input_ids=ids).logits.float()
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(dict(load=loaded - started, run=done - loaded, peak=peak, shape=logits.shape)))
"""
OURS = COMMON.format(
    load="model = load_model(path, device='cpu', dtype=dtype, max_memory={'cpu': memory})"
)
PEER = COMMON.format(
    load="key = 'dtype' if transformers.__version__ >= '5' else 'torch_dtype'\n"
    "options = {key: getattr(torch, dtype)}\n"
    "model = transformers.AutoModelForCausalLM.from_pretrained(path, **options)"
)


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=6)
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        root = Path(name)
        kept = against_transformers(root, arguments.layers, arguments.runs, arguments.dtype)
        shutil.rmtree(root / "plain")
        shutil.rmtree(root / "vita")
        kept += mixtral(root, arguments.dtype)
    return 0 if all(kept) else 1


def build_pair(root: Path, layers: int) -> None:
    """One set of files under two configs: a plain language model, and a VITA one without vision."""
    spec = dataclasses.replace(FULL, layers=layers)
    write_checkpoint(root / "vita", spec, dtype="BF16", shards=4, only=language_model(spec))
    config = checkpoint_config(spec, "BF16")
    del config["mm_vision_tower"]
    (root / "vita" / "config.json").write_text(json.dumps(config))
    (root / "plain").mkdir()
    for path in (root / "vita").glob("model*.safetensors*"):
        os.link(path, root / "plain" / path.name)
    plain = config | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (root / "plain" / "config.json").write_text(json.dumps(plain))


def build_mixtral(root: Path) -> None:
    """A checkpoint of Mixtral's shapes with the directory of its tower beside it."""
    write_checkpoint(root / "mixtral", MIXTRAL, dtype="BF16", shards=4)
    write_full_tower(root)


def in_a_process(build: Any, *arguments: Any) -> None:
    """Built apart: a child's peak counts what its parent held when it was forked."""
    builder = multiprocessing.get_context("spawn").Process(target=build, args=arguments)
    builder.start()
    builder.join()


def against_transformers(root: Path, layers: int, runs: int, dtype: str) -> list[bool]:
    """Load and one pass of eight tokens, the files in the page cache."""
    in_a_process(build_pair, root, layers)
    size = sum(path.stat().st_size for path in (root / "plain").iterdir())
    print(f"load and one pass, {layers} layers of Qwen2.5-7B, {size / 1e9:.2f} GB, {dtype}")
    ways = {
        "from_pretrained": (PEER, "plain", ""),
        "load_model, resident": (OURS, "vita", "100GB"),
        "load_model, streamed": (OURS, "vita", "0"),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(runs + 1):  # the first is a warm-up
        for name, (code, directory, memory) in ways.items():
            command = [sys.executable, "-c", code, str(root / directory), dtype, memory]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            if turn:
                found[name].append(json.loads(done.stdout))
    middle = {
        name: {key: median(one[key] for one in said) for key in ("load", "run", "peak")}
        for name, said in found.items()
    }
    for name, said in found.items():
        both = [one["load"] + one["run"] for one in said]
        print(
            f"  {name:<22} load {middle[name]['load']:6.2f} s  pass {middle[name]['run']:6.2f} s  "
            f"both {median(both):6.2f} s ({min(both):.2f}–{max(both):.2f}, n={len(both)})  "
            f"peak {max(one['peak'] for one in said) / 1e9:.2f} GB"
        )
    peer, ours, streamed = found.values()

    def ratio(mine: list[dict[str, Any]], *keys: str) -> float:
        """The median over the turns: what slows a turn down slows all of it."""
        pairs = zip(mine, peer, strict=True)
        found = [sum(a[key] for key in keys) / sum(b[key] for key in keys) for a, b in pairs]
        return float(median(found))

    return [
        claim("load_model / from_pretrained, load", ratio(ours, "load"), 1.2),
        claim("load_model / from_pretrained, load + pass", ratio(ours, "load", "run"), 1.2),
        claim("streamed / from_pretrained, load + pass", ratio(streamed, "load", "run"), 1.2),
        claim("load_model / from_pretrained, peak", ratio(ours, "peak"), 1.2),
        claim("streamed, peak GB", middle["load_model, streamed"]["peak"] / 1e9, 2),
    ]


def mixtral(root: Path, dtype: str) -> list[bool]:
    """verify of full-size experts: one at a time is in memory."""
    in_a_process(build_mixtral, root)
    base = root / "mixtral"
    size = sum(path.stat().st_size for path in base.iterdir())
    took, peak = run([*verify(base, dtype), "--device", "cpu"], may_find=True)
    print(
        f"verify, {MIXTRAL.layers} layers of Mixtral 8x7B, {size / 1e9:.2f} GB, {dtype}: "
        f"{took:.1f} s, peak {peak / 1e6:.0f} MB"
    )
    return [claim("verify of Mixtral's experts, peak GB", peak / 1e9, 2)]


if __name__ == "__main__":
    sys.exit(main())
