"""Say what a loader makes of a checkpoint: parts, where they come from, and where it stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Final

from vita_ckpt.core.anatomy.families import ModelFamily
from vita_ckpt.core.checkpoint import Shape, Tensor
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.tensor_match import KeyMismatch

Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]
UNREACHABLE: Final = "tower-path-unreachable"


class PartSource(Enum):
    """Where a part of a loaded model ends up coming from; its string is the wording of reports."""

    CHECKPOINT = auto()
    TOWER_DIRECTORY = auto()
    BASE = auto()
    RANDOM = auto()
    UNFILLED = auto()
    NOT_BUILT = auto()

    def __str__(self) -> str:
        return _WORDING[self]


_WORDING: Final[Mapping[PartSource, str]] = {
    PartSource.CHECKPOINT: "the checkpoint",
    PartSource.TOWER_DIRECTORY: "its directory",
    PartSource.BASE: "its base",
    PartSource.RANDOM: "drawn at random",
    PartSource.UNFILLED: "left without values",
    PartSource.NOT_BUILT: "not built",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a loader raises while it builds the model, before it reads the weights."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class PartBinding:
    """The tensors of one part, against those that a loader builds.

    ``wanted`` is empty where nothing determines the part; every stored tensor of it is then
    unexpected. ``integers`` are the names of tensors that bind but hold no real numbers.
    """

    wanted: Shapes
    mismatch: KeyMismatch
    source: PartSource
    integers: tuple[str, ...] = ()

    def without(self, names: Collection[str]) -> PartBinding:
        """Return the part as if these names were neither missing nor unexpected."""
        found = self.mismatch
        if not names or not (found.missing or found.unexpected):
            return self
        missing = tuple(name for name in found.missing if name not in names)
        unexpected = tuple(name for name in found.unexpected if name not in names)
        return replace(self, mismatch=KeyMismatch(missing, unexpected, found.mismatched))


@dataclass(frozen=True, slots=True)
class Binding:
    """What a loader makes of a checkpoint: what binds, what does not, and where it stops.

    ``parts`` are those that it builds, or of which tensors are stored, by their names in
    :mod:`~vita_ckpt.core.anatomy.parts`. ``found`` maps stored names to the names they bind to,
    ``left_out`` are stored tensors that the loader drops and the model is the same. ``has_vision``
    is set for loaders that build the modules of ``family`` where the config has them. ``fault``
    says why a model that is loaded to the end fails at its first image, ``audio_fault`` at its
    first recording. ``contradiction`` says what in the config contradicts the model that is built.
    """

    parts: Mapping[str, PartBinding]
    found: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    stop: Stop | None = None
    has_vision: bool = False
    fault: str = ""
    audio_fault: str = ""
    family: ModelFamily | None = None
    contradiction: str = ""

    def part(self, name: str) -> PartBinding:
        """Return the binding of a part; that of one that is not built, if it is neither stored."""
        nothing = PartBinding({}, KeyMismatch((), (), ()), PartSource.NOT_BUILT)
        return self.parts.get(name, nothing)

    @property
    def mismatch(self) -> KeyMismatch:
        """The missing, unexpected and mismatched tensors of all parts."""
        found = [part.mismatch for part in self.parts.values()]
        return KeyMismatch(
            tuple(name for one in found for name in one.missing),
            tuple(name for one in found for name in one.unexpected),
            tuple(entry for one in found for entry in one.mismatched),
        )

    @property
    def integers(self) -> tuple[str, ...]:
        """Tensors that bind, but hold no real numbers."""
        return tuple(name for part in self.parts.values() for name in part.integers)

    @property
    def renamed(self) -> dict[str, str]:
        """The stored names that bind under another one."""
        return {stored: built for stored, built in self.found.items() if stored != built}

    @property
    def is_complete(self) -> bool:
        """Whether every part is the checkpoint's, or rightly its directory's, and nothing is left.

        That a directory is not reachable from here says nothing about the checkpoint.
        """
        stops = self.stop is not None and self.stop.code != UNREACHABLE
        lacking = (PartSource.RANDOM, PartSource.UNFILLED)
        unfilled = any(part.source in lacking for part in self.parts.values())
        faulty = self.fault or self.audio_fault
        return not (stops or unfilled or self.mismatch or self.integers or faulty)
