"""Represent surgery as data: a plan computes its target and writes nothing."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from operator import itemgetter
from typing import Any, Final, Literal

from vita_ckpt.core.checkpoint import (
    Cast,
    Checkpoint,
    File,
    LoraMerge,
    Mean,
    Part,
    Pieces,
    RandomInit,
    RemoteFile,
    Stored,
    Tensor,
    TensorRef,
    files_read,
    parts_of,
    refs_of,
    uncast,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed, count_by_type
from vita_ckpt.core.filenames import CONFIG, MANIFEST, PROVENANCE
from vita_ckpt.core.serving import followed
from vita_ckpt.errors import InputError, StaleInputError

FORMAT: Final = "vita-ckpt-plan"
VERSION: Final = 3


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
class CopyFile:
    """A file of one of the donors, which the target has byte for byte under ``name``."""

    name: str
    file: File
    reason: str


@dataclass(frozen=True, slots=True)
class DropFile:
    """A file of the base that the target does not have."""

    name: str
    reason: str


# One change of a checkpoint.
Edit = AddTensor | ReplaceTensor | DropTensor | SetConfig | PutFile | CopyFile | DropFile


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The form of the weight files of a target that are all laid out anew.

    ``max_shard_size`` is in bytes, 0 for one file and None to keep each tensor in its file.
    """

    format: Literal["safetensors", "torch"]
    max_shard_size: int | None = None


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
    part, which starts a lineage of its own. ``request`` is what the planner was asked for beside
    its inputs, as JSON values: a saved plan is computed again from it. A plan without one cannot be
    saved. ``weight_files`` says how all weight files are written; None keeps those of the base.
    Without a base, ``placed`` names the weight file of tensors that do not go into
    ``model.safetensors``.
    """

    operation: str
    base: Checkpoint
    edits: tuple[Edit, ...]
    donors: tuple[Checkpoint, ...] = ()
    notes: tuple[str, ...] = ()
    record: Record | None = None
    request: Mapping[str, Any] | None = None
    weight_files: WeightFiles | None = None
    placed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.record is not None and len(self.record.roles) != len(self.donors):
            raise ValueError("a role for each donor")
        seen: set[tuple[str, str]] = set()
        for edit in self.edits:
            subject = subject_of(edit)
            if subject in seen:
                raise ValueError(f"two edits of {subject[1]}")
            seen.add(subject)
            if isinstance(edit, PutFile | CopyFile | DropFile) and edit.name in (
                PROVENANCE,
                MANIFEST,
            ):
                raise ValueError(f"an edit of {edit.name}, which follows from what is done")
            if isinstance(edit, SetConfig | PutFile | CopyFile):
                own = (("file", CONFIG), ("file", self.base.config_file))
                if subject in own and self.base.config is not None:
                    raise ValueError(f"another {subject[1]}, whose keys are what is set")
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

    @property
    def computed(self) -> frozenset[str]:
        """Return the names of the tensors that are more than stored bytes of the base, moved."""
        own = {shard.file for shard in self.base.shards}
        return frozenset(
            edit.name
            for edit in self.tensor_edits
            if not all(isinstance(part, TensorRef) for part in parts_of(edit.tensor))
            or any(ref.source not in own for ref in refs_of(edit.tensor))
        )

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
                case CopyFile(name, file):
                    files[name] = file
                case DropFile(name):
                    del files[name]
                case AddTensor(name, tensor) | ReplaceTensor(name, tensor):
                    tensors[name] = tensor
        provenance = self.base.provenance
        if self.record is not None:
            provenance = {**(provenance or {}), "needs_alignment": self.record.needs_alignment}
        serving = self.base.serving_config
        if serving is not None:
            changed = {edit.key: edit.value for edit in self.edits if isinstance(edit, SetConfig)}
            serving = followed(serving, changed, texts)
        return replace(
            self.base,
            tensors=tensors,
            config=config,
            serving_config=serving,
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
    origins = _Origins(inputs)
    return {
        "format": FORMAT,
        "version": VERSION,
        "operation": plan.operation,
        "request": dict(plan.request) if plan.request is not None else None,
        "inputs": [
            {
                "path": checkpoint.root,
                **({"revision": checkpoint.revision} if checkpoint.revision else {}),
                **({"key": checkpoint.key} if checkpoint.key else {}),
                "files": [_file_json(file) for file in files],
            }
            for checkpoint, files in zip(inputs, _inputs(plan), strict=True)
        ],
        "edits": [_edit_json(edit, origins) for edit in plan.edits],
        "notes": list(plan.notes),
        "record": asdict(plan.record) if plan.record is not None else None,
        **({"weight_files": asdict(plan.weight_files)} if plan.weight_files is not None else {}),
        **({"placed": dict(plan.placed)} if plan.placed else {}),
    }


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan as a file says it, before anything in it is believed.

    ``paths`` are those of its inputs, or their pinned addresses, empty for no base. ``revisions``
    are the branches or tags that led to them, or empty texts; ``keys`` the paths of the state dicts
    that were asked for in their files.
    """

    content: Mapping[str, Any]
    operation: str
    request: Mapping[str, Any]
    paths: tuple[str, ...]
    revisions: tuple[str, ...]
    keys: tuple[str, ...]

    def check_inputs(self, inputs: Sequence[Checkpoint]) -> None:
        """Raise StaleInputError unless ``inputs`` are what the plan was computed from.

        They are compared byte for byte as far as fingerprints tell.
        """
        for number, (checkpoint, entry) in enumerate(
            zip(inputs, self.content["inputs"], strict=True)
        ):
            files = files_read(checkpoint) if number else checkpoint.fingerprint
            _check_unchanged(checkpoint.root, files, _expect(entry.get("files"), list, "files"))

    def check_same(self, plan: Plan) -> None:
        """Raise InputError unless ``plan``, computed again, is the one that was saved.

        Notes may differ: they also tell of what lies around the inputs.
        """
        computed = json.loads(json.dumps(plan_to_json(plan)))
        for key in computed | dict(self.content):
            if key not in self.content:
                raise not_a_plan(f"no {key}")
            if key == "edits":
                _check_same_edits(self.content.get(key), computed[key])
            elif key == "notes":
                _check_notes(self.content.get(key))
            elif key not in computed:
                raise not_a_plan(f"a key {key!r}")
            elif self.content.get(key) != computed[key]:
                raise not_a_plan(f"another {key} than a {plan.operation} of its inputs has")


