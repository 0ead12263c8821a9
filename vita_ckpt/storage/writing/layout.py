"""Decide from sizes alone which files of a target are kept, patched or rewritten."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Final, Literal

from vita_ckpt.core.anatomy.audio.directory import WEIGHTS
from vita_ckpt.core.anatomy.parts import part_of
from vita_ckpt.core.checkpoint import (
    Checkpoint,
    File,
    LoraMerge,
    Shape,
    Shard,
    Tensor,
    TensorRef,
    refs_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import BITS
from vita_ckpt.core.filenames import (
    CONFIG,
    INDEX_SUFFIX,
    MANIFEST,
    PROVENANCE,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    SAFETENSORS_SUFFIX,
    TORCH,
    TORCH_INDEX,
    TORCH_INDEX_SUFFIX,
    is_no_weight_file,
)
from vita_ckpt.core.plan import Plan, WeightFiles
from vita_ckpt.core.sharding import model_order, shard_name, split
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.safetensors import encode_header

# Bytes of a shard, as transformers' save_pretrained has it by default.
_LARGEST_SHARD: Final = 5_000_000_000
_PAGE: Final = 4096
# What writes a part on its own as upstream loads it: a file of torch.
_AS_FINAL_PT = ("extract-audio-encoder",)


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A file of the base that the output keeps byte for byte."""

    name: str
    source: File


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A weight file to write; ``entries`` are (name, tensor) in storage order.

    The header of a safetensors file ends with ``spaces`` more than it needs.
    """

    name: str
    metadata: Mapping[str, str]
    entries: tuple[tuple[str, Tensor], ...]
    format: Literal["safetensors", "torch"] = "safetensors"
    spaces: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors, without the header."""
        return sum(tensor.nbytes for _, tensor in self.entries)

    def header(self) -> tuple[bytes, int]:
        """Return the header of the safetensors file, and the bytes of its data."""
        described = [(name, tensor.dtype, tensor.shape) for name, tensor in self.entries]
        return encode_header(described, self.metadata, self.spaces)


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A small file whose entire content is known."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PatchedShard:
    """A safetensors file of unchanged size in which some byte ranges are replaced.

    ``header`` is its new beginning, empty if that does not change. ``entries`` are (offset in the
    file, name, tensor) of what is replaced, in the order of the file, ``names`` those of all
    tensors that it will hold.
    """

    name: str
    file: File
    header: bytes
    entries: tuple[tuple[int, str, Tensor], ...]
    names: tuple[str, ...]

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


def plan_layout(
    plan: Plan, carry: Collection[str] = (), disguised: Collection[str] = ()
) -> DirectoryLayout:
    """Return the files of the target of ``plan``, whose base is a directory, or empty.

    Pickles that are not weight files are left out, except those that match a glob of ``carry``;
    ``disguised`` are those whose names do not tell.

    If no tensor changes, every file is carried. Otherwise a safetensors shard without changed
    tensors is carried, and any other shard is rewritten; ``.bin`` shards become safetensors. A new
    tensor goes to the shard with the most tensors of its part. Without a base the output is one
    file, or what :func:`_new_files` makes of a surgery.
    """
    base, target = plan.base, plan.target()
    put = tuple(WrittenText(name, text.encode()) for name, text in target.texts.items())
    if not base.shards:
        copied = tuple(CarriedFile(name, file) for name, file in target.files.items())
        if plan.record is not None:
            new, index = _new_files(target.tensors, plan.placed)
            return DirectoryLayout(copied, new, (*index, *put))
        entries = storage_order(target.tensors, {})
        whole = WrittenShard(SAFETENSORS, {"format": "pt"}, entries)
        if plan.operation in _AS_FINAL_PT:
            whole = WrittenShard(WEIGHTS, {}, entries, "torch")
        return DirectoryLayout(copied, (whole,), put)
    if plan.weight_files is not None:
        carried, written, index, obsolete = _new_weight_files(base, target, plan.weight_files)
    else:
        carried, written, index = _weight_files(base, target)
        # The index of .bin shards is obsolete beside another one.
        obsolete = {name for name in base.files if index and name.endswith(TORCH_INDEX_SUFFIX)}
    texts = (*_config_text(base, target), *index, *put)
    gone = {text.name for text in texts} | obsolete
    if plan.record is not None:  # written last, from what was written
        gone |= {PROVENANCE, MANIFEST}
    gone |= {*pickles_left_out(target, carry, disguised)}
    carried += [CarriedFile(name, file) for name, file in target.files.items() if name not in gone]
    return DirectoryLayout(tuple(carried), tuple(written), texts)


