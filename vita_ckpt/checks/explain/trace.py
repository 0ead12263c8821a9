"""What a loader does with a directory, told step by step: the story and who writes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NoReturn

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.file_listing import Trouble, WeightFile, WeightFiles

Outcome = Literal["complete", "partial", "stops"]

# Where a part comes from.
CHECKPOINT: Final = "the checkpoint"
DIRECTORY: Final = "its directory"
RANDOM: Final = "drawn at random"
UNFILLED: Final = "left without values"
NOT_BUILT: Final = "not built"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a loader does; ``code`` is set where it stops there."""

    action: str
    detail: str
    code: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class LoaderStory(Displayed):
    """What one loader does with a directory.

    ``outcome`` is ``complete`` if every tensor of what it builds gets a stored value and nothing of
    the checkpoint's model is left out, ``stops`` where it raises, for the reason ``stopped_by``.
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
    tower: str | None = None
    projector: str | None = None
    lm_head: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    stopped_by: str | None = None


class _Stopped(Exception):
    """The loader raises here: the story ends."""


@dataclass(slots=True)
class Teller:
    """Writes a story down while a loader is replayed over ``files``."""

    loader: str
    files: WeightFiles
    model_class: str | None = None
    dtype: str | None = None
    chosen: str | None = None
    files_read: list[str] = field(default_factory=list)
    tower_files: list[str] = field(default_factory=list)
    tower: str | None = None
    projector: str | None = None
    lm_head: str | None = None
    renamed: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def tell(self, replay: Callable[[Teller], None]) -> LoaderStory:
        """The story of ``replay``, as far as it gets."""
        stopped_by = None
        try:
            replay(self)
        except _Stopped:
            stopped_by = self.steps[-1].code
        incomplete = bool(self.missing or self.ignored)
        incomplete |= bool({self.tower, self.projector} & {RANDOM, UNFILLED})
        outcome: Outcome = "stops" if stopped_by else "partial" if incomplete else "complete"
        return LoaderStory(
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
            tuple(sorted(self.ignored)),
            self.sources,
            tuple(self.steps),
            stopped_by,
        )

    def step(self, action: str, detail: str) -> None:
        """Something happens."""
        self.steps.append(Step(action, detail))

    def stop(self, code: str, detail: str) -> NoReturn:
        """The loader raises."""
        self.steps.append(Step("stops", detail, code))
        raise _Stopped

    def stop_for(self, trouble: Trouble) -> NoReturn:
        """The loader raises over a file that cannot be read."""
        self.stop(trouble.code, trouble.message)

    def read(self, file: WeightFile) -> WeightFile:
        """A weight file is read, if it can be."""
        if file.trouble is not None:
            self.stop_for(file.trouble)
        self.files_read.append(file.name)
        return file


def by_part(names: Iterable[str]) -> str:
    """How many of the tensors belong to which part: ``projector 4, vision tower 46``."""
    counts: dict[str, int] = {}
    for name in names:
        label = parts.LABELS[parts.part_of(name)]
        counts[label] = counts.get(label, 0) + 1
    return ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))


def some_files(names: Iterable[str]) -> str:
    """File names as a person reads them: the first and the last of many."""
    listed = list(names)
    if len(listed) > 3:
        return f"{listed[0]} … {listed[-1]} ({len(listed)} files)"
    return ", ".join(listed)
