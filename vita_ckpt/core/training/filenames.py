"""Name the files of training state."""

from __future__ import annotations

import re
from typing import Final

MODEL_STATES: Final = re.compile(
    r"(zero_pp_rank_(?P<rank>[0-9]{1,6})_)?mp_rank_(?P<mp>[0-9]{1,6})_model_states\.pt", re.ASCII
)
OPTIMIZER_STATES: Final = re.compile(
    r"(bf16_)?zero_pp_rank_(?P<rank>[0-9]{1,6})_mp_rank_(?P<mp>[0-9]{1,6})_optim_states\.pt",
    re.ASCII,
)
# Parts of layers and of experts, which pipelines and mixtures of experts write.
OF_PARALLEL: Final = re.compile(r"(layer_[0-9]+|expert_[0-9]+|.*_expert_[0-9]+_).*\.pt", re.ASCII)
# A directory of ds_to_universal: one directory for each parameter.
UNIVERSAL: Final = "zero"
METADATA: Final = ".metadata"
DISTCP: Final = re.compile(r".*\.distcp", re.ASCII)
# A file of HuggingFaceStorageWriter before it is consolidated: rank, file, files of the rank.
HF_SHARD: Final = re.compile(
    r"shard-(?P<rank>[0-9]{1,6})-model-(?P<file>[0-9]{1,6})-of-(?P<files>[0-9]{1,6})\.safetensors",
    re.ASCII,
)
# One file of each rank, as verl writes them.
DTENSOR: Final = re.compile(
    r"(?P<what>[a-z_]*?)_?world_size_(?P<ranks>[0-9]{1,6})_rank_(?P<rank>[0-9]{1,6})\.(pt|pth|bin)",
    re.ASCII,
)
UNIVERSAL_WEIGHTS: Final = "fp32.pt"
UNIVERSAL_MOMENTS: Final = ("exp_avg.pt", "exp_avg_sq.pt")

_DEFAULT_TAG: Final = re.compile(r"global_step[0-9]+", re.ASCII)


def is_default_tag(name: str) -> bool:
    """Return whether a directory is a state of DeepSpeed's, by the tag that it has by default."""
    return _DEFAULT_TAG.fullmatch(name) is not None


# Of a run, what belongs to a model beside its config: its tokenizer, its processor, its settings.
_CARRIED: Final = (
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|generation_config"
    r"|preprocessor_config|chat_template)\.json|(tokenizer|sentencepiece\.bpe|spiece)\.model"
    r"|merges\.txt|chat_template\.jinja"
)


def is_carried(name: str) -> bool:
    """Return whether a file of a run belongs to the model, whatever its weights are."""
    return re.fullmatch(_CARRIED, name, re.ASCII) is not None
