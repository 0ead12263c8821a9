"""Record what a loader does with a directory, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Literal, NoReturn

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.file_listing import Trouble, WeightFile, WeightFiles

Outcome = Literal["complete", "partial", "stops"]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a loader does; ``code`` is set where it stops there."""

    action: str
    detail: str
    code: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class LoaderTrace(Displayed):
    """What one loader does with a directory.

    ``outcome`` is ``complete`` if every tensor of what it builds gets a stored value and nothing
    that matters is left out, such as a second set of weights in the files of an index; ``partial``
    also where rows are invented for tokens, or the loaded model fails at its first image;
    ``stops`` where it raises, for the reason ``stopped_by``.
    ``chosen`` is the single file or the index that it settled on, ``files_read`` are the weight
    files in the order in which they are read, ``tower_files`` those that are read for the tower on
    its own: from its directory, by their whole path, or once more from here. ``tower`` and
    ``projector`` say where those parts end up coming from, ``lm_head`` which stored tensor becomes
    it. ``renamed`` are (stored, built) patterns of names, ``missing`` the tensors of the model that
    no file gives, ``ignored`` those that are read and dropped, and ``sources`` the file that gives
    each tensor, by its stored name. ``dtype`` is None where the caller's module decides.
    """

    loader: str
    outcome: Outcome
    model_class: str | None = None
    dtype: str | None = None
    chosen: str | None = None
    files_read: tuple[str, ...] = ()
    tower_files: tuple[str, ...] = ()
    tower: PartSource | None = None
    projector: PartSource | None = None
    lm_head: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    stopped_by: str | None = None


class _Ended(Exception):
    """The loader comes to its end here."""


class _Stopped(Exception):
    """The loader raises here: the trace ends."""


@dataclass(slots=True)
class Tracer:
    """Records a trace while a loader is replayed over ``files``."""

    loader: str
    files: WeightFiles
    model_class: str | None = None
    dtype: str | None = None
    chosen: str | None = None
    files_read: list[str] = field(default_factory=list)
    tower_files: list[str] = field(default_factory=list)
    tower: PartSource | None = None
    projector: PartSource | None = None
    lm_head: str | None = None
    renamed: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    harmless: list[str] = field(default_factory=list)
    integers: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)
    fault: str = ""
    sources: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def trace(self, replay: Callable[[Tracer], None]) -> LoaderTrace:
        """Run ``replay`` as far as it gets, and return what it recorded."""
        stopped_by = None
        try:
            replay(self)
        except _Ended:
            pass
        except _Stopped:
            stopped_by = self.steps[-1].code
        incomplete = bool(self.missing or self.ignored or self.integers or self.fault)
        incomplete |= bool(self.flaws)
        incomplete |= bool({self.tower, self.projector} & {PartSource.RANDOM, PartSource.UNFILLED})
        outcome: Outcome = "stops" if stopped_by else "partial" if incomplete else "complete"
        return LoaderTrace(
            self.loader,
            outcome,
            self.model_class,
            self.dtype,
            self.chosen,
            tuple(self.files_read),
            tuple(self.tower_files),
            self.tower,
            self.projector,
            self.lm_head,
            tuple(self.renamed),
            tuple(sorted(self.missing)),
            tuple(sorted((*self.ignored, *self.harmless))),
            self.sources,
            tuple(self.steps),
            stopped_by,
        )

    def step(self, action: str, detail: str) -> None:
        """Record a step."""
        self.steps.append(Step(action, detail))

    def end(self) -> NoReturn:
        """End the trace: the loader comes to its end here."""
        raise _Ended

    def stop(self, code: str, detail: str) -> NoReturn:
        """End the trace: the loader raises an error with this code."""
        self.steps.append(Step("stops", detail, code))
        raise _Stopped

    def stop_for(self, trouble: Trouble) -> NoReturn:
        """End the trace: the loader raises over a file that cannot be read."""
        self.stop(trouble.code, trouble.message)

    def read(self, file: WeightFile) -> WeightFile:
        """Record that a weight file is read; end the trace if it cannot be."""
        if file.trouble is not None:
            self.stop_for(file.trouble)
        self.files_read.append(file.name)
        return file


def by_part(names: Iterable[str]) -> str:
    """Count the tensors of each part: ``projector 4, vision tower 46``."""
    counts: dict[str, int] = {}
    for name in names:
        label = parts.LABELS[parts.part_of(name)]
        counts[label] = counts.get(label, 0) + 1
    return ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))


def some_files(names: Iterable[str]) -> str:
    """Join file names for a report: of more than three, the first and the last."""
    listed = list(names)
    if len(listed) > 3:
        return f"{listed[0]} … {listed[-1]} ({len(listed)} files)"
    return ", ".join(listed)
