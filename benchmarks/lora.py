"""merge-lora at VITA-1.5's shapes, rank 128 on every linear, against peft's merge and save.

Usage: python benchmarks/lora.py [--dir DIR] [--runs N] [--layers N] [--vocab N] [--rank N]
[--tiny]. Values are
random, in bf16. The peer loads the language model with transformers, merges with peft's
``merge_and_unload`` and saves with ``save_pretrained``; it leaves the tower out, which is in its
favour. ``cp -r`` with ``sync`` of the base is what writing it takes at least. What is merged is
compared with the same roundings of torch's own products.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import FULL, Shapes, Spec, checkpoint_shapes, write_adapter, write_checkpoint

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PEER = """
import os, sys, torch
sys.stderr = open(os.devnull, "w")
from peft import PeftModel
from transformers import Qwen2Config, Qwen2ForCausalLM
base, run, out = sys.argv[1:]
config = Qwen2Config.from_json_file(base + "/config.json")
model = Qwen2ForCausalLM.from_pretrained(base, config=config, torch_dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, run, autocast_adapter_dtype=False)
model.merge_and_unload().save_pretrained(out)
"""
# Elements whose result may differ from torch's own product, as a share.
SHARE = 1e-3


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=FULL.layers)
    parser.add_argument("--vocab", type=int, default=FULL.vocab)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: small shapes, no claims")
    arguments = parser.parse_args()
    sizes = {"layers": arguments.layers, "vocab": arguments.vocab}
    spec = Spec() if arguments.tiny else dataclasses.replace(FULL, **sizes)
    rank = 4 if arguments.tiny else arguments.rank
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        kept = measure(Path(name), spec, rank, arguments.runs)
    return 0 if kept or arguments.tiny else 1


def build(root: Path, spec: Spec, rank: int) -> None:
    """Write a base in four shards, and a run with a delta for every linear of its layers."""
    write_checkpoint(root / "base", spec, dtype="BF16", shards=4)
    (root / "lora").mkdir()
    halves: Shapes = {}
    for name, shape in linears(spec).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        halves[f"{module}.lora_A.weight"] = (rank, shape[1])
        halves[f"{module}.lora_B.weight"] = (shape[0], rank)
    write_adapter(root / "lora" / "adapter_model.safetensors", halves, dtype="BF16", prefix="")
    for file in root.glob("*/*.safetensors"):
        draw_normal(file)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    settings |= {"target_modules": list(LEAVES), "base_model_name_or_path": "base"}
    (root / "lora" / "adapter_config.json").write_text(json.dumps(settings))


def draw_normal(file: Path) -> None:
    """Overwrite the bf16 values of a file with ones of a normal distribution, as weights have."""
    values = np.random.default_rng(len(file.name)).standard_normal(1 << 23, dtype=np.float32) * 0.02
    pool = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    with file.open("r+b") as opened:
        start = 8 + int.from_bytes(opened.read(8), "little")
        opened.seek(start)
        left = file.stat().st_size - start
        while left:
            left -= opened.write(pool[: min(left, len(pool))])


def linears(spec: Spec) -> Shapes:
    """The weights of the language model that have a delta."""
    return {
        name: shape
        for name, shape in checkpoint_shapes(spec).items()
        if name.startswith("model.layers.") and name.split(".")[-2] in LEAVES and len(shape) == 2
    }


def measure(root: Path, spec: Spec, rank: int, runs: int) -> bool:
    """Print every figure; return whether every claim holds."""
    print(machine())
    # In a process of its own: a child's peak counts what its parent held when it was forked.
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root, spec, rank))
    builder.start()
    builder.join()
    base, run = root / "base", root / "lora"
    size = sum(path.stat().st_size for path in base.iterdir())
    count = len(linears(spec))
    print(f"base {size / 1e9:.2f} GB bf16, {spec.layers} layers, {count} deltas, r {rank}")
    ours, theirs, copy = root / "ours", root / "theirs", root / "copy"
    tool = [sys.executable, "-m", "vita_ckpt", "-q", "merge-lora"]
    commands = {
        "merge-lora": [*tool, "--base", str(base), "--adapter", str(run), "--out", str(ours)],
        "peft, transformers": [sys.executable, "-c", PEER, str(base), str(run), str(theirs)],
        "cp -r, sync": ["sh", "-c", f"cp -r {base} {copy} && sync -f {copy}"],
    }
    outputs = dict(zip(commands, (ours, theirs, copy), strict=True))
    kept = root / "kept"

    def between(name: str) -> None:
        if name == "merge-lora" and not kept.exists():
            ours.rename(kept)
        else:
            shutil.rmtree(outputs[name])

    found = in_turn(commands, runs, between)
    show(found)
    merged, peer, copied = found.values()
    elements, differing, units = differences(base, run, kept, spec)
    print(
        f"  differ from torch's own product: {differing} of {elements} elements, "
        f"by at most {units} bf16 values"
    )
    return all(
        [
            claim("merge-lora / peft, s", merged.middle / peer.middle, 0.5),
            claim("merge-lora / cp -r with sync, s", merged.middle / copied.middle, 2),
            claim("merge-lora, peak MB", merged.peak / 1e6, 1000),
            claim("differing elements, share", differing / elements, SHARE),
            claim("largest difference, bf16 values", units, 1),
        ]
    )


def differences(base: Path, run: Path, merged: Path, spec: Spec) -> tuple[int, int, int]:
    """Count the elements, those that differ from torch's own, and by how many bf16 values."""
    import torch  # noqa: PLC0415 - only once all was measured

    elements = differing = units = 0
    settings = json.loads((run / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    before, after, halves = (dict(tensors(path)) for path in (base, merged, run))
    for name in linears(spec):
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = (halves[f"{module}.lora_{half}.weight"]() for half in "AB")
        delta = ((b.float() @ a.float()).bfloat16() * scale).to(torch.bfloat16)
        wanted, got = before[name]() + delta, after[name]()
        apart = (ordered(wanted) - ordered(got)).abs()
        elements += apart.numel()
        differing += int((apart != 0).sum())
        units = max(units, int(apart.max()))
    return elements, differing, units


def ordered(tensor: Any) -> Any:
    """Number the bf16 values, so that neighbours differ by one."""
    bits = tensor.view(torch_int16()).int()
    return (bits & 0x7FFF) * (1 - 2 * (bits < 0).int())


def torch_int16() -> Any:
    """Return torch's dtype of that name."""
    import torch  # noqa: PLC0415 - only once all was measured

    return torch.int16


def tensors(root: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every tensor of a directory, read when it is called."""
    from safetensors import safe_open  # noqa: PLC0415

    for file in sorted(root.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
        for name in names:
            yield name, partial(_read, file, name)


def _read(file: Path, name: str) -> Any:
    from safetensors import safe_open  # noqa: PLC0415

    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


if __name__ == "__main__":
    sys.exit(main())
