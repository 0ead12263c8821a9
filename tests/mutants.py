"""Mutants of sound checkpoints, one change each, and the law that holds for all of them.

validate exits 0, explain is complete for VITA-1.5, and verify exits 0: all of them or none.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import GOLDEN
from vita_ckpt import Report, Verification, VitaCkptError, explain, validate, verify

# Every tower family, both backbones, one file and shards; their towers are reachable.
CASES = ("A1", "A2", "A3", "A4", "A5", "A6", "U1", "U2")
PARTS = ("model.vision_tower.", "model.mm_projector.", "model.layers.", "model.audio_encoder.")
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "model.", "x.")
INFIXES = ("_orig_mod", "module", "base_layer", "vision_model", "model")
STRANGERS = (
    "extra.weight",
    "model.extra.weight",
    "model.vision_tower.extra.weight",
    "model.mm_projector.9.weight",
    "model.layers.0.extra.bias",
    "model.audio_encoder.extra.weight",
)

Tensors = dict[str, np.ndarray]
Mutation = Callable[[Tensors, str, random.Random], None]


def rename(tensors: Tensors, name: str, _rng: random.Random) -> None:
    tensors[name.replace("weight", "wieght") + ("" if "weight" in name else "x")] = tensors.pop(
        name
    )


def prefix(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[rng.choice(WRAPPERS) + name] = tensors.pop(name)


def infix(tensors: Tensors, name: str, rng: random.Random) -> None:
    words = name.split(".")
    words.insert(rng.randrange(1, len(words)), rng.choice(INFIXES))
    tensors[".".join(words)] = tensors.pop(name)


def drop(tensors: Tensors, name: str, _rng: random.Random) -> None:
    del tensors[name]


def reshape(tensors: Tensors, name: str, _rng: random.Random) -> None:
    tensor = tensors[name]
    half = tensor.reshape(-1)[: max(1, tensor.size // 2)]
    whole = tensor.ndim > 0 and tensor.shape[0] > 1
    tensors[name] = np.ascontiguousarray(tensor[:-1] if whole else half)


def duplicate(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[rng.choice(("module.", "model.", "ema.")) + name] = tensors[name]


def add(tensors: Tensors, _name: str, rng: random.Random) -> None:
    tensors[rng.choice(STRANGERS)] = np.zeros((2, 2), np.float32)


def add_harmless(tensors: Tensors, _name: str, _rng: random.Random) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)


def drop_part(tensors: Tensors, name: str, _rng: random.Random) -> None:
    for other in names_like(tensors, name):
        del tensors[other]


def prefix_part(tensors: Tensors, name: str, rng: random.Random) -> None:
    wrapper = rng.choice(WRAPPERS)
    for other in names_like(tensors, name):
        tensors[wrapper + other] = tensors.pop(other)


def infix_part(tensors: Tensors, name: str, rng: random.Random) -> None:
    place = next((part for part in PARTS if name.startswith(part)), "model.")
    word = rng.choice(INFIXES)
    for other in [n for n in tensors if n.startswith(place)]:
        tensors[f"{place}{word}.{other.removeprefix(place)}"] = tensors.pop(other)


def nothing(_tensors: Tensors, _name: str, _rng: random.Random) -> None:
    """Leave the checkpoint as it is."""


MUTATIONS: tuple[Mutation, ...] = (
    nothing,
    rename,
    prefix,
    infix,
    drop,
    reshape,
    duplicate,
    add,
    add_harmless,
    drop_part,
    prefix_part,
    infix_part,
)


def integers(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = tensors[name].astype(rng.choice((np.int8, np.uint8, np.int32, np.int64)))


def half(tensors: Tensors, name: str, _rng: random.Random) -> None:
    tensors[name] = tensors[name].astype(np.float16)


def drop_key(config: dict[str, Any], rng: random.Random) -> None:
    del config[rng.choice(sorted(set(config) & set(KEYS)))]


def change_key(config: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(sorted(set(config) & set(KEYS)))
    value = config[key]
    others: list[Any] = [None, "x", [value], -1, 7, True, 1.5]
    if type(value) is int:
        others += [value * 2, value + 1, 0]
    config[key] = rng.choice([other for other in others if other != value])


def add_key(config: dict[str, Any], rng: random.Random) -> None:
    key, value = rng.choice(
        (
            ("mm_audio_encoder", "audio"),
            ("audio_prompt_finetune", True),
            ("use_s2", True),
            ("tie_word_embeddings", True),
            ("unfreeze_vision_tower", True),
            ("mm_projector_type", "linear"),
            ("num_key_value_heads", 1),
            ("head_dim", 4),
        )
    )
    config[key] = value


# Keys that decide what a loader builds.
KEYS = (
    *("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "use_s2"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "num_local_experts", "tie_word_embeddings"),
    "mm_audio_encoder",
)
CONFIG_MUTATIONS = (drop_key, change_key, add_key)
DTYPE_MUTATIONS: tuple[Mutation, ...] = (integers, half)


def names_like(tensors: Mapping[str, object], name: str) -> list[str]:
    """The names of the part that a name belongs to."""
    place = next((part for part in PARTS if name.startswith(part)), "")
    return [n for n in tensors if n.startswith(place)] if place else [name]


def mutant(
    case: str, seed: int, root: Path, mutations: Sequence[Callable[..., None]] = MUTATIONS
) -> Path:
    """A copy of a golden with one change."""
    rng = random.Random(f"{case} {seed}")
    ignored = shutil.ignore_patterns("expected*", "inputs*", "base")
    shutil.copytree(GOLDEN / case, root, symlinks=True, ignore=ignored)
    base = root / "base"
    base.mkdir()
    tensors: Tensors = {}
    for path in sorted((GOLDEN / case / "base").iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.name != "model.safetensors.index.json" and path.is_file():
            shutil.copy(path, base)
    mutation = mutations[seed % len(mutations)]
    if mutation in CONFIG_MUTATIONS:
        config = json.loads((base / "config.json").read_text())
        mutation(config, rng)
        (base / "config.json").write_text(json.dumps(config))
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
        return base
    there = [part for part in PARTS if any(name.startswith(part) for name in tensors)]
    place = rng.choice((*there, ""))
    name = rng.choice(sorted(n for n in tensors if n.startswith(place)))
    mutation(tensors, name, rng)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def errors(found: Callable[[], Report | Verification]) -> set[str]:
    try:
        return {finding.rule for finding in found().findings if finding.severity == "error"}
    except VitaCkptError as error:
        return {error.code}


def judge(base: Path) -> dict[str, set[str]]:
    """What each of the three has against a checkpoint; nothing if it is sound."""
    (trace,) = (t for t in explain(base).traces if t.loader == "vita-1.5")
    return {
        "validate": errors(lambda: validate(base)),
        "explain": set() if trace.outcome == "complete" else {trace.stopped_by or trace.outcome},
        "verify": errors(lambda: verify(base, device="cpu")),
    }


def holds(
    case: str,
    seed: int,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutations: Sequence[Callable[..., None]] = MUTATIONS,
) -> None:
    base = mutant(case, seed, root, mutations)
    monkeypatch.chdir(root)  # the tower's path is relative
    judged = judge(base)
    sound = {who for who, rules in judged.items() if not rules}
    what = mutations[seed % len(mutations)].__name__
    assert len(sound) in (0, 3), (what, {who: sorted(rules) for who, rules in judged.items()})
    if what in ("nothing", "add_harmless"):
        assert sound, judged
    if what == "drop_part":
        assert not sound
