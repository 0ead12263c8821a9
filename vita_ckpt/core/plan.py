"""Represent surgery as data: a plan computes its target and writes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from vita_ckpt.core.checkpoint import (
    Cast,
    Checkpoint,
    File,
    RandomInit,
    RemoteFile,
    Tensor,
    TensorRef,
    files_read,
)
from vita_ckpt.core.display import Displayed, count_by_type
from vita_ckpt.core.dtype import CAST_TARGETS, can_cast, nbytes
from vita_ckpt.core.filenames import CONFIG, MANIFEST, PROVENANCE
from vita_ckpt.errors import InputError, StaleInputError

FORMAT: Final = "vita-ckpt-plan"
VERSION: Final = 2


# The files that a surgery writes beside the weights are small JSON files in the directory itself.
_FILE: Final = re.compile(r"[a-z_]{1,64}\.json", re.ASCII)

# No initialisation has values as large as this, which every dtype can hold.
_LARGEST_VALUE: Final = 60000.0


@dataclass(frozen=True, slots=True)
class AddTensor:
    """A tensor under a name that the base does not have."""

    name: str
    tensor: Tensor
    reason: str


@dataclass(frozen=True, slots=True)
class ReplaceTensor:
    """Another tensor under a name of the base."""

    name: str
    tensor: Tensor
    reason: str


@dataclass(frozen=True, slots=True)
class DropTensor:
    """A tensor of the base that the target does not have."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetConfig:
    """A key of ``config.json`` with its new value."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class PutFile:
    """A small text file that the target has, whether or not the base has one of that name."""

    name: str
    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class DropFile:
    """A file of the base that the target does not have."""

    name: str
    reason: str


# One change of a checkpoint.
Edit = AddTensor | ReplaceTensor | DropTensor | SetConfig | PutFile | DropFile


@dataclass(frozen=True, slots=True)
class Record:
    """What the lineage will say of an operation beside what the plan says itself.

    ``roles`` name the donors in their order, such as ``adapter``; ``arguments`` are what was asked
    for, ``seed`` what tensors are drawn from. ``needs_alignment`` is set where the target's
    projector was drawn at random and not trained since.
    """

    roles: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    needs_alignment: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Displayed):
    """Edits on a base checkpoint; the tensors come from the base or from one of the ``donors``.

    ``notes`` are sentences for the user: what was decided, what is left out. Two edits of one name
    are refused, so the order of the edits never matters. A plan without a ``record`` extracts a
    part, which starts a lineage of its own.
    """

    operation: str
    base: Checkpoint
    edits: tuple[Edit, ...]
    donors: tuple[Checkpoint, ...] = ()
    notes: tuple[str, ...] = ()
    record: Record | None = None

    def __post_init__(self) -> None:
        if self.record is not None and len(self.record.roles) != len(self.donors):
            raise ValueError("a role for each donor")
        seen: set[tuple[str, str]] = set()
        for edit in self.edits:
            subject = subject_of(edit)
            if subject in seen:
                raise ValueError(f"two edits of {subject[1]}")
            seen.add(subject)
            if isinstance(edit, PutFile | DropFile) and edit.name in (PROVENANCE, MANIFEST):
                raise ValueError(f"an edit of {edit.name}, which follows from what is done")
            if isinstance(edit, SetConfig | PutFile):
                if subject == ("file", CONFIG) and self.base.config is not None:
                    raise ValueError(f"another {CONFIG}, whose keys are what is set")
                continue
            there = self.base.files if isinstance(edit, DropFile) else self.base.tensors
            if isinstance(edit, AddTensor) == (edit.name in there):
                raise ValueError(f"{type(edit).__name__} of {edit.name}")

    @property
    def preconditions(self) -> tuple[File, ...]:
        """Return every file that the plan was computed from, as it was."""
        return tuple(dict.fromkeys(file for files in _inputs(self) for file in files))

    @property
    def tensor_edits(self) -> tuple[AddTensor | ReplaceTensor, ...]:
        """Return the edits that give the target a tensor."""
        return tuple(e for e in self.edits if isinstance(e, AddTensor | ReplaceTensor))

    def target(self) -> Checkpoint:
        """Compute the checkpoint that the plan makes: its tensors are references, none is read."""
        tensors, files = dict(self.base.tensors), dict(self.base.files)
        config = dict(self.base.config) if self.base.config is not None else None
        texts: dict[str, str] = {}
        for edit in self.edits:
            match edit:
                case SetConfig(key, value):
                    config = {**(config or {}), key: value}
                case DropTensor(name):
                    del tensors[name]
                case PutFile(name, text):
                    texts[name] = text
                    files.pop(name, None)
                case DropFile(name):
                    del files[name]
                case AddTensor(name, tensor) | ReplaceTensor(name, tensor):
                    tensors[name] = tensor
        provenance = self.base.provenance
        if self.record is not None:
            provenance = {**(provenance or {}), "needs_alignment": self.record.needs_alignment}
        return replace(
            self.base,
            tensors=tensors,
            config=config,
            files=files,
            texts=texts,
            provenance=provenance,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON: what ``save_plan`` writes and ``load_plan`` reads."""
        return plan_to_json(self)

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield the operation, its inputs, its edits counted by kind, and its notes."""
        yield "operation", self.operation
        yield "base", self.base.root or "none"
        if self.donors:
            yield "donors", tuple(donor.root for donor in self.donors)
        yield "edits", count_by_type(self.edits) or "none"
        if self.record is not None and self.record.needs_alignment:
            yield "needs alignment", True
        yield from (("note", note) for note in self.notes)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON: inputs with fingerprints, edits that name tensors of the inputs."""
    inputs = (plan.base, *plan.donors)
    origins = {
        tensor: (index, name)
        for index, checkpoint in enumerate(inputs)
        for name, tensor in checkpoint.tensors.items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "operation": plan.operation,
        "inputs": [
            {
                "path": checkpoint.root,
                **({"revision": checkpoint.revision} if checkpoint.revision else {}),
                "files": [_file_json(file) for file in files],
            }
            for checkpoint, files in zip(inputs, _inputs(plan), strict=True)
        ],
        "edits": [_edit_json(edit, origins) for edit in plan.edits],
        "notes": list(plan.notes),
        "record": asdict(plan.record) if plan.record is not None else None,
    }