def saved_plan(data: Any) -> SavedPlan:
    """Read the part of a saved plan from which it can be computed again.

    Raises InputError if ``data`` is no plan of this version.
    """
    content = _expect(data, dict, "the plan")
    if content.get("format") != FORMAT:
        raise not_a_plan("JSON of another kind")
    if _expect(content.get("version"), int, "a version") != VERSION:
        raise not_a_plan(f"version {content['version']}")
    inputs = _expect(content.get("inputs"), list, "inputs")
    if not inputs:
        raise not_a_plan("no inputs")
    entries = [_expect(entry, dict, "an input") for entry in inputs]
    return SavedPlan(
        content,
        _expect(content.get("operation"), str, "an operation"),
        _expect(content.get("request"), dict, "a request"),
        tuple(_path(entry.get("path")) for entry in entries),
        tuple(_expect(entry.get("revision", ""), str, "a revision") for entry in entries),
        tuple(_expect(entry.get("key", ""), str, "a key") for entry in entries),
    )


def subject_of(edit: Edit) -> tuple[str, str]:
    """Return what an edit is about: ``config``, ``file`` or ``tensor``, and its key or name."""
    if isinstance(edit, SetConfig):
        return "config", edit.key
    is_file = isinstance(edit, PutFile | CopyFile | DropFile)
    return "file" if is_file else "tensor", edit.name


def _file_json(file: File) -> dict[str, Any]:
    if isinstance(file, RemoteFile):
        return {"path": file.path, "size": file.size, "etag": file.etag, "digest": file.digest}
    return {"path": file.path, "size": file.size, "mtime_ns": file.mtime_ns, "digest": file.digest}


class _Origins:
    """Where the stored tensors of a plan come from: the number of an input, and a name in it."""

    def __init__(self, inputs: Sequence[Checkpoint]) -> None:
        self._whole: dict[Tensor, tuple[int, str]] = {}
        self._by_file: dict[File, list[tuple[int, int, str]]] = {}
        for index, checkpoint in enumerate(inputs):
            for name, tensor in checkpoint.tensors.items():
                self._whole[uncast(tensor)] = index, name
                for ref in refs_of(tensor):
                    self._by_file.setdefault(ref.source, []).append((ref.offset, index, name))
        for places in self._by_file.values():
            places.sort()

    def whole(self, tensor: Tensor) -> dict[str, Any] | None:
        """Return the origin of a tensor of an input as JSON; None if it is no such tensor."""
        found = self._whole.get(uncast(tensor))
        return None if found is None else {"input": found[0], "tensor": found[1]}

    def of(self, ref: TensorRef) -> dict[str, Any]:
        """Return the origin as JSON; of a part of a tensor, where it begins in bytes too."""
        whole = self.whole(ref)
        if whole is not None:
            return whole
        places = self._by_file[ref.source]
        offset, index, name = places[bisect_right(places, ref.offset, key=itemgetter(0)) - 1]
        strides = {} if ref.strides is None else {"strides": list(ref.strides)}
        at = {"offset": ref.offset - offset, "shape": list(ref.shape), **strides}
        return {"input": index, "tensor": name, **at}


