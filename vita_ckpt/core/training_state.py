"""Name what holds the state of a training run, or the weights of other programs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something that is no checkpoint: what it is called, and what makes weights of it."""

    label: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.label} ({self.remedy})"


# What turns training state into weights: said here alone, so that it changes in one place.
_WHOLE: Final = "vita-ckpt consolidate makes a checkpoint of it"
_ALL_RANKS: Final = "vita-ckpt consolidate makes a checkpoint of its directory, all ranks together"
# Said of names that promise a state where no file of one is.
_NOT_HERE: Final = "no file of it is here: copy the whole run, for vita-ckpt consolidate"
_SOURCE: Final = "take the checkpoint it was made of"
_NO_WEIGHTS: Final = "no loader of a model reads it: name the directory of the weights"

# Files and directories of a directory, the most telling first.
_DIRECTORIES: Final = (
    (r".*\.gguf", Foreign("a GGUF model", "convert_hf_to_gguf made it: take what it was made of")),
    (
        r"latest_universal|global_step[0-9]+_universal",
        Foreign(
            "training state of DeepSpeed in universal form",
            _NOT_HERE,
        ),
    ),
    (
        r"global_step[0-9]+|zero_to_fp32\.py|(bf16_)?zero_pp_.*|mp_rank_[0-9]+_model_states\.pt",
        Foreign("training state of DeepSpeed", _NOT_HERE),
    ),
    (
        r"model-rank-[0-9]+-part-[0-9]+\.safetensors",
        Foreign("a sharded state that vLLM exported", _SOURCE),
    ),
    (
        r"pytorch_model_fsdp.*|optimizer_[0-9]+",
        Foreign("training state of FSDP, as accelerate saves it", _NOT_HERE),
    ),
    (
        r".*\.distcp|\.metadata",
        Foreign("training state of torch.distributed (DCP)", _WHOLE),
    ),
    (
        r"shard-[0-9]+-model-[0-9]+-of-[0-9]+\.safetensors",
        Foreign("training state of torch.distributed, not consolidated (DCP)", _WHOLE),
    ),
    (
        r"model_world_size_[0-9]+_rank_[0-9]+\.pt",
        Foreign("training state of one file for each rank", _WHOLE),
    ),
    (r".*\.(h5|msgpack|onnx|tflite)", Foreign("a model of another framework", _SOURCE)),
)

_FILES: Final = (
    (
        r"(bf16_)?zero_pp_rank_[0-9]+_mp_rank_[0-9]+_optim_states\.pt",
        Foreign("optimiser states of one DeepSpeed rank", _ALL_RANKS),
    ),
    (
        r"zero_pp_rank_[0-9]+_mp_rank_[0-9]+_model_states\.pt|mp_rank_[0-9]+_model_states\.pt",
        Foreign("model states of a DeepSpeed checkpoint", _ALL_RANKS),
    ),
    (r".*\.distcp", Foreign("one rank's file of a torch.distributed checkpoint", _ALL_RANKS)),
    (
        r"model_world_size_[0-9]+_rank_[0-9]+\.pt",
        Foreign("one rank's part of a model", _ALL_RANKS),
    ),
    (
        r"shard-[0-9]+-model-[0-9]+-of-[0-9]+\.safetensors",
        Foreign("one rank's file of a torch.distributed checkpoint in safetensors", _ALL_RANKS),
    ),
    (
        r"optimizer(_[0-9]+)?\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth"
        r"|random_states_[0-9]+\.pkl|training_args\.bin",
        Foreign("state of a trainer: optimiser, schedule or random numbers", _NO_WEIGHTS),
    ),
)


def foreign_directory(names: Iterable[str]) -> Foreign | None:
    """Return what these names of a directory point to: training state, foreign weights, or None."""
    listed = list(names)
    for pattern, foreign in _DIRECTORIES:
        if any(re.fullmatch(pattern, name, re.ASCII | re.IGNORECASE) for name in listed):
            return foreign
    return None


def file_of_training_state(name: str) -> Foreign | None:
    """Return what training state a file of this name is; None if it is none."""
    for pattern, foreign in _FILES:
        if re.fullmatch(pattern, name, re.ASCII):
            return foreign
    return None
