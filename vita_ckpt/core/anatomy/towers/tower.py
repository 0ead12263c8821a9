"""The vision towers: which family names and shapes are, what upstream would build from a path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Final

Shapes = Mapping[str, tuple[int, ...]]

SIGLIP: Final = "siglip"
CLIP: Final = "clip"
EVA: Final = "eva"
INTERNVIT: Final = "internvit"

LABELS: Final[dict[str, str]] = {
    SIGLIP: "SigLIP",
    CLIP: "CLIP",
    EVA: "EVA-CLIP",
    INTERNVIT: "InternViT",
}

# In a tower's directory, and the name under which a swapped checkpoint carries the config.

# Upstream's default when the config asks for S2 and names no scales.
DEFAULT_S2_SCALES: Final = "384,768,1152"

# InternViT's pixel shuffle by 0.5 turns each 2x2 square of patches into one token.
_PIXEL_SHUFFLE: Final = 4

# Upstream looks for these in the lower-cased path, in this order, and takes the first.
_DISPATCH: Final = (
    ("sig", SIGLIP, "SiglipVisionTower"),
    ("eva", EVA, "EvaClipVisionTower"),
    ("clip", CLIP, "CLIPVisionTower"),
    ("internvit", INTERNVIT, "InternViTVisionTower"),
)

_MODEL_TYPES: Final[dict[str, str]] = {
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "intern_vit_6b": INTERNVIT,
}

# A config.json leaves out what equals the library's defaults.
_CONFIG_DEFAULTS: Final[dict[str, dict[str, int]]] = {
    SIGLIP: {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
    CLIP: {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
    INTERNVIT: {"hidden_size": 3200, "num_hidden_layers": 48, "image_size": 224, "patch_size": 14},
}

# The convolution that cuts an image into patches, in EVA-CLIP and in the other families.
_PATCHES: Final = ("patch_embed.proj.weight", "embeddings.patch_embedding.weight")

# No width, depth or image is larger; a config that says so is not believed.
_LARGEST_SIZE: Final = 1 << 20

_LAYER: Final = re.compile(r"(?:encoder\.layers|blocks)\.(\d{1,6})\.", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower as a config or as shapes describe it; None is what they do not say.

    ``width`` is the hidden size of the transformer, ``grid`` the patches along one side of the
    position table, ``image_size`` in pixels (from shapes: the size that the grid fits).
    """

    family: str
    width: int
    layers: int | None = None
    patch_size: int | None = None
    image_size: int | None = None

    @property
    def grid(self) -> int | None:
        """Patches along one side of an image."""
        if not self.patch_size or self.image_size is None:
            return None
        return self.image_size // self.patch_size

    def output_width(self, scales: int = 1) -> int:
        """Features per token that the projector receives, ``mm_hidden_size``.

        ``scales`` is the number of S2 scales (1 without S2): their features are concatenated.
        """
        return self.width * (_PIXEL_SHUFFLE if self.family == INTERNVIT else scales)

    def tokens(self, image_size: int | None = None) -> int | None:
        """Tokens per image before the projector, None where unknown or not computable upstream.

        ``image_size`` replaces the tower's own (the smallest scale of S2).
        """
        image_size = self.image_size if image_size is None else image_size
        if not self.patch_size or image_size is None:
            return None
        grid = image_size // self.patch_size
        if self.family == INTERNVIT:
            return grid * grid // _PIXEL_SHUFFLE if grid % 2 == 0 else None
        return grid * grid

    def __str__(self) -> str:
        text = f"{LABELS[self.family]}, width {self.width}"
        text += f", {self.layers} layers" if self.layers is not None else ""
        text += f", patch {self.patch_size}" if self.patch_size is not None else ""
        return text + (f", {self.image_size} px" if self.image_size is not None else "")


@dataclass(frozen=True, slots=True)
class TowerDirectory:
    """What lies where ``mm_vision_tower`` points: nothing, something unreadable, or a tower.

    ``config`` is the tower's own config (None for EVA-CLIP, which is a lone file of tensors).
    """

    path: str | None
    problem: str | None
    tower: Tower | None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What upstream's loader builds from a tower path.

    ``family`` and ``tower_class`` are None where it raises; ``reason`` says what decides.
    """

    family: str | None
    tower_class: str | None
    reason: str


def dispatch(path: str, use_s2: bool) -> Dispatch:
    """Upstream's choice of the tower class: the first substring found in the lower-cased path."""
    lowered = path.lower()
    for substring, family, tower_class in _DISPATCH:
        if substring in lowered:
            reason = f'"{substring}" in the path'
            if not use_s2:
                return Dispatch(family, tower_class, reason)
            if family == SIGLIP:
                return Dispatch(family, f"{tower_class}S2", f"{reason} and use_s2")
            return Dispatch(None, None, f"{reason}, and {LABELS[family]} has no S2: it raises")
    names = ", ".join(f'"{substring}"' for substring, _, _ in _DISPATCH)
    return Dispatch(None, None, f"none of {names} in the path: it raises")


