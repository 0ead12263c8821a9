"""The vision towers in torch: one door for all four families, S2 included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vita_ckpt.core.anatomy.towers.tower import CLIP, EVA, INTERNVIT, LABELS, SIGLIP
from vita_ckpt.errors import InputError
from vita_ckpt.model.towers.base import VisionTower
from vita_ckpt.model.towers.clip import ClipTower, SiglipTower
from vita_ckpt.model.towers.eva import EvaTower
from vita_ckpt.model.towers.internvit import InternViTTower
from vita_ckpt.model.towers.s2 import SiglipS2Tower

__all__ = ["VisionTower", "build_tower"]


def build_tower(
    family: str,
    config: Mapping[str, Any],
    *,
    s2_scales: Sequence[int] | None = None,
    attn: str | None = None,
) -> VisionTower:
    """A tower in eval mode and in the default dtype, its weights not set.

    ``family`` is one of ``core.anatomy.towers`` and decides alone: upstream also builds what the
    path says, whatever the config is. ``config`` is the tower directory's ``config.json`` (a
    parent's ``vision_config`` is used); for EVA, which has none, ``width``, ``layers``, ``mlp``,
    ``heads``, ``patch_size``, ``image_size`` and ``head_out``, by default upstream's fixed sizes.
    Keys that are left out have the defaults of the library (upstream's, for InternViT).

    ``s2_scales`` are pixels, in any order, and ask for SigLIP's S2 variant. ``attn`` is
    ``"eager"`` or one of the library's other attention implementations; None is the library's
    choice. Where a family knows no other it is eager.

    Builds on the meta device too; keep buffers real there
    (``accelerate.init_empty_weights(include_buffers=False)``).

    Raises InputError: ``unknown-tower-family``, ``s2-needs-siglip``, ``odd-patch-grid``,
    ``unsupported-tower-config``, ``s2-scales-do-not-fit-tower``.
    """
    inner = config.get("vision_config")
    sizes = inner if isinstance(inner, Mapping) else config
    tower = _build(family, sizes, s2_scales, attn)
    tower.eval()
    return tower


def _build(
    family: str, sizes: Mapping[str, Any], scales: Sequence[int] | None, attn: str | None
) -> VisionTower:
    if family not in LABELS:
        raise InputError(
            "unknown-tower-family", family, expected=f"one of {', '.join(LABELS)}", got=family
        )
    if scales is not None:
        if family != SIGLIP:
            raise InputError(
                "s2-needs-siglip",
                "use_s2",
                expected="a SigLIP tower",
                got=LABELS[family],
                hint="set use_s2 to false, or swap in a SigLIP tower",
            )
        return SiglipS2Tower(sizes, scales, attn)
    builders: dict[str, Callable[[Mapping[str, Any], str | None], VisionTower]] = {
        SIGLIP: SiglipTower,
        CLIP: ClipTower,
        EVA: EvaTower,
        INTERNVIT: InternViTTower,
    }
    return builders[family](sizes, attn)
