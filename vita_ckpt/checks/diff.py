"""Compare two checkpoints, however their tensors are split into files; apply ``--only``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any, Final, Literal

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint, File, Tensor, source_of
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.filenames import CONFIG, MANIFEST, PROVENANCE, SAFETENSORS_INDEX, TORCH_INDEX
from vita_ckpt.core.report import Finding, Report, worst_first
from vita_ckpt.core.spelling import did_you_mean, globs_of_nothing
from vita_ckpt.errors import printable

REPORT_VERSION: Final = 1

# How an item differs from one checkpoint to the other.
Change = Literal["added", "removed", "changed"]

# The config is compared key by key. Indexes, which map tensors to files, and records of how a
# checkpoint was made are not compared.
_NOT_BY_BYTES: Final = (
    CONFIG,
    PROVENANCE,
    MANIFEST,
    SAFETENSORS_INDEX,
    TORCH_INDEX,
)
_KINDS: Final = ("tensor", "config", "file")
_ANY: Final = tuple(f"{kind}:*" for kind in _KINDS)


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that is missing on one side, or whose shape, dtype or bytes differ.

    ``distance`` is set where the values were compared.
    """

    name: str
    before: Tensor | None
    after: Tensor | None
    distance: Distance | None = None

    @property
    def change(self) -> Change:
        """The kind of change: added, removed or changed."""
        return _change(self.before, self.after)

    @property
    def what(self) -> tuple[str, ...]:
        """What differs: ``shape`` and ``dtype``, or ``bytes``; empty if one side is missing."""
        if self.before is None or self.after is None:
            return ()
        shape = ("shape",) if self.before.shape != self.after.shape else ()
        dtype = ("dtype",) if self.before.dtype != self.after.dtype else ()
        return (*shape, *dtype) or ("bytes",)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as it is now, or as it was before it was removed."""
        side = self.after or self.before
        return side.nbytes if side is not None else 0


@dataclass(frozen=True, slots=True)
class PartDifference:
    """The numbers of changed and unchanged tensors of a part, with the bytes of the changed ones.

    ``distance`` covers all tensors whose values can be compared, changed or not; its counts of NaN
    and infinities are those of the changed ones. It is None where values were not compared.
    """

    name: str
    unchanged: int
    changed: int
    added: int
    removed: int
    nbytes: int
    distance: Distance | None = None


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A key of ``config.json`` with its values; None on the side that lacks it."""

    key: str
    change: Change
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class FileDifference:
    """A file beside the weights with its sizes in bytes; None on the side that lacks it."""

    name: str
    before: int | None
    after: int | None

    @property
    def change(self) -> Change:
        """The kind of change: added, removed or changed."""
        return _change(self.before, self.after)


