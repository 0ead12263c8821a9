"""Replace remote files in checkpoints and plans by their copies on the disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace

from vita_ckpt.core.checkpoint import (
    Cast,
    Checkpoint,
    File,
    LocalFile,
    LoraMerge,
    Mean,
    Part,
    Pieces,
    RemoteFile,
    Stored,
    Tensor,
    TensorRef,
    refs_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.plan import AddTensor, CopyFile, Edit, Plan, ReplaceTensor


@dataclass(frozen=True, slots=True)
class Relocation:
    """Local copies of remote files, and of tensors whose files were not fetched whole."""

    files: Mapping[RemoteFile, LocalFile] = field(default_factory=dict)
    tensors: Mapping[TensorRef, TensorRef] = field(default_factory=dict)

    def file(self, file: File) -> File:
        """Return the local copy of ``file``, or ``file`` itself if it was not fetched."""
        return self.files.get(file, file) if isinstance(file, RemoteFile) else file

    def tensor(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` with its location in a local file."""
        return self._stored(tensor) if isinstance(tensor, Pieces) else self._part(tensor)

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """Return ``checkpoint`` with local copies of everything that was fetched."""
        training = checkpoint.training
        copies = {n: self._ref(ref) for n, ref in training.copies.items()} if training else {}
        return replace(
            checkpoint,
            tensors={name: self.tensor(tensor) for name, tensor in checkpoint.tensors.items()},
            shards=tuple(replace(s, file=self.file(s.file)) for s in checkpoint.shards),
            files={name: self.file(file) for name, file in checkpoint.files.items()},
            training=None if training is None else replace(training, copies=copies),
        )

    def plan(self, plan: Plan) -> Plan:
        """Return ``plan`` with local copies of everything that was fetched."""
        edits = tuple(self._edit(edit) for edit in plan.edits)
        return replace(plan, base=self.checkpoint(plan.base), edits=edits)

    def _part(self, part: Part) -> Part:
        if isinstance(part, Cast | Mean):
            return replace(part, ref=self._ref(part.ref))
        if isinstance(part, LoraMerge):
            a, magnitude = part.a, part.magnitude
            return replace(
                part,
                base=self._stored(part.base),
                b=self._stored(part.b),
                a=None if a is None else self._stored(a),
                magnitude=None if magnitude is None else self._stored(magnitude),
            )
        return self._ref(part) if isinstance(part, TensorRef) else part

    def _stored(self, tensor: Stored) -> Stored:
        if isinstance(tensor, TensorRef):
            return self._ref(tensor)
        return replace(tensor, parts=tuple(map(self.tensor, tensor.parts)))

    def _ref(self, ref: TensorRef) -> TensorRef:
        return self.tensors.get(ref) or replace(ref, source=self.file(ref.source))

    def _edit(self, edit: Edit) -> Edit:
        if isinstance(edit, AddTensor | ReplaceTensor):
            return replace(edit, tensor=self.tensor(edit.tensor))
        if isinstance(edit, CopyFile):
            return replace(edit, file=self.file(edit.file))
        return edit


def remote_refs(tensors: Mapping[str, Tensor]) -> frozenset[TensorRef]:
    """Return the locations of the tensors, including converted ones, that are in remote files."""
    refs = (ref for tensor in tensors.values() for ref in refs_of(tensor))
    return frozenset(ref for ref in refs if isinstance(ref.source, RemoteFile))


def are_remote(tensors: Iterable[Tensor]) -> bool:
    """Return whether any of the tensors is, in whole or in part, in a remote file."""
    refs = (ref for tensor in tensors for ref in refs_of(tensor))
    return any(isinstance(ref.source, RemoteFile) for ref in refs)