def _new_files(
    tensors: Mapping[str, Tensor], placed: Mapping[str, str]
) -> tuple[tuple[WrittenShard, ...], tuple[WrittenText, ...]]:
    """Return the weight files of a new checkpoint, and its index if it is sharded.

    Tensors go to the files that ``placed`` names; the others to one file, or in their order to
    shards of at most 5 GB, as transformers writes them by default.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name in placed:
            groups.setdefault(placed[name], {})[name] = tensor
    sizes = {name: tensor.nbytes for name, tensor in tensors.items() if name not in placed}
    files = split(sizes, _LARGEST_SHARD)
    for number, names in enumerate(files, 1):
        file = shard_name("safetensors", number, len(files))
        groups[file] = {name: tensors[name] for name in names}
    shards = tuple(
        WrittenShard(
            name,
            {"format": "pt"},
            storage_order(held, {}),
            "torch" if name.endswith(".bin") else "safetensors",
        )
        for name, held in groups.items()
    )
    if len(files) < 2:
        return shards, ()
    index = {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": dict(sorted((n, file) for file, held in groups.items() for n in held)),
    }
    return shards, (WrittenText(SAFETENSORS_INDEX, _json(index)),)


def pickles_left_out(
    checkpoint: Checkpoint, carry: Collection[str], disguised: Collection[str] = ()
) -> list[str]:
    """List the pickles that are not weight files and match no pattern of ``carry``.

    They are told by their names; ``disguised`` are those that only their content tells.
    """
    return [
        name
        for name in checkpoint.files
        if (name in disguised or is_no_weight_file(name.rpartition("/")[2]))
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
    gone = (base_shards.keys() | base.files.keys()) - kept - {PROVENANCE}
    is_torch = plan.weight_files is not None and plan.weight_files.format == "torch"
    gone -= set() if is_torch else {MANIFEST}  # it has digests of safetensors files only
    return InPlaceLayout(tuple(patched), tuple(written), layout.texts, tuple(sorted(gone)))


def _patch(base: Checkpoint, old: Shard, new: WrittenShard) -> PatchedShard | None:
    """Return how to turn ``old`` into ``new`` without moving a tensor; None if impossible."""
    before = {n: ref for n, ref in base.refs.items() if ref.source == old.file}
    after = dict(new.entries)
    places = _places(before, after, old.file)
    if new.format != "safetensors" or old.format != "safetensors" or places is None:
        return None
    files = {shard.file for shard in base.shards}
    moving = [n for n, tensor in after.items() if not _is_there(tensor, places[n], old.file)]
    if not all(_reads_only_its_place(before.get(n), after[n], files) for n in moving):
        return None
    in_order = sorted(after, key=lambda name: (places[name], after[name].nbytes))
    header = b""
    if (
        before.keys() != after.keys()
        or old.metadata != new.metadata
        or any(_described(ref) != _described(after[name]) for name, ref in before.items())
    ):
        start = places[in_order[0]]
        described = [(name, *_described(after[name])) for name in in_order]
        encoded, _ = encode_header(described, new.metadata)
        if len(encoded) > start:
            return None
        header = (start - 8).to_bytes(8, "little") + encoded[8:].ljust(start - 8)
    entries = tuple(
        (places[name], name, after[name])
        for name in in_order
        if not _is_there(after[name], places[name], old.file)
    )
    return PatchedShard(old.name, old.file, header, entries, tuple(in_order))


def _places(
    before: Mapping[str, TensorRef], after: Mapping[str, Tensor], file: File
) -> dict[str, int] | None:
    """Return the offset of each tensor if together they fill the place of those before, else None.

    A tensor that is read from the file stays where its bytes are, others take the place of their
    namesakes. So does what a delta is merged into, row by row. What is converted would be written
    over while it is read, so it has no place.
    """
    places: dict[str, int] = {}
    for name, tensor in after.items():
        own = [ref for ref in refs_of(tensor) if ref.source == file]
        is_view = isinstance(tensor, TensorRef) and tensor.strides is None
        is_merged = isinstance(tensor, LoraMerge) and own == [before.get(name)]
        if own and not is_view and not is_merged:
            return None
        place = own[0] if own else before.get(name)
        if place is None or (BITS[place.dtype], place.nbytes) != (
            BITS[tensor.dtype],
            tensor.nbytes,
        ):
            return None
        places[name] = place.offset
    if not before:
        return None
    ends = sorted((ref.offset, ref.offset + ref.nbytes) for ref in before.values())
    filled = sorted((places[name], places[name] + after[name].nbytes) for name in after)
    if not filled or (filled[0][0], filled[-1][1]) != (ends[0][0], ends[-1][1]):
        return None
    return places if all(a[1] == b[0] for a, b in pairwise(filled)) else None


def _is_there(tensor: Tensor, offset: int, file: File) -> bool:
    """Return whether the bytes of a tensor are those of the file from ``offset`` on."""
    return (
        isinstance(tensor, TensorRef)
        and (tensor.source, tensor.offset) == (file, offset)
        and tensor.strides is None
    )


def _reads_only_its_place(old: TensorRef | None, new: Tensor, files: Collection[File]) -> bool:
    """Return whether a new tensor is made of no part of the base but the one that it replaces.

    ``files`` are those of the base. Another part may have been overwritten when it is read.
    """
    return all(ref == old or ref.source not in files for ref in refs_of(new))


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
            name = _safetensors_name(shard)
            in_order = storage_order(now, _ranks(now, before, shard.file))
            new = WrittenShard(name, _metadata(shard), in_order)
            written.append(replace(new, spaces=_spaces(new, shard.file)))
        weight_map |= dict.fromkeys(now, _safetensors_name(shard))
    return carried, written, _index_text(base, target, weight_map)


def _spaces(shard: WrittenShard, base: File) -> int:
    """Return the spaces with which most of what is copied from ``base`` keeps its place in a page.

    Then the kernel copies whole pages, which takes less than joining parts of two.
    """
    shifts: Counter[int] = Counter()
    position = len(shard.header()[0])
    for _, tensor in shard.entries:
        if isinstance(tensor, TensorRef) and tensor.source == base and tensor.strides is None:
            shifts[(tensor.offset - position) % _PAGE] += tensor.nbytes
        position += tensor.nbytes
    best = max(shifts, key=lambda shift: (shifts[shift], -shift), default=0)
    # The data must still start at a multiple of 8.
    return 0 if best % 8 or shifts[best] < _PAGE else best


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
    for name in sorted(target.tensors.keys() - base.tensors.keys()):
        # What was renamed, fused or split stays in the file that its first bytes are in.
        own = (shard_of_file.get(ref.source) for ref in refs_of(target.tensors[name])[:1])
        most = votes.get(part_of(name), Counter()).most_common(1)
        found = next(own, None) or (most[0][0] if most else base.shards[-1].name)
        held[found].append(name)
    return held


def _new_weight_files(
    base: Checkpoint, target: Checkpoint, form: WeightFiles
) -> tuple[list[CarriedFile], list[WrittenShard], tuple[WrittenText, ...], set[str]]:
    """Lay out all weight files as ``form`` says; return as :func:`_weight_files`, and old indexes.

    A file that would be written as it is already there is carried.
    """
    held = _held(base, target, form)
    keeps = form.max_shard_size is None
    common = {key: text for shard in base.shards for key, text in shard.metadata.items()}
    before = {shard.name: shard for shard in base.shards}
    carried: list[CarriedFile] = []
    written: list[WrittenShard] = []
    for name, names in held.items():
        old = before.get(name)
        stored = {n: ref for n, ref in base.refs.items() if old and ref.source == old.file}
        now = {n: target.tensors[n] for n in names}
        metadata = {"format": "pt", **((old.metadata if old else {}) if keeps else common)}
        if (
            old is not None
            and old.format == form.format
            and now == stored
            and (form.format == "torch" or old.metadata == metadata)
        ):
            carried.append(CarriedFile(name, old.file))
            continue
        if keeps and old is not None:
            ranks = _ranks(now, stored, old.file)
        else:
            ranks = {n: rank for rank, n in enumerate(names)}
        entries = tuple((n, now[n]) for n in names)
        if form.format == "safetensors":
            entries = storage_order(now, ranks)
        written.append(WrittenShard(name, metadata, entries, form.format))
    index_name = SAFETENSORS_INDEX if form.format == "safetensors" else TORCH_INDEX
    weight_map = {n: name for name, names in held.items() for n in names}
    is_alone = held.keys() == {SAFETENSORS if form.format == "safetensors" else TORCH}
    index = () if is_alone else _new_index(base, target, index_name, weight_map)
    stays = set() if is_alone else {index_name}
    obsolete = {n for n in base.files if n.endswith(INDEX_SUFFIX)} - stays
    return carried, written, index, obsolete


def _held(base: Checkpoint, target: Checkpoint, form: WeightFiles) -> dict[str, list[str]]:
    """Return the names of the tensors of every weight file, in their order."""
    if form.max_shard_size is None:
        _check_names(base)
        held = {
            _name_as(shard, form.format): names
            for shard, names in zip(base.shards, _place(base, target).values(), strict=True)
        }
        return {name: sorted(names, key=model_order) for name, names in held.items() if names}
    sizes = {n: target.tensors[n].nbytes for n in sorted(target.tensors, key=model_order)}
    parts = split(sizes, form.max_shard_size)
    return {shard_name(form.format, i, len(parts)): names for i, names in enumerate(parts, 1)}


def _ranks(
    tensors: Mapping[str, Tensor], before: Mapping[str, TensorRef], file: File
) -> dict[str, int]:
    """Return the order of tensors by where they lie in ``file``, or those that they replace."""
    offsets: dict[str, int] = {}
    for name, tensor in tensors.items():
        own = [ref for ref in refs_of(tensor)[:1] if ref.source == file]
        place = own[0] if own else before.get(name)
        if place is not None:
            offsets[name] = place.offset
    return {name: rank for rank, name in enumerate(sorted(offsets, key=offsets.__getitem__))}


def _new_index(
    base: Checkpoint, target: Checkpoint, name: str, weight_map: Mapping[str, str]
) -> tuple[WrittenText, ...]:
    total = sum(tensor.nbytes for tensor in target.tensors.values())
    known = base.index if base.index is not None and name in base.files else {}
    metadata = known.get("metadata")
    metadata = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return () if index == known else (WrittenText(name, _json(index)),)


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


def _name_as(shard: Shard, format: str) -> str:
    """Return the name of a shard's file in another format."""
    if format == "safetensors" or shard.format == "torch":
        return _safetensors_name(shard) if format == "safetensors" else shard.name
    return f"pytorch_{shard.name.removesuffix(SAFETENSORS_SUFFIX)}.bin"


def _metadata(shard: Shard) -> Mapping[str, str]:
    """Return a shard's own metadata; transformers 4.41 refuses a file without a format."""
    return {"format": "pt", **shard.metadata}


def _config_text(base: Checkpoint, target: Checkpoint) -> tuple[WrittenText, ...]:
    """Return the configs that differ: VITA's, and in a deployment folder the server's."""
    texts = []
    if target.config != base.config:
        texts.append(WrittenText(target.config_file, _json(target.config)))
    if target.serving_config != base.serving_config:
        texts.append(WrittenText(CONFIG, _json(target.serving_config)))
    return tuple(texts)


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
