"""Run a tower of transformers, limited to the layers that the features need."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from vita_ckpt.core.anatomy.families import Features
from vita_ckpt.core.anatomy.towers.family import Family
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.model.towers.base import VisionTower, check_shape_of_layers, checked, unsupported

_OWN: Final = "vision_tower."
_LEVEL: Final = "vision_model."

# The keys that determine the architecture. Others (dtype, training) are ignored.
_KEYS: Final[dict[str, type]] = {
    "hidden_size": int,
    "intermediate_size": int,
    "num_hidden_layers": int,
    "num_attention_heads": int,
    "num_channels": int,
    "image_size": int,
    "patch_size": int,
    "layer_norm_eps": float,
    "hidden_act": str,
    "vision_use_head": bool,
}
_LAYER_KEYS: Final = ("hidden_size", "num_attention_heads", "hidden_act")


class TransformersTower(VisionTower):
    """A tower of transformers under upstream's names.

    The output are hidden states, by default number -2 (UPSTREAM §3), the input of the last layer.
    No layer after the last of them is run, nor anything after the layers. A class of a family has
    its ``traits``, and the library's ``config_class`` and ``model_class``.
    """

    traits: ClassVar[Family]
    config_class: ClassVar[type[Any]]
    model_class: ClassVar[type[Any]]

    def __init__(
        self,
        config: Mapping[str, Any],
        attn: str | None,
        features: Features | None = None,
        scales: int = 1,
    ) -> None:
        features = features or Features()
        keys: dict[str, Any] = {
            key: checked(key, config[key], kind) for key, kind in _KEYS.items() if key in config
        }
        # 4.41 has only eager attention in these towers, and raises when asked for another.
        known = getattr(self.model_class, "_supports_sdpa", False)
        defaults = self.config_class()
        check_shape_of_layers(  # before 5.x raises an error of its own
            *(keys.get(key, getattr(defaults, key)) for key in _LAYER_KEYS)
        )
        full = self.config_class(**keys, attn_implementation=attn if known else "eager")
        sizes = Tower(
            self.traits.name,
            full.hidden_size,
            full.num_hidden_layers,
            full.patch_size,
            full.image_size,
        )
        states = full.num_hidden_layers + 1
        if not all(-states <= layer < states for layer in features.layers):
            got = ", ".join(map(str, features.layers))
            expected = f"hidden states of {full.num_hidden_layers} layers"
            raise unsupported("mm_vision_select_layer", expected, got)
        super().__init__(sizes, scales=scales)
        self.hidden_size *= len(features.layers)
        self.selected = features
        self.vision_tower = self.model_class(full)

    def checkpoint_name(self, name: str) -> str:
        """Return upstream's name, with the level ``vision_model.``; transformers 5.6 has none."""
        rest = name.removeprefix(_OWN)
        return name if rest.startswith(_LEVEL) else f"{_OWN}{_LEVEL}{rest}"

    def hidden_states(self, pixel_values: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, tokens (with CLS, if there is one), width] of all states."""
        body: Any = getattr(self.vision_tower, _LEVEL.rstrip("."), self.vision_tower)
        layers = body.encoder.layers
        wanted = [number % (len(layers) + 1) for number in self.selected.layers]
        hidden = self.embed(body, pixel_values)
        found = {0: hidden}
        for number, layer in enumerate(layers[: max(wanted)], 1):
            hidden = _run(layer, hidden)
            if number in wanted:
                found[number] = hidden
        states = [found[number] for number in wanted]
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def embed(self, body: Any, pixel_values: Tensor) -> Tensor:
        """Return the input of the first layer."""
        hidden: Tensor = body.embeddings(pixel_values)
        return hidden


def _run(layer: Any, hidden: Tensor) -> Tensor:
    """Run one encoder layer without masks.

    The layer takes two masks and returns a tuple in 4.41; it takes one mask in 5.x.
    """
    parameters = inspect.signature(type(layer).forward).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    masks = [None] * (len(required) - 2)
    output = layer(hidden, *masks)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result
