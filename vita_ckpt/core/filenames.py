"""Name every file and directory that has a meaning in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.checkpoint import Layout
from vita_ckpt.core.training_state import foreign_directory

# The name of a file may have line ends in it.
_NAME: Final = re.ASCII | re.DOTALL

CONFIG: Final = "config.json"
# Where a deployment folder of vLLM keeps VITA's config: its config.json is the server's.
ORIGIN_CONFIG: Final = "origin_config.json"
SAFETENSORS_SUFFIX: Final = ".safetensors"
SAFETENSORS: Final = "model.safetensors"
SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
TORCH: Final = "pytorch_model.bin"
TORCH_INDEX: Final = "pytorch_model.bin.index.json"
INDEX_SUFFIX: Final = ".index.json"
TORCH_INDEX_SUFFIX: Final = f".bin{INDEX_SUFFIX}"
ADAPTER_CONFIG: Final = "adapter_config.json"
NON_LORA: Final = "non_lora_trainables.bin"
STEPS: Final = "mm_projector"
# The directory of the journals of surgeries in place.
HOME: Final = ".vita-ckpt"
PROCESSOR: Final = "preprocessor_config.json"
# The config of a tower that a surgery carried into a checkpoint.
CARRIED_CONFIG: Final = "vision_tower_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
VOCABULARY: Final = "vocab.json"
ADDED_TOKENS: Final = "added_tokens.json"
# The texts of a tokenizer, which belong together.
TOKENIZER_FILES: Final = frozenset(
    {TOKENIZER, TOKENIZER_CONFIG, VOCABULARY, ADDED_TOKENS, "merges.txt"}
    | {"special_tokens_map.json", "chat_template.jinja", "chat_template.json"}
)
MODEL_CARD: Final = "README.md"
# Files of ours beside a config: what was done, and the digests of all files.
PROVENANCE: Final = "vita_ckpt.json"
MANIFEST: Final = "vita_ckpt.manifest.json"
# What one file in a directory makes it, in the order in which loaders prefer them.
SINGLE_FILES: Final[tuple[tuple[str, Layout], ...]] = (
    (SAFETENSORS, "safetensors"),
    (TORCH, "torch"),
)
LORA_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTOR_RUN: Final = "mm_projector.bin"
AUDIO_RUN: Final = "audio_adpter.bin"
RUN_FILES: Final = (PROJECTOR_RUN, "mm_projector.safetensors", AUDIO_RUN)
# What runs train, which no loader reads beside the weights of a whole model.
TRAINED_FILES: Final = (*RUN_FILES, *LORA_FILES, NON_LORA, ADAPTER_CONFIG)
GLOBAL_STEP: Final = re.compile(r"global_step[0-9]+", re.ASCII)
STEP: Final = re.compile(r"checkpoint-[0-9]+", re.ASCII)
SHARD: Final = re.compile(r"-[0-9]+-of-[0-9]+\.", re.ASCII)
_SHARD_OF: Final = re.compile(r"-[0-9]{1,9}-of-([0-9]{1,9})\.", re.ASCII)
_SAFETENSORS_FILE: Final = re.compile(r"model(-[0-9]+-of-[0-9]+)?\.safetensors", re.ASCII)
_TORCH_FILE: Final = re.compile(r"pytorch_model(-[0-9]+-of-[0-9]+)?\.bin", re.ASCII)
STEP_FILE: Final = re.compile(r"checkpoint-[0-9]+\.(bin|safetensors)", re.ASCII)
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES: Final = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
# Files that a loader could take for weights: none of them may survive a surgery unnoticed.
WEIGHTS_OR_INDEX: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)|.*\.(safetensors|bin)\.index\.json"
    r"|adapter_config\.json",
    _NAME | re.IGNORECASE,
)
TRAINING_STATE: Final = re.compile(
    r"(training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth)", _NAME
)
# What a surgery in place may write, replace or remove beside weights and their indexes.
_WRITTEN_TEXTS: Final = (
    frozenset({CONFIG, ORIGIN_CONFIG, PROCESSOR, CARRIED_CONFIG})
    | {PROVENANCE, MANIFEST, MODEL_CARD}
    | TOKENIZER_FILES
)
# What an interrupted download or copy leaves, and where the hub's client keeps its own.
PARTIAL_DOWNLOAD: Final = re.compile(
    r".*\.(incomplete|part|partial|crdownload|download|aria2|tmp)", _NAME | re.IGNORECASE
)
HUB_DOWNLOADS: Final = ".cache/huggingface/download"
# Files that a program could unpickle, by their names.
_PICKLES: Final = (
    r".*\.(pkl|pickle|pck|pk|p|dill|cloudpickle|joblib|jbl|pt|pth|ckpt|bin)"
    r"|.*\.(pkl|pickle|joblib|pt|pth)\.(gz|bz2|xz|lzma|z|lz4|zst|tar)"
)
# Pickles that are no weights by their names; an audio encoder's final.pt may be some.
_NO_WEIGHTS: Final = (
    r".*\.(pkl|pickle|pck|pk|p|dill|cloudpickle|joblib|jbl)(\.(gz|bz2|xz|lzma|z|lz4|zst|tar))?"
    r"|(training_args|optimizer|scheduler|scaler|rng_state|random_states).*\.(bin|pt|pth|ckpt)"
)
_ARRAYS: Final = r".*\.np[yz]"  # pickles if of objects
STALE_DIRECTORIES: Final = re.compile(r"\..*|checkpoint-[0-9]+|global_step[0-9]+", _NAME)


def may_be_pickle(name: str) -> bool:
    """Return whether a program could unpickle a file of this name; arrays may hold objects."""
    return re.fullmatch(f"{_PICKLES}|{_ARRAYS}", name, _NAME | re.IGNORECASE) is not None


def may_be_array(name: str) -> bool:
    """Return whether a file of this name may hold arrays of numpy."""
    return re.fullmatch(_ARRAYS, name, _NAME | re.IGNORECASE) is not None


def is_no_weight_file(name: str) -> bool:
    """Return whether a file is a pickle that holds no weights, by its name."""
    return re.fullmatch(_NO_WEIGHTS, name, _NAME | re.IGNORECASE) is not None


# What load_state_dict and from_pretrained of transformers 4.41 take for weights of torch, where a
# safetensors file says its format.
LOADED_FORMATS: Final = ("pt", "mlx")


def index_of(names: Iterable[str]) -> str | None:
    """Return the index that says which files of a directory are its weights, if one does."""
    found = next((n for n in (SAFETENSORS_INDEX, TORCH_INDEX) if n in names), None)
    return None if found == TORCH_INDEX and SAFETENSORS in names else found


def weight_files_of(names: Iterable[str]) -> list[str]:
    """Return the files that ``save_pretrained`` gives a model's weights, sorted; whole or shards.

    Those of safetensors come before pickled ones, as loaders prefer them.
    """
    listed = sorted(names)
    for pattern in (_SAFETENSORS_FILE, _TORCH_FILE):
        found = [name for name in listed if pattern.fullmatch(name)]
        if found:
            return found
    return []


def shards_in_all(name: str) -> int:
    """Return of how many files a weight file is one by its name: ``-00001-of-00004``; else 0."""
    match = _SHARD_OF.search(name)
    return int(match[1]) if match is not None else 0


def what_it_looks_like(names: list[str]) -> str:
    """Describe what a directory without known weights holds."""
    if not names:
        return "an empty directory"
    foreign = foreign_directory(names)
    if foreign is not None:
        return foreign.label
    steps = [name for name in names if STEP.fullmatch(name)]
    if steps:
        return f"a run with checkpoints in {', '.join(steps[:8])}"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def counts_as_weights(name: str) -> bool:
    """Return whether a loader could take a file of this name for weights or their index."""
    is_state = TRAINING_STATE.fullmatch(name) is not None
    return not is_state and WEIGHTS_OR_INDEX.fullmatch(name) is not None


def may_change_in_place(name: str) -> bool:
    """Return whether a surgery in place may write, replace or remove a file of this name.

    These are the weights, indexes, configs and texts of a checkpoint, in the directory itself:
    nothing hidden, nothing in a folder, and nothing that another program runs.
    """
    if name.startswith(".") or "/" in name or "\0" in name:
        return False
    try:
        name.encode("utf-8", "surrogateescape")  # what a name on the disk can be
    except UnicodeEncodeError:
        return False
    is_index = name.endswith((".safetensors.index.json", ".bin.index.json"))
    return name in _WRITTEN_TEXTS or is_index or name.endswith(WEIGHT_SUFFIXES)