def input_paths(data: Any) -> tuple[str, ...]:
    """Return the paths or pinned addresses of a saved plan's inputs; empty for no base.

    Raises InputError if ``data`` is no plan of this version.
    """
    plan = _expect(data, dict, "the plan")
    if plan.get("format") != FORMAT:
        raise _not_a_plan("JSON of another kind")
    if _expect(plan.get("version"), int, "a version") != VERSION:
        raise _not_a_plan(f"version {plan['version']}")
    inputs = _expect(plan.get("inputs"), list, "inputs")
    if not inputs:
        raise _not_a_plan("no inputs")
    return tuple(_expect(_expect(i, dict, "an input").get("path"), str, "a path") for i in inputs)


def input_revisions(data: Any) -> tuple[str, ...]:
    """Return the branch or tag that led to each of a saved plan's inputs, or an empty text.

    Raises InputError if ``data`` is no plan of this version.
    """
    input_paths(data)
    return tuple(_expect(entry.get("revision", ""), str, "a revision") for entry in data["inputs"])


def plan_from_json(data: Any, inputs: Sequence[Checkpoint]) -> Plan:
    """Read the plan of ``data`` on its re-opened ``inputs``.

    Raises StaleInputError if an input is not, byte for byte as far as fingerprints tell, the one
    that the plan was computed from, and InputError if ``data`` is not a plan.
    """
    input_paths(data)
    for number, (checkpoint, entry) in enumerate(zip(inputs, data["inputs"], strict=True)):
        files = files_read(checkpoint) if number else checkpoint.fingerprint
        _check_unchanged(checkpoint.root, files, _expect(entry.get("files"), list, "files"))
    edits = [_edit_from_json(edit, inputs) for edit in _expect(data.get("edits"), list, "edits")]
    notes = [_expect(note, str, "a note") for note in _expect(data.get("notes"), list, "notes")]
    operation = _expect(data.get("operation"), str, "operation")
    record = _record_from_json(data.get("record"))
    try:
        return Plan(operation, inputs[0], tuple(edits), tuple(inputs[1:]), tuple(notes), record)
    except ValueError as error:
        raise _not_a_plan(str(error)) from error


def subject_of(edit: Edit) -> tuple[str, str]:
    """Return what an edit is about: ``config``, ``file`` or ``tensor``, and its key or name."""
    if isinstance(edit, SetConfig):
        return "config", edit.key
    return "file" if isinstance(edit, PutFile | DropFile) else "tensor", edit.name


def _file_json(file: File) -> dict[str, Any]:
    if isinstance(file, RemoteFile):
        return {"path": file.path, "size": file.size, "etag": file.etag, "digest": file.digest}
    return {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "digest": file.digest}


_KINDS: Final[dict[str, type[AddTensor] | type[ReplaceTensor]]] = {
    "add-tensor": AddTensor,
    "replace-tensor": ReplaceTensor,
}


def _edit_json(edit: Edit, origins: Mapping[Tensor, tuple[int, str]]) -> dict[str, Any]:
    if isinstance(edit, SetConfig):
        return {"edit": "set-config", "key": edit.key, "value": edit.value, "reason": edit.reason}
    if isinstance(edit, DropTensor | DropFile):
        what = "drop-tensor" if isinstance(edit, DropTensor) else "drop-file"
        return {"edit": what, "name": edit.name, "reason": edit.reason}
    if isinstance(edit, PutFile):
        return {"edit": "put-file", "name": edit.name, "text": edit.text, "reason": edit.reason}
    kind = "add-tensor" if isinstance(edit, AddTensor) else "replace-tensor"
    if isinstance(edit.tensor, RandomInit):
        drawn = asdict(edit.tensor) | {"shape": list(edit.tensor.shape)}
        return {"edit": kind, "name": edit.name, "init": drawn, "reason": edit.reason}
    ref = edit.tensor.ref if isinstance(edit.tensor, Cast) else edit.tensor
    origin, name = origins[ref]
    return {
        "edit": kind,
        "name": edit.name,
        "input": origin,
        "tensor": name,
        "dtype": edit.tensor.dtype,
        "reason": edit.reason,
    }


