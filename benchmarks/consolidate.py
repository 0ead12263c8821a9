"""Training state: the projector and the whole model out of an 8B-shaped ZeRO-2 run.

Usage: python benchmarks/consolidate.py [--dir DIR] [--layers N] [--ranks N] [--runs N].

The state is sparse: torch.save writes its pickles and leaves holes where values would be, so that
96 GB take no room. What is read is counted by the system (rchar), what is written is real: the
whole model is written for --layers layers of the language model (all 28 take 32 GB), against a
copy of the bytes of its masters by the kernel, synced. DeepSpeed's own script is measured if the
package is installed where DEEPSPEED_PYTHON points: a Python that has it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from math import prod
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, run, show
from fixtures.builder import FULL, mm_projector
from vita_ckpt import apply, open_checkpoint, plan_extract_projector
from vita_ckpt.core.checkpoint import refs_of

HIDDEN, INNER, KEYS, VOCABULARY = 3584, 18944, 512, 152064
LAYERS = 28
VERSION = "0.19.8"


def shapes_of(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the language model of VITA-1.5 with a projector."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        front = f"model.layers.{layer}."
        shapes |= {
            f"{front}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{front}self_attn.k_proj.weight": (KEYS, HIDDEN),
            f"{front}self_attn.v_proj.weight": (KEYS, HIDDEN),
            f"{front}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{front}mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{front}mlp.up_proj.weight": (INNER, HIDDEN),
            f"{front}mlp.down_proj.weight": (HIDDEN, INNER),
            f"{front}input_layernorm.weight": (HIDDEN,),
            f"{front}post_attention_layernorm.weight": (HIDDEN,),
        }
    shapes |= {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    projector = mm_projector(FULL.projector, FULL.mm_hidden, FULL.hidden)
    return shapes | {f"model.mm_projector.{name}": shape for name, shape in projector.items()}


def write_state(root: Path, shapes: dict[str, tuple[int, ...]], ranks: int) -> None:
    """Write a sparse ZeRO-2 state of bfloat16 training with Adam."""
    step = root / "global_step1"
    step.mkdir(parents=True)
    (root / "latest").write_text(step.name)
    held = -(-sum(map(prod, shapes.values())) // (2 * ranks)) * 2
    common = {"ds_version": VERSION, "ds_config": {"zero_optimization": {"stage": 2}}}
    # Memory that is never touched takes none.
    with torch.serialization.skip_data():
        flat = torch.empty(held * ranks, dtype=torch.bfloat16)
        module, position = {}, 0
        for name, shape in shapes.items():
            module[name] = flat[position : position + prod(shape)].view(shape)
            position += prod(shape)
        states = {
            "module": module,
            "buffer_names": [],
            "param_shapes": [{name: torch.Size(shape) for name, shape in shapes.items()}],
            "frozen_param_shapes": {},
            "frozen_param_fragments": {},
            "shared_params": {},
            "dp_world_size": ranks,
            "mp_world_size": 1,
            "global_steps": 1,
            **common,
        }
        torch.save(states, step / "mp_rank_00_model_states.pt")
        for rank in range(ranks):
            masters, average, square = (torch.empty(held) for _ in range(3))
            moments = {0: {"exp_avg": average, "exp_avg_sq": square}}
            optimizer = {
                "base_optimizer_state": {"state": moments},
                "single_partition_of_fp32_groups": [masters],
                "zero_stage": 2,
                "group_paddings": [0],
                "partition_count": [ranks],
            }
            torch.save(
                {"optimizer_state_dict": optimizer, **common},
                step / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            )


def count_read(state: str, out: str, sender: multiprocessing.connection.Connection) -> None:
    """Extract the projector; send what was read for it, and of that for the headers, in bytes."""
    plan_extract_projector(state)  # imports what is imported on the way
    before = _read_by_now()
    open_checkpoint(state)
    headers = _read_by_now() - before
    apply(plan_extract_projector(state), out)
    sender.send((_read_by_now() - before - headers, headers))


def _read_by_now() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def copy(state: str, out: str) -> None:
    """Copy the bytes of the masters of a state to a file inside the kernel, and sync it."""
    refs = [r for t in open_checkpoint(state).tensors.values() for r in refs_of(t)]
    target = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    for ref in refs:
        source, offset, left = os.open(ref.source.path, os.O_RDONLY), ref.offset, ref.nbytes
        while left:
            done = os.copy_file_range(source, target, min(left, 32 << 20), offset)
            offset, left = offset + done, left - done
        os.close(source)
    os.fsync(target)


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--copy", nargs=2, metavar=("STATE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copy:
        copy(*arguments.copy)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), arguments.layers, arguments.ranks, arguments.runs)


def measure(root: Path, layers: int, ranks: int, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    spawn = multiprocessing.get_context("spawn")
    for name, count in (("whole", LAYERS), ("part", layers)):
        arguments = (root / name, shapes_of(count), ranks)
        builder = spawn.Process(target=write_state, args=arguments)
        builder.start()
        builder.join()
        size = sum(path.stat().st_size for path in (root / name).rglob("*.pt"))
        print(f"{name}: {count} layers, {ranks} ranks, {size / 1e9:.1f} GB of files")
    kept = [*_projector(root, spawn), *_whole(root, layers, runs)]
    return 0 if all(kept) else 1


def _projector(root: Path, spawn: multiprocessing.context.SpawnContext) -> list[bool]:
    masters = sum(4 * prod(shape) for n, shape in shapes_of(0).items() if "mm_projector" in n)
    receiver, sender = spawn.Pipe(duplex=False)
    out = str(root / "projector.safetensors")
    reader = spawn.Process(target=count_read, args=(str(root / "whole"), out, sender))
    started = time.perf_counter()
    reader.start()
    read, headers = receiver.recv()
    reader.join()
    seconds = time.perf_counter() - started
    print(f"projector of the whole state: {masters / 1e6:.1f} MB of masters, {seconds:.2f} s")
    print(f"       pickles, and a sample of masters and copies: {headers / 1e6:.2f} MB")
    _, peak = run([sys.executable, "-m", "vita_ckpt", "inspect", str(root / "whole")], True)
    return [
        claim("bytes read / masters of the projector", (read / masters), 1.05),
        claim("inspect of the whole state, peak MB", peak / 1e6, 300),
    ]


def _whole(root: Path, layers: int, runs: int) -> list[bool]:
    masters = sum(4 * prod(shape) for shape in shapes_of(layers).values())
    print(f"the model of {layers} layers: {masters / 1e9:.2f} GB of masters")
    state, out = str(root / "part"), str(root / "out.safetensors")
    tool = [sys.executable, "-m", "vita_ckpt", "-q", "consolidate", state, "--out", out]
    found = in_turn(
        {
            "consolidate": tool,
            "copy of the masters' bytes, synced": [
                *(sys.executable, __file__, "--copy", state, out),
            ],
        },
        runs,
        lambda _name: os.unlink(out),
    )
    show(found)
    ours, peer = found.values()
    kept = [
        claim("consolidate / copy", ours.middle / peer.middle, 1.3),
        claim("consolidate, peak MB", ours.peak / 1e6, 300),
    ]
    deepspeed = os.environ.get("DEEPSPEED_PYTHON")
    if deepspeed:
        script = "import sys; from deepspeed.utils.zero_to_fp32 import *; "
        script += "convert_zero_checkpoint_to_fp32_state_dict(*sys.argv[1:])"
        seconds, peak = run([deepspeed, "-c", script, state, str(root / "by-deepspeed")])
        print(f"  zero_to_fp32 of DeepSpeed          {seconds:8.3f} s  peak {peak / 1e6:7.1f} MB")
    else:
        print("  DeepSpeed's script: not measured, DEEPSPEED_PYTHON is not set")
    return kept


if __name__ == "__main__":
    sys.exit(main())
