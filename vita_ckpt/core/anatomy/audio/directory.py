"""Represent the directory of an audio encoder."""

from __future__ import annotations

from typing import Final

from vita_ckpt.core.anatomy.audio.cmvn import Cmvn
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.dataclass import dataclass

TRAIN: Final = "train.yaml"
GLOBAL_CMVN: Final = "global_cmvn"
WEIGHTS: Final = "final.pt"
# Upstream opens all three, whatever the checkpoint holds.
FILES: Final = (TRAIN, GLOBAL_CMVN, WEIGHTS)


@dataclass(frozen=True, slots=True)
class AudioDirectory:
    """What ``mm_audio_encoder`` leads to.

    ``path`` is None if it is not reachable. ``settings`` are those of its ``train.yaml`` and
    ``cmvn`` those of its ``global_cmvn``, None if they cannot be read: ``problem`` then says why.
    ``missing`` are the files that are not there.
    """

    path: str | None
    problem: str | None = None
    settings: AudioEncoder | None = None
    cmvn: Cmvn | None = None
    missing: tuple[str, ...] = ()
