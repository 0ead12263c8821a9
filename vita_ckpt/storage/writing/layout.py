"""Decide from sizes alone which files of a target are kept, patched or rewritten."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vita_ckpt.core.anatomy.audio.directory import WEIGHTS
from vita_ckpt.core.anatomy.parts import part_of
from vita_ckpt.core.checkpoint import Checkpoint, File, Shape, Shard, Tensor
from vita_ckpt.core.dtype import BITS
from vita_ckpt.core.filenames import (
    CONFIG,
    MANIFEST,
    PROVENANCE,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    TORCH_INDEX_SUFFIX,
    is_no_weight_file,
)
from vita_ckpt.core.plan import Plan
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.safetensors import encode_header

# What the weights of a part on its own are called, where it is not safetensors' usual name.
_NAMES = {"extract-audio-encoder": WEIGHTS}


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A file of the base that the output keeps byte for byte."""

    name: str
    source: File


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A safetensors file to write, or a ``.pt`` of torch.

    ``entries`` are (name, tensor) in storage order.
    """

    name: str
    metadata: Mapping[str, str]
    entries: tuple[tuple[str, Tensor], ...]

    @property
    def is_pickled(self) -> bool:
        """Whether it is a file of torch."""
        return self.name.endswith(".pt")

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(tensor.nbytes for _, tensor in self.entries)


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A small file whose entire content is known."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PatchedShard:
    """A safetensors file of unchanged size in which some byte ranges are replaced.

    ``header`` is its new beginning, empty if that does not change. ``entries`` are (offset in the
    file, name, tensor), in the order of the file.
    """

    name: str
    file: File
    header: bytes
    entries: tuple[tuple[int, str, Tensor], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return len(self.header) + sum(tensor.nbytes for _, _, tensor in self.entries)


@dataclass(frozen=True, slots=True)
class InPlaceLayout:
    """The changes to a directory; all other files stay unchanged.

    ``shards`` and ``texts`` are written to temporary files and renamed. ``removed`` are the files
    to delete.
    """

    patched: tuple[PatchedShard, ...]
    shards: tuple[WrittenShard, ...]
    texts: tuple[WrittenText, ...]
    removed: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether there are any changes."""
        return bool(self.patched or self.shards or self.texts or self.removed)

    @property
    def names(self) -> tuple[str, ...]:
        """Every file that does, but those that say what was done."""
        parts: tuple[PatchedShard | WrittenShard | WrittenText, ...] = (
            *self.patched,
            *self.shards,
            *self.texts,
        )
        return (*(part.name for part in parts), *self.removed)

    @property
    def bytes_written(self) -> int:
        """Bytes of patches, rewritten shards and texts."""
        parts: tuple[PatchedShard | WrittenShard, ...] = (*self.patched, *self.shards)
        return sum(part.nbytes for part in parts) + sum(len(t.data) for t in self.texts)


@dataclass(frozen=True, slots=True)
class DirectoryLayout:
    """Every file of an output directory, except those that record the operation."""

    carried: tuple[CarriedFile, ...]
    shards: tuple[WrittenShard, ...]
    texts: tuple[WrittenText, ...]

    @property
    def bytes_carried(self) -> int:
        """Bytes that are copied unchanged."""
        return sum(file.source.size for file in self.carried)

    @property
    def bytes_written(self) -> int:
        """Bytes of rewritten shards and texts."""
        return sum(shard.nbytes for shard in self.shards) + sum(len(t.data) for t in self.texts)


def storage_order(
    entries: Mapping[str, Tensor], ranks: Mapping[str, int]
) -> tuple[tuple[str, Tensor], ...]:
    """Return ``entries`` in safetensors' storage order: wide dtypes first, so that all are aligned.

    ``ranks`` keeps the tensors of a rewritten file in their old order; new names come after them.
    """
    return tuple(
        sorted(
            entries.items(),
            key=lambda item: (-BITS[item[1].dtype], ranks.get(item[0], len(ranks)), item[0]),
        )
    )


