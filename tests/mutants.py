"""Mutants of sound checkpoints, one change each, and the law that holds for all of them.

validate exits 0, explain is complete for the family's loader, and verify exits 0: all of them or
none.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.conftest import golden_cases
from vita_ckpt import Report, Verification, VitaCkptError, explain, validate, verify
from vita_ckpt.core.binding.loaders import judge_of

# Every tower family, both backbones, one file and shards; their towers are reachable.
CASES = ("A1", "A2", "A3", "A4", "A5", "A6", "U1", "U2")
# VITA's relatives: the directory's tower and the checkpoint's, as far as the cases are here.
RELATIVES = tuple(
    case.name for case in golden_cases("F12", "F13", "F16", "F2", "F3", "F7", "F10", "F14")
)
# What of a case is the checkpoint, if it is not its base.
_BASES = {"F12": "merged_by_upstream"}
# The config of a tower that lies where the checkpoint's config does not lead.
_CARRIED = {"F13": "tower-siglip/config.json"}
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
Change = Callable[[Path, Path], object]
# What each of the three has against a mutant, by its content.
Judged = dict[bytes, dict[str, set[str]]]


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
            ("unfreeze_mm_vision_tower", True),
            ("delay_load", True),
            ("continuous_training", True),
            ("mm_patch_merge_type", "spatial_unpad"),
            ("mm_vision_select_feature", "cls"),
            ("mm_vision_select_layer", -9),
            ("s2", True),
            ("num_key_value_heads", 1),
            ("head_dim", 4),
        )
    )
    if key != "mm_audio_encoder" or key not in config:  # one that is named stays reachable
        config[key] = value


# Keys that decide what a loader builds.
KEYS = (
    *("mm_vision_tower", "mm_hidden_size", "mm_projector_type", "use_s2"),
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size", "num_local_experts", "tie_word_embeddings"),
    *("mm_audio_encoder", "mm_vision_select_layer", "mm_vision_select_feature", "s2"),
    *("mm_patch_merge_type", "unfreeze_mm_vision_tower", "unfreeze_vision_tower"),
)
CONFIG_MUTATIONS = (drop_key, change_key, add_key)
DTYPE_MUTATIONS: tuple[Mutation, ...] = (integers, half)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def in_shards(base: Path, change: Callable[[dict[str, Any]], object], shards: int = 1) -> None:
    """Turn the one file into shards with an index."""
    single = base / "model.safetensors"
    tensors = load_file(single)
    single.unlink()
    weight_map: dict[str, str] = {}
    for number in range(shards):
        shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        names = list(tensors)[number::shards]
        save_file({name: tensors[name] for name in names}, base / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    index: dict[str, Any] = {"metadata": {}, "weight_map": weight_map}
    change(index)
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def put(**keys: Any) -> Change:
    """Set keys of the checkpoint's config."""
    return lambda base, _tower: edit_json(base / "config.json", lambda c: c.update(keys))


def put_in_tower(**keys: Any) -> Change:
    """Set keys of the tower's own config."""
    return lambda _base, tower: edit_json(
        tower / "config.json", lambda c: c.get("vision_config", c).update(keys)
    )


def cut_tower(_base: Path, tower: Path) -> None:
    weights = tower / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def edit_tower(tower: Path, change: Callable[[Tensors, str], object]) -> None:
    """Change a tensor of the tower's directory."""
    tensors = load_file(tower / "model.safetensors")
    change(tensors, next(name for name in tensors if name.endswith("layers.0.mlp.fc1.weight")))
    save_file(tensors, tower / "model.safetensors", {"format": "pt"})


def say_no_format(_base: Path, tower: Path) -> None:
    save_file(load_file(tower / "model.safetensors"), tower / "model.safetensors")


def stray(base: Path, *, trained: bool, only: str = "") -> None:
    """Put other values of some tensors in a file that the index does not name."""
    tensors = {n: t + 1 for n, t in load_file(base / "model.safetensors").items() if only in n}
    in_shards(base, lambda index: None)
    save_file(tensors, base / "old.safetensors", {"format": "pt"})
    edit_json(base / "config.json", lambda c: c.update(unfreeze_vision_tower=trained))


def pickle_beside(base: Path, added: int) -> None:
    tensors = load_file(base / "model.safetensors").items()
    torch.save({n: torch.from_numpy(t) + added for n, t in tensors}, base / "pytorch_model.bin")


def index_of_others(base: Path, change: Callable[[dict[str, str]], object]) -> None:
    in_shards(base, lambda index: change(index["weight_map"]), shards=2)


def swap_files(weight_map: dict[str, str]) -> None:
    first, *_, second = weight_map
    weight_map[first] = weight_map[second]