def parse_s2_scales(text: str) -> tuple[int, ...] | None:
    """The scales of ``"384,768,1152"`` in ascending order, None if it is not such a list."""
    if not re.fullmatch(r"\s*\d{1,6}\s*(,\s*\d{1,6}\s*)*", text, re.ASCII):
        return None
    scales = tuple(sorted(int(scale) for scale in text.split(",")))
    return scales if scales[0] else None


def fits_s2_scales(tower: Tower, scales: tuple[int, ...]) -> bool:
    """Whether images of each scale, in ascending order, become whole tiles that the tower takes."""
    if not tower.patch_size or not scales:
        return False
    for scale in scales:
        side, rest = divmod(scale, -(-scale // scales[0]))
        if rest or side // tower.patch_size != tower.grid:
            return False
    return True


def tower_of_shapes(shapes: Shapes) -> Tower | None:
    """The tower that tensors of these names and shapes are, None for none of the families.

    Names may stand below any prefix: a checkpoint's tower, a standalone one from before or after
    transformers 5.6, the vision half of a CLIP or InternVL checkpoint, EVA's ``visual.*``.
    """
    eva_patches, patches = _PATCHES
    prefix = _prefix_before(shapes, eva_patches)
    if prefix is not None and f"{prefix}blocks.0.attn.q_proj.weight" in shapes:
        return _from_patches(EVA, shapes, prefix, eva_patches, positions="pos_embed", extra=1)
    prefix = _prefix_before(shapes, patches)
    if prefix is None:
        return None
    if f"{prefix}encoder.layers.0.attn.qkv.weight" in shapes:
        positions = "embeddings.position_embedding"
        return _from_patches(INTERNVIT, shapes, prefix, patches, positions=positions, extra=1)
    positions = "embeddings.position_embedding.weight"
    if f"{prefix}encoder.layers.0.self_attn.q_proj.weight" not in shapes:
        return None
    if f"{prefix}embeddings.class_embedding" in shapes:
        return _from_patches(CLIP, shapes, prefix, patches, positions=positions, extra=1)
    return _from_patches(SIGLIP, shapes, prefix, patches, positions=positions, extra=0)


def tower_prefix(shapes: Shapes) -> str:
    """What stands before the names of a tower: ``visual.``, ``vision_model.``, nothing."""
    found = (_prefix_before(shapes, name) for name in _PATCHES)
    return next((prefix for prefix in found if prefix is not None), "")


# What a VITA checkpoint puts between ``model.vision_tower.`` and a tower's own names.
STORED_PREFIXES: Final[dict[str, str]] = {
    SIGLIP: "vision_tower.vision_model.",
    CLIP: "vision_tower.vision_model.",
    EVA: "vision_tower.model.",
    INTERNVIT: "vision_tower.",
}

# What stands before them in a directory that transformers 4.41 or upstream loads a tower from.
_STANDALONE_PREFIXES: Final[dict[str, str]] = {
    SIGLIP: "vision_model.",
    CLIP: "vision_model.",
    EVA: "visual.",
    INTERNVIT: "",
}


def own_names(shapes: Shapes) -> dict[str, str]:
    """The tensors of a tower, each with its name as the tower's own transformer calls it.

    Whatever stands beside the tower (a text model, EVA-CLIP's other half) is left out, as are the
    position ids that older files store. Empty if there is no tower.
    """
    if tower_of_shapes(shapes) is None:
        return {}
    prefix = tower_prefix(shapes)
    return {
        name: name.removeprefix(prefix)
        for name in shapes
        if name.startswith(prefix) and not name.endswith("embeddings.position_ids")
    }


def stored_names(shapes: Shapes) -> dict[str, str]:
    """The tensors of a tower, each with its name below ``model.vision_tower.``."""
    tower = tower_of_shapes(shapes)
    if tower is None:
        return {}
    return {name: STORED_PREFIXES[tower.family] + own for name, own in own_names(shapes).items()}


def standalone_names(shapes: Shapes) -> dict[str, str]:
    """The tensors of a tower, each with its name in a tower directory of its own."""
    tower = tower_of_shapes(shapes)
    if tower is None:
        return {}
    return {
        name: _STANDALONE_PREFIXES[tower.family] + own for name, own in own_names(shapes).items()
    }


def tower_of_config(config: Mapping[str, Any]) -> Tower | None:
    """The tower that a tower directory's ``config.json`` describes, None for none of the families.

    A parent config (``clip``, ``siglip``, InternVL) is looked through to its ``vision_config``.
    """
    vision = config.get("vision_config")
    inner = vision if isinstance(vision, Mapping) else config
    family = next(
        (
            _MODEL_TYPES[model_type]
            for level in (inner, config)
            if (model_type := str(level.get("model_type"))) in _MODEL_TYPES
        ),
        None,
    )
    if family is None:
        return None
    sizes = {
        key: value
        if type(value := inner.get(key, default)) is int and 0 < value < _LARGEST_SIZE
        else None
        for key, default in _CONFIG_DEFAULTS[family].items()
    }
    width = sizes["hidden_size"]
    if not width:
        return None
    return Tower(
        family, width, sizes["num_hidden_layers"], sizes["patch_size"], sizes["image_size"]
    )


def model_type_of(family: str) -> str:
    """The ``model_type`` of a tower directory of SigLIP, CLIP or InternViT."""
    return next(kind for kind, f in reversed(_MODEL_TYPES.items()) if f == family)


def _prefix_before(shapes: Shapes, name: str) -> str | None:
    return next(
        (key.removesuffix(name) for key in shapes if key == name or key.endswith("." + name)),
        None,
    )


def _from_patches(
    family: str, shapes: Shapes, prefix: str, patches: str, *, positions: str, extra: int
) -> Tower | None:
    kernel = shapes[prefix + patches]
    if len(kernel) != 4 or 0 in kernel:
        return None
    width, patch_size = kernel[0], kernel[3]
    table = shapes.get(prefix + positions, ())
    grid = _square_root(table[-2] - extra) if len(table) >= 2 else None
    layers = {
        int(match[1])
        for name in shapes
        if name.startswith(prefix) and (match := _LAYER.match(name, len(prefix)))
    }
    image_size = grid * patch_size if grid is not None else None
    return Tower(family, width, max(layers, default=-1) + 1, patch_size, image_size)


def _square_root(value: int) -> int | None:
    root = isqrt(max(value, 0))
    return root if root * root == value else None


def number_of_scales(config: Mapping[str, Any]) -> int:
    """How many S2 scales a VITA config asks for: 1 without S2."""
    if config.get("use_s2") is not True:
        return 1
    scales = parse_s2_scales(str(config.get("s2_scales", DEFAULT_S2_SCALES)))
    return len(scales) if scales else 1


# Attention heads never follow from shapes: the published towers, by family, width and layers.
_PUBLISHED: Final[dict[tuple[str, int, int], dict[str, Any]]] = {
    # openai/clip-vit-base-patch16 and -patch32, openai/clip-vit-large-patch14 and -336
    (CLIP, 768, 12): {"num_attention_heads": 12, "intermediate_size": 3072},
    (CLIP, 1024, 24): {"num_attention_heads": 16, "intermediate_size": 4096},
    # google/siglip-base, -large, -so400m
    (SIGLIP, 768, 12): {"num_attention_heads": 12, "intermediate_size": 3072},
    (SIGLIP, 1024, 24): {"num_attention_heads": 16, "intermediate_size": 4096},
    (SIGLIP, 1152, 27): {"num_attention_heads": 16, "intermediate_size": 4304},
    # OpenGVLab/InternViT-300M-448px and InternViT-6B
    (INTERNVIT, 1024, 24): {
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "qkv_bias": True,
        "qk_normalization": False,
        "norm_type": "layer_norm",
    },
    (INTERNVIT, 3200, 45): {
        "num_attention_heads": 25,
        "intermediate_size": 12800,
        "qkv_bias": False,
        "qk_normalization": True,
        "norm_type": "rms_norm",
    },
}


def config_of_shapes(shapes: Shapes) -> dict[str, Any] | None:
    """The config of a tower from its tensors alone, where they determine it; else None.

    EVA-CLIP's rotary buffers give its head width; of the other families only the published towers
    are known. ``shapes`` are those of the tower, under any prefix.
    """
    tower = tower_of_shapes(shapes)
    if tower is None or tower.image_size is None or tower.patch_size is None:
        return None
    sizes = {"patch_size": tower.patch_size, "image_size": tower.image_size}
    prefix = tower_prefix(shapes)
    if tower.family == EVA:
        head = shapes.get(f"{prefix}rope.freqs_cos", ())
        mlp = shapes.get(f"{prefix}blocks.0.mlp.w1.weight", ())
        out = shapes.get(f"{prefix}head.weight", ())
        if not head or not mlp or not out or not head[-1] or tower.width % head[-1]:
            return None
        return {
            "width": tower.width,
            "layers": tower.layers,
            "mlp": mlp[0],
            "heads": tower.width // head[-1],
            "head_out": out[0],
            **sizes,
        }
    published = _PUBLISHED.get((tower.family, tower.width, tower.layers or 0))
    if published is None:
        return None
    config = {
        "model_type": model_type_of(tower.family),
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        **sizes,
        **published,
    }
    if tower.family == SIGLIP:
        config["vision_use_head"] = f"{prefix}head.probe" in shapes
    return config