def _record_from_json(data: Any) -> Record | None:
    if data is None:
        return None
    record = _expect(data, dict, "a record")
    roles = _expect(record.get("roles"), list, "roles")
    seed = record.get("seed")
    return Record(
        tuple(_expect(role, str, "a role") for role in roles),
        _expect(record.get("arguments"), dict, "arguments"),
        None if seed is None else _expect(seed, int, "a seed"),
        _expect(record.get("needs_alignment"), bool, "needs_alignment"),
    )


def _edit_from_json(data: Any, inputs: Sequence[Checkpoint]) -> Edit:
    edit = _expect(data, dict, "an edit")
    kind = _expect(edit.get("edit"), str, "an edit")
    reason = _expect(edit.get("reason"), str, "a reason")
    if kind == "set-config":
        return SetConfig(_expect(edit.get("key"), str, "a key"), edit.get("value"), reason)
    name = _expect(edit.get("name"), str, "a name")
    if kind == "drop-tensor":
        return DropTensor(name, reason)
    if kind == "drop-file":
        return DropFile(name, reason)
    if kind == "put-file":
        return PutFile(_file_name(name), _expect(edit.get("text"), str, "a text"), reason)
    if kind not in _KINDS:
        raise _not_a_plan(f"an edit {kind!r}")
    if "init" in edit:
        return _KINDS[kind](name, _init_from_json(edit["init"]), reason)
    origin = _expect(edit.get("input"), int, "an input")
    donor = inputs[origin].tensors if 0 <= origin < len(inputs) else {}
    tensor = donor.get(_expect(edit.get("tensor"), str, "a tensor"))
    if not isinstance(tensor, TensorRef):
        raise _not_a_plan(f"{edit.get('tensor')!r} is not a tensor of input {origin}")
    dtype = _expect(edit.get("dtype"), str, "a dtype")
    if not can_cast(tensor.dtype, dtype):
        raise _not_a_plan(f"a conversion of {tensor.dtype} to {dtype!r}")
    return _KINDS[kind](name, tensor if dtype == tensor.dtype else Cast(tensor, dtype), reason)


def _file_name(name: str) -> str:
    """Check that a name stays in the output directory and is not taken for code or weights."""
    if not _FILE.fullmatch(name):
        raise _not_a_plan(f"a file {name!r}")
    return name


def _init_from_json(data: Any) -> RandomInit:
    drawn = _expect(data, dict, "an initialisation")
    dtype = _expect(drawn.get("dtype"), str, "a dtype")
    sizes = _expect(drawn.get("shape"), list, "a shape")
    bound, fill = drawn.get("bound"), _expect(drawn.get("fill"), float, "a fill")
    if not abs(fill) < _LARGEST_VALUE:
        raise _not_a_plan(f"a fill {fill}")
    if dtype not in CAST_TARGETS or not all(type(size) is int and size >= 0 for size in sizes):
        raise _not_a_plan(f"an initialisation of {dtype} {sizes}")
    try:
        nbytes(dtype, sizes)
    except OverflowError as error:
        raise _not_a_plan(str(error)) from error
    if bound is not None and not 0 <= _expect(bound, float, "a bound") < _LARGEST_VALUE:
        raise _not_a_plan(f"a bound {bound}")
    seed, name = (
        _expect(drawn.get("seed"), int, "a seed"),
        _expect(drawn.get("name"), str, "a name"),
    )
    return RandomInit(dtype, tuple(sizes), seed, name, bound, fill)


def _inputs(plan: Plan) -> list[tuple[File, ...]]:
    """Return the files that matter of each input: all of the base, of a donor those read."""
    return [plan.base.fingerprint, *map(files_read, plan.donors)]


def _check_unchanged(root: str, seen: Sequence[File], files: Sequence[Any]) -> None:
    now = [_file_json(file) for file in seen]
    if now == list(files):
        return
    before = {str(f.get("path")): f for f in files if isinstance(f, Mapping)}
    changed = next(
        (f["path"] for f in now if before.get(f["path"]) != f),
        next((path for path in before if path not in {f["path"] for f in now}), root),
    )
    raise StaleInputError(
        "input-changed",
        changed,
        expected="the file that the plan was computed from",
        got="another size, time or content",
        hint="compute the plan again",
    )


def _expect(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise _not_a_plan(f"{what} that is a {type(value).__name__}")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _not_a_plan(f"{what} with a lone surrogate") from error
    return value


def _not_a_plan(got: str) -> InputError:
    return InputError(
        "invalid-plan",
        "the plan",
        expected=f"a plan of version {VERSION}",
        got=got,
        hint="write one with --plan-out",
    )
