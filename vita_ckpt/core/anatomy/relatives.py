"""List the multimodal models that are known by name alone: how each is recognised, and its parts.

A relative is a whole model of none of the :mod:`~vita_ckpt.core.anatomy.families`. Its tower and
its projector can be taken out of it; nothing is put into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from typing import Any, Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import family_of
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.dataclass import dataclass

_Prefixes = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Relative:
    """A family of multimodal models.

    ``model_types`` maps what its configs call it to the ``model_type`` of the plain language model
    in it, empty where that depends on the config. ``classes`` are what ``architectures`` starts
    with, ``keys`` are keys of a config that only this family has. ``marks`` are prefixes of names:
    a model that has all of one group is of this family whatever its config says. ``prefixes`` give
    the part of a tensor where VITA's do not, ``wrapper`` stands before every name, and
    ``language_prefixes`` map the beginning of a language model's names to that of a plain one's.
    """

    name: str
    label: str
    model_types: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    marks: tuple[tuple[str, ...], ...] = ()
    prefixes: _Prefixes = ()
    wrapper: str = ""
    language_prefixes: Mapping[str, str] = field(default_factory=dict)

    def part_of(self, name: str) -> str:
        """Return the part that a tensor of this model belongs to."""
        bare = name.removeprefix(self.wrapper)
        for prefix, part in self.prefixes:
            if bare.startswith(prefix):
                return part
        return parts.part_of(bare)

    def plain_name(self, name: str) -> str:
        """Return the name that a tensor of the language model has in a plain language model."""
        bare = name.removeprefix(self.wrapper)
        for prefix, plain in self.language_prefixes.items():
            if bare.startswith(prefix):
                return plain + bare.removeprefix(prefix)
        return bare

    def plain_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config of the language model alone."""
        for key in ("text_config", "llm_config"):
            inner = config.get(key)
            if isinstance(inner, Mapping):
                return inner
        plain = self.model_types.get(str(config.get("model_type")))
        kept = {key: value for key, value in config.items() if not key.startswith("mm_")}
        return {**kept, "model_type": plain} if plain else kept


_LANGUAGE, _TOWER, _PROJECTOR = parts.LANGUAGE_MODEL, parts.VISION_TOWER, parts.MM_PROJECTOR

_HF: Final = Relative(
    "llava-hf",
    "LLaVA of transformers (llava-hf)",
    dict.fromkeys(
        (
            "llava_next",
            "llava_onevision",
            "llava_next_video",
            "video_llava",
            "vipllava",
            "internvl",
        ),
        "",
    ),
    classes=(
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "VideoLlavaForConditionalGeneration",
        "VipLlavaForConditionalGeneration",
        "InternVLForConditionalGeneration",
    ),
    marks=(("multi_modal_projector.",), ("model.multi_modal_projector.",)),
    prefixes=(
        ("language_model.", _LANGUAGE),
        ("vision_tower.", _TOWER),
        ("multi_modal_projector.", _PROJECTOR),
        ("model.language_model.", _LANGUAGE),
        ("model.vision_tower.", _TOWER),
        ("model.multi_modal_projector.", _PROJECTOR),
    ),
    language_prefixes={"model.language_model.": "model.", "language_model.": ""},
)