def plan_layout(plan: Plan, carry: Collection[str] = ()) -> DirectoryLayout:
    """Return the files of the target of ``plan``, whose base is a directory, or empty.

    Pickles that are not weight files are left out, except those that match a glob of ``carry``.

    If no tensor changes, every file is carried. Otherwise a safetensors shard without changed
    tensors is carried, and any other shard is rewritten; ``.bin`` shards become safetensors. A new
    tensor goes to the shard with the most tensors of its part. Without a base the output is one
    file.
    """
    base, target = plan.base, plan.target()
    put = tuple(WrittenText(name, text.encode()) for name, text in target.texts.items())
    if not base.shards:
        name = _NAMES.get(plan.operation, SAFETENSORS)
        whole = WrittenShard(name, {"format": "pt"}, storage_order(target.tensors, {}))
        return DirectoryLayout((), (whole,), put)
    carried, written, index = _weight_files(base, target)
    texts = (*_config_text(base, target), *index, *put)
    gone = {text.name for text in texts}
    if SAFETENSORS_INDEX in gone:  # the index of .bin shards is obsolete
        gone |= {name for name in base.files if name.endswith(TORCH_INDEX_SUFFIX)}
    if plan.record is not None:  # written last, from what was written
        gone |= {PROVENANCE, MANIFEST}
    gone |= {*pickles_left_out(target, carry)}
    carried += [CarriedFile(name, file) for name, file in target.files.items() if name not in gone]
    return DirectoryLayout(tuple(carried), tuple(written), texts)


def pickles_left_out(checkpoint: Checkpoint, carry: Collection[str]) -> list[str]:
    """The pickles of a checkpoint that are no weight files and match no pattern of ``carry``."""
    return [
        name
        for name in checkpoint.files
        if is_no_weight_file(name.rpartition("/")[2])
        and not any(fnmatchcase(part, p) for p in carry for part in (name, name.rpartition("/")[2]))
    ]


def plan_in_place(plan: Plan, layout: DirectoryLayout, shared: Collection[str]) -> InPlaceLayout:
    """Return the changes that turn the base of ``plan`` into ``layout``.

    A shard whose tensors keep their positions is patched, unless it is in ``shared``: other names
    lead to the bytes of these files, so they are rewritten, as are shards whose tensors move.
    """
    base = plan.base
    base_shards = {shard.name: shard for shard in base.shards}
    patched: list[PatchedShard] = []
    written: list[WrittenShard] = []
    for shard in layout.shards:
        old = base_shards.get(shard.name)
        patch = _patch(base, old, shard) if old is not None and shard.name not in shared else None
        if patch is None:
            written.append(shard)
        else:
            patched.append(patch)
    kept = {file.name for file in layout.carried}
    kept |= {shard.name for shard in layout.shards} | {text.name for text in layout.texts}
    gone = (base_shards.keys() | base.files.keys()) - kept - {PROVENANCE, MANIFEST}
    return InPlaceLayout(tuple(patched), tuple(written), layout.texts, tuple(sorted(gone)))


def _patch(base: Checkpoint, old: Shard, new: WrittenShard) -> PatchedShard | None:
    """Return how to turn ``old`` into ``new`` without moving a tensor; None if impossible."""
    before = {n: ref for n, ref in base.refs.items() if ref.source == old.file}
    after = dict(new.entries)
    if before.keys() != after.keys() or not before:
        return None
    if any(
        (BITS[ref.dtype], ref.nbytes) != (BITS[after[name].dtype], after[name].nbytes)
        for name, ref in before.items()
    ):
        return None
    in_order = sorted(before, key=lambda name: (before[name].offset, before[name].nbytes))
    header = b""
    if any(_described(ref) != _described(after[name]) for name, ref in before.items()):
        start = before[in_order[0]].offset
        described = [(name, *_described(after[name])) for name in in_order]
        encoded, _ = encode_header(described, new.metadata)
        if len(encoded) > start:
            return None
        header = (start - 8).to_bytes(8, "little") + encoded[8:].ljust(start - 8)
    changed = [name for name in in_order if after[name] != before[name]]
    entries = tuple((before[name].offset, name, after[name]) for name in changed)
    return PatchedShard(old.name, old.file, header, entries)