# What lies around the tensors: a change of a checkpoint and its tower, and whether it is sound.
AROUND: dict[str, tuple[Change, bool]] = {
    "cut weights of the tower": (cut_tower, False),
    "weights of the tower without their format": (say_no_format, False),
    "no weights of the tower": (lambda _, tower: (tower / "model.safetensors").unlink(), False),
    "no image processor of the tower": (
        lambda _, tower: (tower / "preprocessor_config.json").unlink(),
        False,
    ),
    "a list of channels": (put_in_tower(num_channels=[3]), False),
    "an epsilon that is a text": (put_in_tower(layer_norm_eps="1e-5"), False),
    "an unread key of the tower": (put_in_tower(attention_dropout="x"), True),
    "a stray file": (lambda base, _: stray(base, trained=False), False),
    "a stray file, the tower trained": (lambda base, _: stray(base, trained=True), False),
    "a stray file without a tower, the tower trained": (
        lambda base, _: stray(base, trained=True, only="mm_projector"),
        False,
    ),
    "the same weights pickled": (lambda base, _: pickle_beside(base, 0), True),
    "other weights pickled": (lambda base, _: pickle_beside(base, 1), False),
    "an index that names the wrong file": (
        lambda base, _: index_of_others(base, swap_files),
        False,
    ),
    "an index that names a tensor too many": (
        lambda base, _: index_of_others(base, lambda m: m.update(x=next(iter(m.values())))),
        False,
    ),
    "an index with another total_size": (
        lambda base, _: in_shards(base, lambda index: index.update(metadata={"total_size": 5})),
        False,
    ),
    "another architecture": (put(architectures=["LlamaForCausalLM"]), False),
    "no architecture": (put(architectures=None), True),
    "no type of a projector": (put(mm_projector_type=None), False),
    "a rate that is a text": (put(mm_projector_lr="2e-5"), True),
    "a flag of training that is a text": (put(tune_mm_mlp_adapter="true"), True),
    "a flag of the loader that is a text": (put(unfreeze_vision_tower="false"), False),
    "a path that is a number": (put(mm_audio_encoder=7), False),
    "the type of a plain language model": (put(model_type="qwen2"), False),
    "weights under a name that no loader looks for": (
        lambda base, _: (base / "model.safetensors").rename(base / "weights.safetensors"),
        False,
    ),
    "values that this model does not read": (
        put(attention_dropout="x", max_window_layers=None),
        True,
    ),
    "a head that is tied to nothing": (put(tie_word_embeddings=None), True),
    "a padding token that has no row": (put(pad_token_id=192), False),
    "a tokenizer that is no JSON": (
        lambda base, _: (base / "tokenizer.json").write_text("{"),
        False,
    ),
    "a quantisation without a method": (put(quantization_config={}), False),
    "an image processor that is no JSON": (
        lambda _, tower: (tower / "preprocessor_config.json").write_text("{"),
        False,
    ),
    "images of another size": (
        lambda _, tower: edit_json(tower / "preprocessor_config.json", lambda c: c.update(size=14)),
        False,
    ),
    "weights of the tower of another shape": (
        lambda _, tower: edit_tower(tower, lambda t, n: t.update({n: t[n][:1]})),
        False,
    ),
    "a tensor less of the tower": (lambda _, tower: edit_tower(tower, lambda t, n: t.pop(n)), True),
    "a carried config that nothing reads": (
        lambda base, _: (base / "vision_tower_config.json").write_text(
            '{"model_type": "siglip_vision_model", "hidden_size": "x"}'
        ),
        True,
    ),
}


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
    (source,) = golden_cases(case)
    shutil.copytree(source, root, symlinks=True, ignore=ignored)
    root.chmod(0o755)
    base = root / "base"
    base.mkdir()
    sound, beside = _base_of(source / _BASES.get(case, "base"))
    tensors: Tensors = dict(sound)
    for path in beside:
        shutil.copyfile(path, base / path.name)
    if case in _CARRIED:
        shutil.copyfile(source / _CARRIED[case], base / "vision_tower_config.json")
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


@cache
def _base_of(source: Path) -> tuple[Tensors, list[Path]]:
    """The tensors of a golden, which no mutation changes in place, and the files beside them."""
    tensors: Tensors = {}
    beside = []
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.suffix == ".bin":
            loaded = torch.load(path, weights_only=True)
            tensors |= {name: tensor.numpy() for name, tensor in loaded.items()}
        elif not path.name.endswith(".index.json") and path.is_file():
            beside.append(path)
    return tensors, beside


def errors(found: Callable[[], Report | Verification]) -> set[str]:
    try:
        return {finding.rule for finding in found().findings if finding.severity == "error"}
    except VitaCkptError as error:
        return {error.code}


def judge(base: Path) -> dict[str, set[str]]:
    """What each of the three has against a checkpoint; nothing if it is sound."""
    loader = judge_of(json.loads((base / "config.json").read_text()))
    (trace,) = (t for t in explain(base).traces if t.loader == loader)
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
    known: Judged | None = None,
) -> None:
    """Assert the law for one mutant; ``known`` are those of this case that were judged before."""
    base = mutant(case, seed, root, mutations)
    monkeypatch.chdir(root)  # the tower's path is relative
    content = b"".join(path.read_bytes() for path in sorted(base.iterdir()))
    known, key = {} if known is None else known, sha256(content).digest()
    if key not in known:
        known[key] = judge(base)
    judged = known[key]
    sound = {who for who, rules in judged.items() if not rules}
    what = mutations[seed % len(mutations)].__name__
    assert len(sound) in (0, 3), (what, {who: sorted(rules) for who, rules in judged.items()})
    if what in ("nothing", "add_harmless"):
        assert sound, judged
    if what == "drop_part" and case in CASES:  # a relative's tower may be its directory's
        assert not sound