# In the order in which they are asked: a family that is told by its names comes before one that
# uses VITA's.
RELATIVES: Final = (
    Relative(
        "vita-e",
        "VITA-E (a robot's policy around a VITA model)",
        {"gr00t_n1": "qwen2"},
        classes=("GR00T_N1",),
        marks=(("vita_model.",),),
        wrapper="vita_model.",
    ),
    Relative(
        "internvl-chat",
        "InternVL-chat",
        {"internvl_chat": ""},
        classes=("InternVLChatModel",),
        marks=(("vision_model.", "mlp1."),),
        prefixes=(("vision_model.", _TOWER), ("mlp1.", _PROJECTOR), ("language_model.", _LANGUAGE)),
        language_prefixes={"language_model.": ""},
    ),
    Relative(
        "tinyllava",
        "TinyLLaVA",
        {"tinyllava": "", "tiny_llava_phi": "phi", "tiny_llava_stablelm": "stablelm"},
        classes=("TinyLlava",),
        marks=(("connector._connector.",), ("vision_tower._vision_tower.",)),
        prefixes=(
            ("vision_tower.", _TOWER),
            ("connector.", _PROJECTOR),
            ("language_model.", _LANGUAGE),
        ),
        language_prefixes={"language_model.": ""},
    ),
    _HF,
    Relative(
        "long-vita",
        "Long-VITA",
        {"long_vita": "qwen2"},
        classes=("LongVITA",),
        marks=(("model.vision_model.", "model.vision_projection."),),
        prefixes=(("model.vision_model.", _TOWER), ("model.vision_projection.", _PROJECTOR)),
    ),
    Relative(
        "vita-audio",
        "VITA-Audio",
        {"qwen2_mtp": "qwen2", "qwen2_mtp_sensevoice": "qwen2"},
        classes=("Qwen2MTP",),
        marks=(("model.mtp_",), ("mtp_",), ("model.mtp.",)),
        prefixes=(
            ("model.audio_model.", parts.AUDIO_ENCODER),
            ("audio_model.", parts.AUDIO_ENCODER),
        ),
    ),
    Relative("bunny", "Bunny on a language model that is not known", classes=("Bunny",)),
    Relative(
        "llava-mpt",
        "LLaVA on MPT",
        {"llava_mpt": "mpt"},
        classes=("LlavaMpt",),
        prefixes=(
            ("transformer.mm_projector.", _PROJECTOR),
            ("transformer.vision_tower.", _TOWER),
            ("transformer.", _LANGUAGE),
        ),
    ),
    Relative(
        "llava", "LLaVA on a language model that is not known", {"llava": ""}, classes=("Llava",)
    ),
)

# Most names of a layer begin alike: what marks a family is looked for in fewer of them.
_LONGEST_MARK: Final = max(
    len(mark) for family in RELATIVES for group in family.marks for mark in group
)

# Names that say what a part is in models of any family.
_LANGUAGE_COMPONENTS: Final = frozenset({"embed_tokens", "wte", "tok_embeddings"})
# Where models of an unknown family usually keep their parts.
_USUAL: Final = tuple(
    (f"{before}{module}.", part)
    for before in ("", "model.")
    for module, part in (
        ("language_model", _LANGUAGE),
        ("llm", _LANGUAGE),
        ("vision_tower", _TOWER),
        ("vision_model", _TOWER),
        ("visual", _TOWER),
        ("vpm", _TOWER),
        ("mm_projector", _PROJECTOR),
        ("multi_modal_projector", _PROJECTOR),
    )
)
_VISION_COMPONENTS: Final = frozenset(
    {
        "vision_tower",
        "vision_model",
        "vision_encoder",
        "visual",
        "vpm",
        "mm_projector",
        "multi_modal_projector",
    }
)


def relative_of(config: Mapping[str, Any] | None, names: Iterable[str] = ()) -> Relative | None:
    """Return what a model is that no family's loader reads; None for one of a family, and others.

    ``config`` is that of a whole model or of a run. ``names`` are those of the tensors: they decide
    where the config does not. A config that names VITA's class is VITA's whatever it calls itself.
    """
    listed = tuple(names)
    beginnings = {name[:_LONGEST_MARK] for name in listed}
    by_names = next((family for family in RELATIVES if _is_marked(family, beginnings)), None)
    if by_names is not None or config is None:
        return by_names
    if family_of(config) is not None:
        return None
    model_type, classes = str(config.get("model_type")), _classes(config)
    if any(name.startswith(_HF.classes) for name in classes):
        return _HF
    for family in RELATIVES:
        if model_type in family.model_types or any(c.startswith(family.classes) for c in classes):
            return family
    if model_type.startswith(("bunny-", "qwen2_mtp")):
        wanted = "bunny" if model_type.startswith("bunny-") else "vita-audio"
        return next(family for family in RELATIVES if family.name == wanted)
    return _unknown(config, listed)


def _is_marked(family: Relative, names: Collection[str]) -> bool:
    return any(
        all(any(name.startswith(mark) for name in names) for mark in group)
        for group in family.marks
    )


def _classes(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("architectures")
    return [c for c in listed if isinstance(c, str)] if isinstance(listed, list) else []


def _unknown(config: Mapping[str, Any], names: tuple[str, ...]) -> Relative | None:
    """Return a family of its own for a whole multimodal model whose type is none that is known."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type or of_plain_type(model_type):
        return None
    found: set[str] = set()
    for name in names:
        found.update(name.split("."))
    if not (found & _LANGUAGE_COMPONENTS and found & _VISION_COMPONENTS):
        return None
    label = f"a multimodal model of an unknown family, {model_type!r}"
    return Relative("unknown", label, prefixes=_USUAL)