def _described(tensor: Tensor) -> tuple[str, Shape]:
    return tensor.dtype, tensor.shape


def _weight_files(
    base: Checkpoint, target: Checkpoint
) -> tuple[list[CarriedFile], list[WrittenShard], tuple[WrittenText, ...]]:
    """Return the carried shards, the written shards, and the index if it changes."""
    if target.tensors == base.tensors:
        return [CarriedFile(shard.name, shard.file) for shard in base.shards], [], ()
    _check_names(base)
    held = _place(base, target)
    carried: list[CarriedFile] = []
    written: list[WrittenShard] = []
    weight_map: dict[str, str] = {}
    refs = base.refs
    for shard in base.shards:
        before = {n: ref for n, ref in refs.items() if ref.source == shard.file}
        now = {name: target.tensors[name] for name in held[shard.name]}
        if now == before and shard.format == "safetensors":
            carried.append(CarriedFile(shard.name, shard.file))
        elif now:
            in_order = sorted(before, key=lambda name: before[name].offset)
            ranks = {name: rank for rank, name in enumerate(in_order)}
            name = _safetensors_name(shard)
            written.append(WrittenShard(name, _metadata(shard), storage_order(now, ranks)))
        weight_map |= dict.fromkeys(now, _safetensors_name(shard))
    return carried, written, _index_text(base, target, weight_map)


def _place(base: Checkpoint, target: Checkpoint) -> dict[str, list[str]]:
    """Return the names of the target's tensors by the base's shard that will hold them."""
    held: dict[str, list[str]] = {shard.name: [] for shard in base.shards}
    shard_of_file = {shard.file: shard.name for shard in base.shards}
    votes: dict[str, Counter[str]] = {}
    for name, ref in base.refs.items():
        shard = shard_of_file[ref.source]
        votes.setdefault(part_of(name), Counter())[shard] += 1
        if name in target.tensors:
            held[shard].append(name)
    for name in target.tensors.keys() - base.tensors.keys():
        most = votes.get(part_of(name), Counter()).most_common(1)
        held[most[0][0] if most else base.shards[-1].name].append(name)
    return held


def _check_names(base: Checkpoint) -> None:
    """Raise InputError if shards such as ``pytorch_model-1.bin`` and ``model-1.bin`` collide."""
    taken: dict[str, str] = {}
    for shard in base.shards:
        other = taken.setdefault(_safetensors_name(shard), shard.name)
        if other != shard.name:
            raise InputError(
                "shard-names-collide",
                f"{base.root}: {shard.name}",
                expected="shards that get different names as safetensors",
                got=f"also {other}",
                hint="rename one of them, and its entries in the index",
            )


def _safetensors_name(shard: Shard) -> str:
    if shard.format == "safetensors":
        return shard.name
    return shard.name.removeprefix("pytorch_").removesuffix(".bin") + ".safetensors"


def _metadata(shard: Shard) -> Mapping[str, str]:
    """Return a shard's own metadata; transformers 4.41 refuses a file without a format."""
    return {"format": "pt", **shard.metadata}


def _config_text(base: Checkpoint, target: Checkpoint) -> tuple[WrittenText, ...]:
    if target.config == base.config:
        return ()
    return (WrittenText(CONFIG, _json(target.config)),)


def _index_text(
    base: Checkpoint, target: Checkpoint, weight_map: Mapping[str, str]
) -> tuple[WrittenText, ...]:
    """Return the index if it must be rewritten, because the old one would be wrong."""
    if base.index is None:
        return ()
    sizes = [sum(t.nbytes for t in tensors.values()) for tensors in (base.tensors, target.tensors)]
    if (
        SAFETENSORS_INDEX in base.files
        and weight_map == base.index["weight_map"]
        and sizes[0] == sizes[1]
    ):
        return ()
    metadata = base.index.get("metadata")
    index = {
        "metadata": {**(metadata if isinstance(metadata, dict) else {}), "total_size": sizes[1]},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (WrittenText(SAFETENSORS_INDEX, _json(index)),)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("ascii")
