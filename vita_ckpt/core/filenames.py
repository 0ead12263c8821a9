"""Name every file and directory that has a meaning in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.checkpoint import (
    Layout,
)

CONFIG: Final = "config.json"
SAFETENSORS: Final = "model.safetensors"
SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
TORCH: Final = "pytorch_model.bin"
TORCH_INDEX: Final = "pytorch_model.bin.index.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
NON_LORA: Final = "non_lora_trainables.bin"
STEPS: Final = "mm_projector"
# What one file in a directory makes it, in the order in which loaders prefer them.
SINGLE_FILES: Final[tuple[tuple[str, Layout], ...]] = (
    (SAFETENSORS, "safetensors"),
    (TORCH, "torch"),
)
LORA_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
RUN_FILES: Final = ("mm_projector.bin", "mm_projector.safetensors", "audio_adpter.bin")
STEP: Final = re.compile(r"checkpoint-[0-9]+", re.ASCII)
SHARD: Final = re.compile(r"-[0-9]+-of-[0-9]+\.", re.ASCII)
STEP_FILE: Final = re.compile(r"checkpoint-[0-9]+\.(bin|safetensors)", re.ASCII)
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# Files that a loader could take for weights: none of them may survive a surgery unnoticed.
WEIGHTS_OR_INDEX: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)|.*\.(safetensors|bin)\.index\.json"
    r"|adapter_config\.json",
    re.ASCII | re.IGNORECASE,
)
TRAINING_STATE: Final = re.compile(
    r"(training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth)", re.ASCII
)
# Files that a program could unpickle, by their names.
PICKLES: Final = re.compile(
    r".*\.(pkl|pickle|pck|pk|p|dill|cloudpickle|joblib|jbl|pt|pth|ckpt|bin)"
    r"|.*\.(pkl|pickle|joblib|pt|pth)\.(gz|bz2|xz|lzma|z|lz4|zst|tar)",
    re.ASCII | re.IGNORECASE,
)
# Pickles that are no weights by their names; an audio encoder's final.pt may be some.
NO_WEIGHTS: Final = re.compile(
    r".*\.(pkl|pickle|pck|pk|p|dill|cloudpickle|joblib|jbl)(\.(gz|bz2|xz|lzma|z|lz4|zst))?"
    r"|(training_args|optimizer|scheduler|scaler|rng_state|random_states).*\.(bin|pt|pth|ckpt)",
    re.ASCII | re.IGNORECASE,
)
ARRAYS: Final = re.compile(r".*\.np[yz]", re.ASCII | re.IGNORECASE)  # pickles if of objects
STALE_DIRECTORIES: Final = re.compile(r"\..*|checkpoint-[0-9]+|global_step[0-9]+", re.ASCII)


def index_of(names: Iterable[str]) -> str | None:
    """The index that says which files of a directory are its weights, if one does."""
    found = next((n for n in (SAFETENSORS_INDEX, TORCH_INDEX) if n in names), None)
    return None if found == TORCH_INDEX and SAFETENSORS in names else found


def what_it_looks_like(names: list[str]) -> str:
    """What a directory without known weights holds, for a person."""
    if not names:
        return "an empty directory"
    foreign = foreign_kind(names)
    if foreign is not None:
        return foreign
    steps = [name for name in names if STEP.fullmatch(name)]
    if steps:
        return f"a run with checkpoints in {', '.join(steps[:8])}"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


_FOREIGN: Final = (
    (r".*\.gguf", "a GGUF model (convert_hf_to_gguf made it: take what it was made of)"),
    (
        r"global_step[0-9]+|zero_to_fp32\.py|zero_pp_rank_.*|(bf16_)?zero_pp_.*",
        "a DeepSpeed checkpoint (zero_to_fp32.py in it makes weights)",
    ),
    (
        r"model-rank-[0-9]+-part-[0-9]+\.safetensors",
        "a sharded state that vLLM exported (take the checkpoint it was made of)",
    ),
    (r".*\.(distcp)|\.metadata", "a torch.distributed checkpoint (convert it first)"),
    (r"pytorch_model_fsdp.*|__[0-9]+_[0-9]+\.distcp", "an FSDP checkpoint (convert it first)"),
    (r".*\.(h5|msgpack|onnx|tflite)", "a model of another framework"),
)


def foreign_kind(names: Iterable[str]) -> str | None:
    """The kind of weights that these names in a directory tell and that is not read here."""
    listed = list(names)
    for pattern, kind in _FOREIGN:
        if any(re.fullmatch(pattern, name, re.ASCII | re.IGNORECASE) for name in listed):
            return kind
    return None


def counts_as_weights(name: str) -> bool:
    """Whether a loader could take a file of this name for weights, or an index of them."""
    is_state = TRAINING_STATE.fullmatch(name) is not None
    return not is_state and WEIGHTS_OR_INDEX.fullmatch(name) is not None
