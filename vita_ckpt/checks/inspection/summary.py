"""Hold what an inspection finds, as values and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from vita_ckpt.checks.audio_summary import AudioSummary
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.towers import Dispatch, Tower, TowerDirectory
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.left_out import LeftOut, left_out_to_json
from vita_ckpt.core.memory import Memory
from vita_ckpt.core.training.state import TrainingState

REPORT_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class PartSummary:
    """One part: its tensors, parameters (elements), bytes, and dtypes, the commonest first.

    ``bytes_by_dtype`` has the bytes of each of ``dtypes``, in the same order.
    """

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    bytes_by_dtype: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """One weight file: its name below the checkpoint, format, size in bytes, tensors."""

    name: str
    format: str
    bytes: int
    tensors: int


@dataclass(frozen=True, slots=True)
class ConfigLine:
    """A key of ``config.json``, its value, and what the weights say of it.

    ``problem`` is set, and ``value`` None, where the value has the wrong type. ``weights`` is None
    where the weights say nothing, ``agrees`` where there is nothing to compare.
    """

    present: bool
    value: Any
    problem: str | None
    weights: Any
    agrees: bool | None


@dataclass(frozen=True, slots=True)
class ProjectorSummary:
    """The projector by its tensors: the types it can be, its widths."""

    types: tuple[str, ...]
    in_width: int
    out_width: int


@dataclass(frozen=True, slots=True)
class LoraSummary:
    """A LoRA run: rank and alpha of its config, number of delta tensors, the base it names.

    ``targets`` is the pattern of its targets, or their names. ``modules`` are the weights with a
    delta, ``changes`` the parameters of these, ``share`` of the language model's (None if its size
    is not known). ``trained`` counts the other tensors, ``projector_file`` holds the projector.
    """

    r: int | None
    lora_alpha: float | None
    deltas: int
    base_model: str | None
    targets: tuple[str, ...]
    modules: int
    changes: int
    share: float | None
    trained: int
    projector_file: str | None


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Displayed):
    """A checkpoint as ``inspect`` reports it.

    ``disagreements`` are sentences about what does not fit, ``missing`` names the files without
    which no loader can use the weights, such as config.json. ``needs_alignment`` is set where
    the projector was drawn at random and not trained since. ``family`` is set for a model or a run
    of another family than VITA, ``family_evidence`` says what it was told by, and why it may be
    another. ``tower_source`` says which tower its loader ends with, ``features`` what of the tower
    is taken, ``tiles`` how many tokens a picture becomes where that depends on it.
    ``quantisation`` names how weights are quantised; ``parameters`` are then those that the codes
    stand for. ``config_file`` is the file that the config is from. ``training`` describes a
    training state, ``memory`` what a whole model or a tower needs to run; it is None for other
    kinds, and for quantised weights.
    """

    path: str
    kind: str
    layout: str
    model_type: str | None
    architectures: tuple[str, ...]
    backbone: str | None
    loader_name: str | None
    dtypes: tuple[str, ...]
    tensors: int
    parameters: int
    bytes: int
    shards: tuple[ShardSummary, ...]
    parts: tuple[PartSummary, ...]
    config: Mapping[str, ConfigLine]
    tower: Tower | None
    tower_directory: TowerDirectory | None
    dispatch: Dispatch | None
    projector: ProjectorSummary | None
    tokens_per_image: int | None
    audio: AudioSummary | None
    audio_directory: AudioDirectory | None
    lora: LoraSummary | None
    needs_alignment: bool
    disagreements: tuple[str, ...]
    missing: tuple[str, ...]
    left_out: Mapping[str, LeftOut]
    family: str | None = None
    quantisation: str | None = None
    config_file: str | None = None
    training: TrainingState | None = None
    memory: Memory | None = None
    family_evidence: str | None = None
    tower_source: str | None = None
    features: str | None = None
    tiles: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON, in the form of ``schemas/inspect-v1.json``.

        The lists of tensors and modules that the schema has beside it are reports of their own.
        """
        report: dict[str, Any] = _listed(asdict(replace(self, training=None)))
        report["training"] = None if self.training is None else self.training.to_dict()
        if self.dispatch is not None:
            report["dispatch"]["reason"] = str(self.dispatch.reason)
        report["left_out"] = left_out_to_json(self.left_out)
        if self.tower_directory is not None:
            del report["tower_directory"]["config"]
        if self.audio_directory is not None:
            path, problem = self.audio_directory.path, self.audio_directory.problem
            report["audio_directory"] = {"path": path, "problem": problem}
        return {"format": "vita-ckpt-inspect", "version": REPORT_VERSION, **report}

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield every field that is not empty, nested ones in short."""
        short: dict[str, object] = {}
        if self.tower_directory is not None:
            short["tower directory"] = self.tower_directory.problem or self.tower_directory.tower
        if self.dispatch is not None:
            short["dispatch"] = f"{self.dispatch.tower_class or 'nothing'}: {self.dispatch.reason}"
        if self.training is not None:
            short["training"] = ", ".join(self.training.summary())
        if self.projector is not None:
            widths = f"{self.projector.in_width}→{self.projector.out_width}"
            short["projector"] = f"{' or '.join(self.projector.types)} {widths}"
        if self.audio_directory is not None:
            short["audio directory"] = self.audio_directory.problem or self.audio_directory.path
        for label, value in Displayed.display_rows(self):
            yield label, short.get(label, value)


def _listed(value: Any) -> Any:
    """Turn tuples into lists, all the way down, as JSON does."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