def _edit_json(edit: Edit, origins: _Origins) -> dict[str, Any]:
    if isinstance(edit, SetConfig):
        return {"edit": "set-config", "key": edit.key, "value": edit.value, "reason": edit.reason}
    if isinstance(edit, DropTensor | DropFile):
        what = "drop-tensor" if isinstance(edit, DropTensor) else "drop-file"
        return {"edit": what, "name": edit.name, "reason": edit.reason}
    if isinstance(edit, PutFile):
        return {"edit": "put-file", "name": edit.name, "text": edit.text, "reason": edit.reason}
    if isinstance(edit, CopyFile):
        file = _file_json(edit.file)
        return {"edit": "copy-file", "name": edit.name, "file": file, "reason": edit.reason}
    kind = "add-tensor" if isinstance(edit, AddTensor) else "replace-tensor"
    tensor = _tensor_json(edit.tensor, origins)
    return {"edit": kind, "name": edit.name, **tensor, "reason": edit.reason}


def _tensor_json(tensor: Tensor, origins: _Origins) -> dict[str, Any]:
    if not isinstance(tensor, Pieces):
        return _part_json(tensor, origins)
    whole = origins.whole(tensor)
    if whole is not None:
        return {**whole, "dtype": tensor.dtype}
    pieces = [_tensor_json(part, origins) for part in tensor.parts]
    runs = {} if tensor.runs == 1 else {"runs": tensor.runs}
    return {"pieces": pieces, "shape": list(tensor.shape), **runs}


def _part_json(part: Part, origins: _Origins) -> dict[str, Any]:
    if isinstance(part, RandomInit):
        drawn = asdict(part) | {"shape": list(part.shape)}
        if part.std is None:
            del drawn["std"]
        return {"init": drawn}
    if isinstance(part, Mean):
        mean = {"mean of": origins.of(part.ref), "shape": list(part.shape)}
        return {**mean, "dtype": part.dtype}
    if isinstance(part, LoraMerge):
        return {"merge": _merge_json(part, origins), "dtype": part.dtype}
    ref = part.ref if isinstance(part, Cast) else part
    return {**origins.of(ref), "dtype": part.dtype}


def _merge_json(merge: LoraMerge, origins: _Origins) -> dict[str, Any]:
    made = {"base": merge.base, "a": merge.a, "b": merge.b, "magnitude": merge.magnitude}
    return {
        **{role: None if one is None else _factor_json(one, origins) for role, one in made.items()},
        "scale": merge.scale,
        "is_embedding": merge.is_embedding,
    }


def _factor_json(tensor: Stored, origins: _Origins) -> dict[str, Any]:
    if isinstance(tensor, TensorRef):
        return origins.of(tensor)
    return origins.whole(tensor) or _tensor_json(tensor, origins)


def _check_same_edits(saved: Any, computed: Sequence[Mapping[str, Any]]) -> None:
    edits = _expect(saved, list, "edits")
    if edits == computed:
        return
    strange = next((edit for edit in edits if edit not in computed), None)
    if strange is None:
        raise not_a_plan("other edits than its operation makes: some are missing or out of order")
    kind, name = (
        (strange.get("edit"), strange.get("name", strange.get("key")))
        if isinstance(strange, Mapping)
        else ("an edit", strange)
    )
    raise not_a_plan(f"what its operation does not make of its inputs: {kind} {name!r}")


def _check_notes(saved: Any) -> None:
    for note in _expect(saved, list, "notes"):
        _expect(note, str, "a note")


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


def _path(value: Any) -> str:
    """Check a path, in which bytes that are no UTF-8 stand as Python spells them."""
    path: str = _expect(value, str, "a path")
    try:
        path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise not_a_plan("a path with a lone surrogate") from None
    if "\0" in path:
        raise not_a_plan("a path with a NUL")
    return path


def _expect(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise not_a_plan(f"{what} that is a {type(value).__name__}")
    return value


def not_a_plan(got: str) -> InputError:
    """Return the error for a file that is no plan, or one that was changed."""
    return InputError(
        "invalid-plan",
        "the plan",
        expected=f"a plan of version {VERSION}, as it was saved",
        got=got,
        hint="write one with --plan-out",
    )


def choice_of(asked: str | None, donors: Sequence[Checkpoint]) -> Checkpoint | str | None:
    """Return the adapter among the donors of a swap, or what was asked for without one."""
    if asked not in (("keep", "reinit", None) if len(donors) == 1 else (None,)):
        raise not_a_plan(f"a choice {asked!r} of {len(donors)} donors")
    return donors[1] if len(donors) > 1 else asked