@dataclass(frozen=True, slots=True, repr=False)
class Difference(Displayed):
    """All differences between the checkpoint at the path ``a`` and the one at ``b``.

    ``values`` is set if values were compared. ``tensors_only`` is set if config and files were not
    compared, because a lone weight file has none. ``only`` holds globs of what may change; at least
    one match must change. ``left_out`` are files and directories beside the checkpoints that are
    not part of them and are not compared. ``unread`` are tensors and files of the same shape and
    size whose bytes were not fetched from the hub, so that it is not known whether they differ.
    ``misses`` are sentences on the globs of ``only`` that match nothing on either side.
    """

    a: str
    b: str
    values: bool
    tensors_only: bool
    only: tuple[str, ...]
    parts: tuple[PartDifference, ...]
    tensors: tuple[TensorDifference, ...]
    config: tuple[ConfigDifference, ...]
    files: tuple[FileDifference, ...]
    left_out: tuple[str, ...]
    unread: tuple[str, ...] = ()
    misses: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether everything was compared and no difference was found."""
        return not (self.tensors or self.config or self.files or self.unread)

    @property
    def breaches(self) -> tuple[Finding, ...]:
        """The violations of ``only``, as errors; empty if there are none or ``only`` is empty."""
        if not self.only:
            return ()
        notes = list(_notes(self))
        outside = tuple(
            finding(
                "only-outside-changed",
                note.subject,
                f"expected no change outside --only, got: {note.message}",
                hint="name it with --only too, if it was meant",
                file=note.file,
            )
            for subject, note in notes
            if not covered(subject, self.only)
        )
        if len(outside) < len(notes):
            return outside
        return (
            *outside,
            finding(
                "only-nothing-changed",
                " ".join(self.only),
                "expected a change of what --only names, got none",
                hint="; ".join(self.misses)
                or "--only takes globs of tensor names, config:KEY and file:PATH",
                file=self.b,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form (schema diff-v1); undefined figures are null."""
        report = {
            "format": "vita-ckpt-diff",
            "version": REPORT_VERSION,
            "a": self.a,
            "b": self.b,
            "identical": self.identical,
            "values": self.values,
            "tensors_only": self.tensors_only,
            "only": list(self.only),
            "ok": not self.breaches,
            "parts": [
                {
                    "name": part.name,
                    "unchanged": part.unchanged,
                    "changed": part.changed,
                    "added": part.added,
                    "removed": part.removed,
                    "bytes": part.nbytes,
                    "values": _values(part.distance),
                }
                for part in self.parts
            ],
            "tensors": [
                {
                    "name": tensor.name,
                    "part": parts.part_of(tensor.name),
                    "change": tensor.change,
                    "what": list(tensor.what),
                    "before": _side(tensor.before),
                    "after": _side(tensor.after),
                    "values": _counted(tensor.distance),
                }
                for tensor in self.tensors
            ],
            "config": [asdict(key) for key in self.config],
            "files": [
                {
                    "name": file.name,
                    "change": file.change,
                    "before": file.before,
                    "after": file.after,
                }
                for file in self.files
            ],
            "left_out": list(self.left_out),
            "unread": list(self.unread),
            "breaches": [
                {"rule": one.rule, "subject": one.subject, "message": one.message, "hint": one.hint}
                for one in self.breaches
            ],
        }
        return {key: _json_value(value) for key, value in report.items()}

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield every field that is not empty, and whether the two are the same."""
        yield from Displayed.display_rows(self)
        yield "identical", self.identical


def covered(subject: str, only: Sequence[str]) -> bool:
    """Return whether one of the globs matches ``subject``.

    A subject is ``tensor:NAME``, ``config:KEY`` or ``file:PATH``. A glob without one of these
    prefixes matches tensor names.
    """
    kind, _, name = subject.partition(":")
    for glob in only:
        named, pattern = _kind_and_pattern(glob)
        if named == kind and fnmatchcase(name, pattern):
            return True
    return False


def _kind_and_pattern(glob: str) -> tuple[str, str]:
    kind, colon, pattern = glob.partition(":")
    return (kind, pattern) if colon and kind in _KINDS else ("tensor", glob)


def compared_files(checkpoint: Checkpoint) -> dict[str, File | str]:
    """Return the files to compare byte by byte, by name; some of a target's files are texts."""
    files: dict[str, File | str] = {**checkpoint.files, **checkpoint.texts}
    left_out = (*_NOT_BY_BYTES, checkpoint.config_file)
    compared = {name: file for name, file in files.items() if name not in left_out}
    if (
        checkpoint.serving_config is not None
    ):  # config.json is a server's: a target has it as a value
        compared[CONFIG] = json.dumps(checkpoint.serving_config, sort_keys=True)
    return compared


