"""Load the models that a verification runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.binding.result import Binding
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.progress import OnProgress
from vita_ckpt.model.load import StrPath, load_bound, load_model
from vita_ckpt.model.pipeline import load_stage
from vita_ckpt.model.placement import free_memory, offered
from vita_ckpt.model.verification.watch import Loading, sizes_of
from vita_ckpt.model.vita import VitaModel
from vita_ckpt.model.weights import Observer
from vita_ckpt.storage.reading.paths import Stores

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks


@dataclass(frozen=True)
class Loads:
    """The models that a verification runs, one after the other: of ranks, this one's stage."""

    subject: Subject
    bound: Binding
    against: Checkpoint | None
    device: str
    dtype: str | None
    tower: StrPath | None
    attn: str | None
    max_memory: Mapping[Any, int | str]
    on_progress: OnProgress
    stores: Stores
    ranks: Ranks | None

    def checkpoint(self, kind: torch.dtype, observe: Observer | None = None) -> VitaModel:
        """Load the checkpoint that is verified."""
        return load_stage(self.ranks, partial(self._checkpoint, kind, observe))

    def in_float16(self) -> VitaModel:
        """Load it once more, as upstream runs it."""
        watch = Loading(sizes_of(self.subject.checkpoint), self.on_progress, "float16")
        return self.checkpoint(torch.float16, watch)

    def base(self) -> VitaModel:
        """Load the checkpoint that it is compared with."""
        return load_stage(self.ranks, self._base)

    def _checkpoint(self, kind: torch.dtype, observe: Observer | None) -> VitaModel:
        return load_bound(
            self.subject.checkpoint,
            self.subject.surroundings,
            self.bound,
            offered(self.device, self.max_memory, torch.cuda.device_count(), self._free),
            kind,
            attn=self.attn,
            observe=observe,
            stage=self._stage,
            stores=self.stores,
        )

    def _base(self) -> VitaModel:
        assert self.against is not None  # noqa: S101 - only called with one
        return load_model(
            self.against,
            device=self.device,
            dtype=self.dtype,
            tower=self.tower,
            attn=self.attn,
            max_memory=self.max_memory,
            observe=Loading(sizes_of(self.against), self.on_progress),
            stores=self.stores,
            stage=self._stage,
        )

    @property
    def _stage(self) -> tuple[int, int] | None:
        return None if self.ranks is None else (self.ranks.rank, self.ranks.size)

    def _free(self, index: int | None) -> int:
        return free_memory(index) // (1 if self.ranks is None else self.ranks.sharers)
