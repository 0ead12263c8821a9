"""convert of a language model of VITA-1.5's shapes, against cp -r and transformers' own way.

Usage: python benchmarks/convert.py [--dir DIR] [--runs N] [--layers N]. DIR takes six times the
model for a while (4.5 GB with 5 layers); the runs are interleaved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measure import claim, in_turn, machine, show
from fixtures.builder import FULL, Spec, checkpoint_config, language_model, write_checkpoint

LIBRARY = """
import os, sys, torch, transformers
base, out, dtype = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
model.save_pretrained(out, max_shard_size="2GB")
os.sync()
"""


def main() -> int:
    """Build, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="Rehearse with a tiny model.")
    arguments = parser.parse_args()
    spec = dataclasses.replace(FULL, layers=arguments.layers)
    spec = Spec() if arguments.tiny else spec
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="vita-ckpt-bench-") as name:
        return measure(Path(name), spec, arguments.runs)


def build(root: Path, spec: Spec) -> None:
    """A plain Qwen2 in bfloat16, and the same in float32."""
    for dtype in ("BF16", "F32"):
        base = write_checkpoint(
            root / dtype, spec, dtype=dtype, shards=4, only=language_model(spec)
        )
        config = {
            key: value
            for key, value in checkpoint_config(spec, dtype).items()
            if not key.startswith("mm_")
        }
        config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
        (base / "config.json").write_text(json.dumps(config))
        for name in ("generation_config.json", "tokenizer.json", "modeling_vita.py"):
            (base / name).unlink()


def measure(root: Path, spec: Spec, runs: int) -> int:
    """Print every figure; 1 if a claim does not hold."""
    print(machine())
    builder = multiprocessing.get_context("spawn").Process(target=build, args=(root, spec))
    builder.start()
    builder.join()
    out = str(root / "out")
    narrow, wide = str(root / "BF16"), str(root / "F32")
    tool = [sys.executable, "-m", "vita_ckpt", "-q", "convert"]
    sharded = ["--max-shard-size", "2GB", "--out", out]

    def clear(_name: str) -> None:
        shutil.rmtree(out)
        os.sync()

    kept: list[bool] = []
    for text, base, dtype, options, limit in (
        ("the dtype stays, other shards", narrow, "bfloat16", (), 1.5),
        ("F32 to BF16", wide, "bfloat16", ("--dtype", "bf16"), 2.0),
        ("F32 to F16", wide, "float16", ("--dtype", "f16"), 2.0),
    ):
        size = sum(path.stat().st_size for path in Path(base).iterdir())
        print(f"{text}: {size / 1e9:.2f} GB")
        found = in_turn(
            {
                "vita-ckpt convert": [*tool, base, *options, *sharded],
                "cp -r and sync": ["sh", "-c", 'cp -r "$0" "$1" && sync', base, out],
                "from_pretrained, save_pretrained": [
                    *(sys.executable, "-c", LIBRARY, base, out, dtype)
                ],
            },
            runs,
            clear,
        )
        show(found)
        ours, copied, library = found.values()
        kept += [
            claim("convert / (cp -r and sync)", ours.middle / copied.middle, limit),
            claim("convert, peak MB", ours.peak / 1e6, 300),
        ]
        print(f"       convert / transformers: {ours.middle / library.middle:.2f}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    raise SystemExit(main())