def compare_checkpoints(
    a: Checkpoint,
    b: Checkpoint,
    *,
    other_tensors: Collection[str],
    other_files: Collection[str],
    distances: Mapping[str, Distance] | None,
    only: Sequence[str],
    unread: tuple[str, ...] = (),
) -> Difference:
    """Return the differences of ``b`` from ``a``.

    ``other_tensors`` and ``other_files`` name the tensors and files that both have but whose bytes
    differ. ``distances`` holds the distances of the tensors whose values can be compared, or None
    where values were not compared. A lone weight file has neither config nor files, so these are
    not compared with it.
    """
    tensors = tuple(_tensors(a, b, other_tensors, distances or {}))
    whole = not (_is_lone(a) or _is_lone(b))
    return Difference(
        a=a.root,
        b=b.root,
        values=distances is not None,
        tensors_only=not whole,
        only=tuple(only),
        parts=tuple(_parts(a, b, tensors, distances, unread)),
        tensors=tensors,
        config=tuple(_config(a, b)) if whole else (),
        files=tuple(_files(a, b, other_files)) if whole else (),
        left_out=tuple(sorted(a.left_out.keys() | b.left_out.keys())) if whole else (),
        unread=unread,
        misses=tuple(_misses(only, a, b)),
    )


def _misses(only: Sequence[str], a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    """Yield a sentence for each glob of ``only`` that matches nothing on either side."""
    known: dict[str, Collection[str]] = {
        "tensor": a.tensors.keys() | b.tensors.keys(),
        "config": (a.config or {}).keys() | (b.config or {}).keys(),
        "file": compared_files(a).keys() | compared_files(b).keys(),
    }
    for glob in only:
        kind, pattern = _kind_and_pattern(glob)
        if any(fnmatchcase(name, pattern) for name in known[kind]):
            continue
        if kind == "tensor":
            yield from globs_of_nothing((pattern,), known["tensor"])
            continue
        hint = did_you_mean(pattern, known[kind])
        what = "key of the config" if kind == "config" else "file"
        yield f"{pattern} matches no {what}" + (hint and f" ({hint})")


def difference_report(found: Difference) -> Report:
    """Return the differences as notes, and those that violate ``only`` as errors."""
    inside = (note for subject, note in _notes(found) if covered(subject, found.only or _ANY))
    return Report(found.b, "diff", worst_first((*found.breaches, *inside)))


def figures(distance: Distance) -> tuple[str, str, str]:
    """Format max |Δ|, relative L2 and cosine for a report; an undefined figure is a dash."""
    values = distance.max_abs, distance.relative_l2, distance.cosine
    largest, relative, cosine = ("–" if value is None else f"{value:.6g}" for value in values)
    return largest, relative, cosine


def _change(before: object, after: object) -> Change:
    if before is None:
        return "added"
    return "removed" if after is None else "changed"


def _is_lone(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is a single weight file rather than a directory."""
    return any(not shard.name for shard in checkpoint.shards)


def _tensors(
    a: Checkpoint, b: Checkpoint, other: Collection[str], distances: Mapping[str, Distance]
) -> Iterator[TensorDifference]:
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        before, after = a.tensors.get(name), b.tensors.get(name)
        if (
            before is None
            or after is None
            or (before.dtype, before.shape) != (after.dtype, after.shape)
            or name in other
        ):
            yield TensorDifference(name, before, after, distances.get(name))


def _parts(
    a: Checkpoint,
    b: Checkpoint,
    tensors: Sequence[TensorDifference],
    distances: Mapping[str, Distance] | None,
    unread: Collection[str],
) -> Iterator[PartDifference]:
    names: dict[str, list[str]] = {}
    for name in sorted(a.tensors.keys() | b.tensors.keys()):
        names.setdefault(parts.part_of(name), []).append(name)
    changes = {tensor.name: tensor for tensor in tensors}
    for part in (part for part in parts.LABELS if part in names):
        found = [changes[name] for name in names[part] if name in changes]
        measured = [(distances or {})[n] for n in names[part] if n in (distances or {})]
        yield PartDifference(
            name=part,
            unchanged=len(names[part]) - len(found) - len({*names[part]} & {*unread}),
            changed=sum(tensor.change == "changed" for tensor in found),
            added=sum(tensor.change == "added" for tensor in found),
            removed=sum(tensor.change == "removed" for tensor in found),
            nbytes=sum(tensor.nbytes for tensor in found),
            distance=sum(measured, Distance()) if measured else None,
        )


def _config(a: Checkpoint, b: Checkpoint) -> Iterator[ConfigDifference]:
    """Yield the keys whose values differ: types of values matter, the order of keys does not."""
    old, new = _canonical(a), _canonical(b)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            change = _change(old.get(key), new.get(key))
            yield ConfigDifference(
                key, change, (a.config or {}).get(key), (b.config or {}).get(key)
            )


def _canonical(checkpoint: Checkpoint) -> dict[str, str]:
    """Encode the config's values as JSON, in which true is not 1 and a NaN equals a NaN."""
    config = checkpoint.config or {}
    return {key: json.dumps(value, sort_keys=True) for key, value in config.items()}


def _files(a: Checkpoint, b: Checkpoint, other: Collection[str]) -> Iterator[FileDifference]:
    old, new = compared_files(a), compared_files(b)
    for name in sorted(old.keys() | new.keys()):
        if name in other or name not in old or name not in new:
            yield FileDifference(name, _size(old.get(name)), _size(new.get(name)))


def _size(file: File | str | None) -> int | None:
    if isinstance(file, str):
        return len(file.encode())
    return None if file is None else file.size


def _notes(found: Difference) -> Iterator[tuple[str, Finding]]:
    """Turn every difference into a note, with its name for ``--only``."""
    for tensor in found.tensors:
        rule = f"tensor-{(*tensor.what, tensor.change)[0]}"
        note = finding(rule, tensor.name, _describe(tensor), file=_file_of(tensor) or found.b)
        yield f"tensor:{tensor.name}", note
    for key in found.config:
        message = f"{key.change}: {_arrow(key.change, key.before, key.after)}"
        config = f"{found.a if key.change == 'removed' else found.b}/{CONFIG}"
        yield f"config:{key.key}", finding("config-changed", key.key, message, file=config)
    for file in found.files:
        message = f"{file.change}: {_arrow(file.change, file.before, file.after)} bytes"
        path = f"{found.a if file.change == 'removed' else found.b}/{file.name}"
        yield f"file:{file.name}", finding("file-changed", file.name, message, file=path)


def _describe(tensor: TensorDifference) -> str:
    sides = [
        f"{side.dtype} {list(side.shape)}" if side is not None else None
        for side in (tensor.before, tensor.after)
    ]
    same = sides[0] == sides[1]
    text = str(sides[0]) if same else _arrow(tensor.change, *sides)
    text = f"{' and '.join(tensor.what) or tensor.change}: {text}"
    if tensor.distance is None:
        return text
    largest, relative, cosine = figures(tensor.distance)
    return f"{text}, max |Δ| {largest}, relative L2 {relative}, cosine {cosine}"


def _arrow(change: Change, before: object, after: object) -> str:
    if change == "changed":
        return printable(f"{before} → {after}")
    return printable(after if change == "added" else before)


def _file_of(tensor: TensorDifference) -> str:
    side = tensor.after or tensor.before
    return source_of(side) if side is not None else ""


def _side(tensor: Tensor | None) -> dict[str, Any] | None:
    if tensor is None:
        return None
    return {"dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}


def _values(distance: Distance | None) -> dict[str, Any] | None:
    if distance is None:
        return None
    return {
        "elements": distance.elements,
        "changed": distance.changed,
        "max_abs": distance.max_abs if isfinite(distance.max_abs) else None,
        "relative_l2": distance.relative_l2,
        "cosine": distance.cosine,
    }


def _counted(distance: Distance | None) -> dict[str, Any] | None:
    """Return the figures of one tensor, with its NaN and infinities."""
    values = _values(distance)
    if values is None or distance is None:
        return None
    return {
        **values,
        "nonfinite_before": distance.nonfinite_before,
        "nonfinite_after": distance.nonfinite_after,
    }


def _json_value(value: Any) -> Any:
    """Make a value valid JSON: no NaN, no infinities, no lone surrogates."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {_json_value(key): _json_value(one) for key, one in value.items()}
    return [_json_value(one) for one in value] if isinstance(value, (list, tuple)) else value
