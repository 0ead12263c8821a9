"""The keys of a VITA config that can be set, with the types of their values."""

from __future__ import annotations

from typing import Final

Types = tuple[type, ...]

# A key that is set can be changed without touching a weight.
VISION_KEYS: Final[dict[str, Types]] = {
    "mm_vision_tower": (str,),
    "mm_hidden_size": (int,),
    "mm_projector_type": (str,),
    "use_mm_proj": (bool,),
    "use_s2": (bool,),
    "s2_scales": (str,),
    "unfreeze_vision_tower": (bool,),
    "tune_mm_mlp_adapter": (bool,),
    "freeze_mm_mlp_adapter": (bool,),
    "mm_projector_lr": (int, float),
    "continuous_training": (bool,),
    "image_aspect_ratio": (str,),
    "tokenizer_model_max_length": (int,),
    "tokenizer_padding_side": (str,),
    "mm_audio_encoder": (str,),
    "freeze_audio_encoder": (bool,),
    "freeze_audio_encoder_adapter": (bool,),
    "tune_audio_mlp_adapter": (bool,),
    "audio_prompt_finetune": (bool,),
    "audio_prompt_num": (int,),
    "audio_state_predictor_tuning": (bool,),
}

# Keys of the language model that describe its tensors, and change only where those agree.
LANGUAGE_KEYS: Final[dict[str, Types]] = {
    "vocab_size": (int,),
    "tie_word_embeddings": (bool,),
}

# No number of a config is as large: transformers says 1e30 for a tokenizer without a limit.
LARGEST_NUMBER: Final = 10**38
