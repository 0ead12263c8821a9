"""List the language models that VITA is built on, by the ``model_type`` of their config."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Backbone:
    """A VITA model class and the language model below it."""

    model_type: str
    architecture: str
    loader_name: str  # upstream's --model_type
    language_model: str
    plain_model_type: str  # model_type of the same language model without vision


BACKBONES: Final[dict[str, Backbone]] = {
    backbone.model_type: backbone
    for backbone in (
        Backbone("vita-Qwen2", "VITAQwen2ForCausalLM", "qwen2p5_instruct", "Qwen2", "qwen2"),
        Backbone(
            "vita-fo-Qwen2", "VITAFOQwen2ForCausalLM", "qwen2p5_fo_instruct", "Qwen2", "qwen2"
        ),
        # LUCY's name for the same classes.
        Backbone("vita-qwen2", "VITAQwen2ForCausalLM", "qwen2p5_instruct", "Qwen2", "qwen2"),
        Backbone("vita-mixtral", "VITAMixtralForCausalLM", "mixtral-8x7b", "Mixtral", "mixtral"),
        Backbone("vita-Mistral", "VITAMistralForCausalLM", "nemo", "Mistral", "mistral"),
    )
}
