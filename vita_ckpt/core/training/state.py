"""Describe a training state: what was trained, by what, and where its weights are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Any

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed

if TYPE_CHECKING:
    from vita_ckpt.core.checkpoint import TensorRef


class Engine(str, Enum):
    """What wrote a training state."""

    DEEPSPEED = "deepspeed"
    UNIVERSAL = "deepspeed-universal"
    DCP = "torch-distributed-checkpoint"
    HF_SHARDS = "huggingface-shards"
    DTENSOR = "dtensor-per-rank"
    FILE = "wrapped-model"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, repr=False)
class TrainingState(Displayed):
    """A training state as its files describe it.

    ``stage`` is ZeRO's, ``ranks`` the number of data-parallel ranks, ``step`` counts optimizer
    steps; each is None if nothing says it. ``dtype`` is that of training (a safetensors code).
    ``trained``, ``frozen`` and ``buffers`` name the tensors of which it is known; ``shared`` maps
    tied names to the stored ones; ``excluded`` is set if frozen parameters were left out.
    ``copies`` are the copies in the dtype of training that lie beside float32 masters.
    ``master_bytes`` and ``moment_bytes`` are sizes of the trained weights and of the optimizer's
    moments in the files.
    """

    engine: Engine
    version: str = ""
    stage: int | None = None
    ranks: int | None = None
    step: int | None = None
    dtype: str = ""
    trained: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    excluded: bool = False
    copies: Mapping[str, TensorRef] = field(default_factory=dict)
    master_bytes: int = 0
    moment_bytes: int = 0
    notes: tuple[str, ...] = ()

    def summary(self) -> Iterator[str]:
        """Yield what the state is in a few words: engine, version, stage, step, ranks."""
        yield str(self.engine)
        if self.version:
            yield self.version
        for label, value in (("stage", self.stage), ("step", self.step)):
            if value is not None:
                yield f"{label} {value}"
        if self.ranks is not None:
            yield f"{self.ranks} rank{'s' if self.ranks != 1 else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON, as ``inspect`` reports it."""
        return {
            "engine": str(self.engine),
            "version": self.version or None,
            "stage": self.stage,
            "ranks": self.ranks,
            "step": self.step,
            "dtype": self.dtype or None,
            "trained": len(self.trained),
            "frozen": len(self.frozen),
            "buffers": len(self.buffers),
            "shared": dict(self.shared),
            "excluded": self.excluded,
            "copies": len(self.copies),
            "master_bytes": self.master_bytes,
            "moment_bytes": self.moment_bytes,
            "notes": list(self.notes),
        }
