"""Replace remote files in checkpoints and plans by their copies on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vita_ckpt.core.checkpoint import (
    Cast,
    Checkpoint,
    File,
    LocalFile,
    RemoteFile,
    Tensor,
    TensorRef,
)
from vita_ckpt.core.plan import AddTensor, Edit, Plan, ReplaceTensor


@dataclass(frozen=True, slots=True)
class Relocation:
    """Where remote files, and tensors of files that were not fetched whole, lie on the disk."""

    files: Mapping[RemoteFile, LocalFile] = field(default_factory=dict)
    tensors: Mapping[TensorRef, TensorRef] = field(default_factory=dict)

    def file(self, file: File) -> File:
        """The file on the disk; what was not fetched stays where it is."""
        return self.files.get(file, file) if isinstance(file, RemoteFile) else file

    def tensor(self, tensor: Tensor) -> Tensor:
        """The tensor in its file on the disk."""
        if isinstance(tensor, Cast):
            return replace(tensor, ref=self._ref(tensor.ref))
        return self._ref(tensor) if isinstance(tensor, TensorRef) else tensor

    def checkpoint(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with everything that was fetched on the disk."""
        return replace(
            checkpoint,
            tensors={name: self.tensor(tensor) for name, tensor in checkpoint.tensors.items()},
            shards=tuple(replace(s, file=self.file(s.file)) for s in checkpoint.shards),
            files={name: self.file(file) for name, file in checkpoint.files.items()},
        )

    def plan(self, plan: Plan) -> Plan:
        """The plan with everything that was fetched on the disk."""
        edits = tuple(self._edit(edit) for edit in plan.edits)
        return replace(plan, base=self.checkpoint(plan.base), edits=edits)

    def _ref(self, ref: TensorRef) -> TensorRef:
        return self.tensors.get(ref) or replace(ref, source=self.file(ref.source))

    def _edit(self, edit: Edit) -> Edit:
        if isinstance(edit, AddTensor | ReplaceTensor):
            return replace(edit, tensor=self.tensor(edit.tensor))
        return edit


def remote_refs(tensors: Mapping[str, Tensor]) -> frozenset[TensorRef]:
    """The places of tensors, converted ones too, in files that are not on the disk."""
    refs = (t.ref if isinstance(t, Cast) else t for t in tensors.values())
    return frozenset(
        ref for ref in refs if isinstance(ref, TensorRef) and isinstance(ref.source, RemoteFile)
    )
