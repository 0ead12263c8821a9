"""Represent a checkpoint as a value: where each tensor's bytes lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.display import Displayed
from vita_ckpt.core.dtype import BITS, nbytes
from vita_ckpt.core.left_out import LeftOut

if TYPE_CHECKING:
    from vita_ckpt.core.training.state import TrainingState

_SHA256_DIGITS: Final = 64

Shape = tuple[int, ...]
# The dtype and the shape of a tensor: a model has many tensors of few forms.
Form = tuple[str, Shape]
Layout = Literal["safetensors", "torch", "lora", "run", "file", "state", "none"]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """The identity of a regular file when it was opened.

    ``path`` is absolute, ``size`` in bytes, ``mtime_ns`` in nanoseconds since the epoch. ``digest``
    is the SHA-256 of the part that describes the content (a safetensors header, a pickle, a whole
    config), empty for a file whose content was not read.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository on the hub, pinned to a commit.

    ``name`` is its path in the repository, ``commit`` a full commit hash, ``size`` in bytes.
    ``etag`` is the hub's digest of the content: SHA-256 for a large file, git's object id for any
    other, empty if unknown. ``digest`` is as in :class:`LocalFile`.
    """

    repository: str
    commit: str
    name: str
    size: int
    etag: str
    digest: str = ""

    @property
    def path(self) -> str:
        """The full address, as messages show it and as it can be opened again."""
        return f"hf://{self.repository}@{self.commit}/{self.name}"

    @property
    def is_large(self) -> bool:
        """Whether the hub stores it apart from git, by its SHA-256."""
        return len(self.etag) == _SHA256_DIGITS


# The identity of a file when it was opened.
File = LocalFile | RemoteFile


def on_disk(file: File) -> LocalFile:
    """Return ``file`` as a local file. Raises TypeError for a remote file."""
    if isinstance(file, RemoteFile):
        raise TypeError(f"{file.path} was not fetched")
    return file


@dataclass(frozen=True, slots=True)
class TensorRef:
    """The location of one tensor's bytes in a file.

    ``offset`` is the position in bytes of element 0 in the file, ``dtype`` a safetensors code.
    ``strides``, in elements, is None for a contiguous (C order) tensor.
    """

    source: File
    offset: int
    dtype: str
    shape: Shape
    strides: Shape | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor when written contiguously."""
        return nbytes(self.dtype, self.shape)

    @property
    def span(self) -> int:
        """Bytes in the file from element 0 to the end of the last; may differ from nbytes."""
        if self.strides is None or 0 in self.shape:
            return self.nbytes
        axes = zip(self.shape, self.strides, strict=True)
        return (sum((n - 1) * stride for n, stride in axes) + 1) * BITS[self.dtype] // 8


def rows_of(ref: TensorRef, start: int, stop: int) -> TensorRef:
    """Return the rows from ``start`` to before ``stop`` of a tensor with at least one dimension."""
    step = prod(ref.shape[1:]) if ref.strides is None else ref.strides[0]
    offset = ref.offset + start * step * BITS[ref.dtype] // 8
    shape = (stop - start, *ref.shape[1:])
    return TensorRef(ref.source, offset, ref.dtype, shape, ref.strides)


@dataclass(frozen=True, slots=True)
class Cast:
    """A tensor converted to another floating dtype as torch's ``Tensor.to`` does."""

    ref: TensorRef
    dtype: str

    @property
    def shape(self) -> Shape:
        """Shape of the tensor, which a conversion keeps."""
        return self.ref.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the converted tensor."""
        return nbytes(self.dtype, self.ref.shape)


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tensor made of others of one dtype, whose elements follow each other in C order.

    ``parts`` are cut into ``runs`` equal runs each: the tensor is the first run of every part, then
    the second of every part, and so on. One run concatenates along the first axis, or joins the
    pieces of a flat vector; as many as there are rows concatenate along the second axis.
    """

    parts: tuple[Part | Pieces, ...]
    shape: Shape
    runs: int = 1

    @property
    def dtype(self) -> str:
        """The dtype of every part."""
        return self.parts[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Mean:
    """Rows that are all the mean of the rows of ``ref``, summed in float64.

    ``ref`` is [n, width] in a floating dtype, ``shape`` is [rows, width].
    """

    ref: TensorRef
    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class RandomInit:
    """A tensor to draw at random, as torch initialises a module, from its own random stream.

    ``bound`` defines a uniform distribution on [-bound, bound), ``std`` a normal one around 0; if
    both are None, every element is ``fill``. The values depend only on (``seed``, ``name``).
    """

    dtype: str
    shape: Shape
    seed: int
    name: str
    bound: float | None
    fill: float = 0.0
    std: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return nbytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class LoraMerge:
    """A weight or bias with a LoRA delta merged into it, as peft computes it in ``dtype``.

    ``base`` is [out, in], ``b`` [out, r] and ``a`` [r, in]: the weight is base + scale · b @ a. If
    ``is_embedding``, ``base`` is [in, out] and the product transposed. Without ``a``, ``b`` itself
    is added, which then has the shape of ``base``: the delta of a bias. With ``magnitude`` [out]
    (DoRA), each row is scaled so that its L2 norm is the magnitude. All of them are converted to
    ``dtype`` first.
    """

    base: Stored
    b: Stored
    a: Stored | None
    scale: float
    dtype: str
    magnitude: Stored | None = None
    is_embedding: bool = False

    @property
    def shape(self) -> Shape:
        """Shape of the base, which a merge keeps."""
        return self.base.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the merged tensor."""
        return nbytes(self.dtype, self.base.shape)


# What a tensor can be made of, alone or in pieces.
Part = TensorRef | Cast | Mean | RandomInit | LoraMerge
# A tensor of an opened checkpoint, or of the target of a plan.
Tensor = Part | Pieces
# A tensor whose values lie in files as they are.
Stored = TensorRef | Pieces


def parts_of(tensor: Tensor) -> tuple[Part, ...]:
    """Return what a tensor is made of, piece by piece; for most that is the tensor itself."""
    if isinstance(tensor, Pieces):
        return tuple(part for piece in tensor.parts for part in parts_of(piece))
    return (tensor,)


def converts(tensor: Tensor) -> bool:
    """Return whether values are converted to another dtype, so that some may be lost."""
    return any(isinstance(part, Cast | LoraMerge) for part in parts_of(tensor))


def refs_of(tensor: Tensor) -> tuple[TensorRef, ...]:
    """Return the stored tensors that the values of a tensor come from."""
    if isinstance(tensor, TensorRef):  # as most are
        return (tensor,)
    return tuple(ref for part in parts_of(tensor) for ref in _refs_of_part(part))


def _refs_of_part(part: Part) -> tuple[TensorRef, ...]:
    match part:
        case TensorRef():
            return (part,)
        case Cast(ref) | Mean(ref):
            return (ref,)
        case LoraMerge(base, b, a, magnitude=magnitude):
            factors = (one for one in (base, b, a, magnitude) if one is not None)
            return tuple(ref for one in factors for ref in refs_of(one))
    return ()


def source_of(tensor: Tensor) -> str:
    """Return the path of the first file that a tensor is read from; empty for one that is drawn."""
    return next((ref.source.path for ref in refs_of(tensor)), "")


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """Return ``tensor`` converted to ``dtype``, every piece of it by itself."""
    if tensor.dtype == dtype:
        return tensor
    match tensor:
        case Pieces(parts, shape, runs):
            return Pieces(tuple(cast(part, dtype) for part in parts), shape, runs)
        case Cast(ref, _):
            return Cast(ref, dtype) if ref.dtype != dtype else ref
        case TensorRef():
            return Cast(tensor, dtype)
    return replace(tensor, dtype=dtype)


def uncast(tensor: Tensor) -> Tensor:
    """Return ``tensor`` as it is stored, without conversions."""
    match tensor:
        case Pieces(parts, shape, runs):
            return Pieces(tuple(uncast(part) for part in parts), shape, runs)
        case Cast(ref, _):
            return ref
    return tensor


@dataclass(frozen=True, slots=True)
class Shard:
    """One weight file: name below the checkpoint, identity and safetensors ``__metadata__``.

    Of a file of ``torch.save``, ``key`` is the path of the state dict in it that was read,
    ``other_keys`` those of others with weights, and ``objects`` the globals in it that
    ``torch.load(weights_only=True)`` does not take.
    """

    name: str
    file: File
    format: Literal["safetensors", "torch"]
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: str = "."
    other_keys: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Checkpoint(Displayed):
    """An opened checkpoint, adapter, run or tower; or the target of a plan.

    ``root`` is the absolute path of the directory or the lone file, or a remote address pinned to a
    commit (empty for a value without a location yet). ``revision`` is the branch or tag from which
    the commit was resolved. ``tensors`` maps on-disk names to tensors, ``shards`` are the weight
    files that hold them, ``index`` is the parsed index of a sharded checkpoint. ``files`` are the
    other regular files, by their path below ``root``. ``texts`` are files of a target whose content
    is known but not yet on the disk. ``left_out`` maps everything else in the directory to the
    reason why it is not part of the checkpoint. ``provenance`` is the record of earlier surgeries.
    ``training`` describes the training state that the tensors were read from, if it is one.
    ``key`` is the path of the state dict that was asked for in its files, empty if none was.
    ``config_file`` is the file that ``config`` is from. Where that is not config.json, what
    config.json says to a server such as vLLM is the ``serving_config``.
    """

    root: str
    layout: Layout
    tensors: Mapping[str, Tensor]
    shards: tuple[Shard, ...] = ()
    config: Mapping[str, Any] | None = None
    adapter_config: Mapping[str, Any] | None = None
    index: Mapping[str, Any] | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None
    revision: str = ""
    training: TrainingState | None = None
    key: str = ""
    config_file: str = "config.json"
    serving_config: Mapping[str, Any] | None = None

    @property
    def refs(self) -> dict[str, TensorRef]:
        """The tensors that lie in one place of a file; in weight files, all of them."""
        return {name: t for name, t in self.tensors.items() if isinstance(t, TensorRef)}

    @property
    def stored(self) -> dict[str, Stored]:
        """The tensors that lie in files as they are, in one place or in pieces."""
        kinds = TensorRef, Pieces  # a union would be made once for each tensor
        return {n: t for n, t in self.tensors.items() if isinstance(t, kinds)}

    @property
    def fingerprint(self) -> tuple[File, ...]:
        """The identities of all files that the checkpoint consists of."""
        return (*(shard.file for shard in self.shards), *self.files.values())

    def display_rows(self) -> Iterator[tuple[str, object]]:
        """Yield the location, the layout and the amounts of what the checkpoint holds."""
        yield "path", self.root or "none yet"
        if self.revision:
            yield "revision", self.revision
        yield "layout", self.layout
        if self.config is not None:
            yield "model type", str(self.config.get("model_type"))
        yield "tensors", len(self.tensors)
        forms = count_forms(self.tensors.values())
        yield "parameters", sum(prod(shape) * count for (_, shape), count in forms.items())
        sizes = bytes_by_dtype(forms)
        yield "bytes", ", ".join(f"{size:,} {dtype}" for dtype, size in sizes.items()) or 0
        if self.shards:
            yield "shards", tuple(shard.name or shard.file.path for shard in self.shards)
        for label, files in (("files", self.files), ("texts", self.texts)):
            if files:
                yield label, tuple(files)
        if self.left_out:
            yield "left out", tuple(self.left_out)


def files_read(checkpoint: Checkpoint) -> tuple[File, ...]:
    """Return the files whose content defines a checkpoint: shards, configs and the index."""
    return tuple(file for file in checkpoint.fingerprint if file.digest)


EMPTY = Checkpoint(root="", layout="none", tensors={})


def count_forms(tensors: Iterable[Tensor]) -> Counter[Form]:
    """Count tensors by their forms."""
    return Counter((tensor.dtype, tensor.shape) for tensor in tensors)


def bytes_by_dtype(forms: Mapping[Form, int]) -> dict[str, int]:
    """Return the bytes of each dtype among counted forms, the largest first."""
    sizes: Counter[str] = Counter()
    for (dtype, shape), count in forms.items():
        sizes[dtype] += nbytes(dtype, shape) * count
    return dict(sizes.most_common())


def parameters(tensor: Tensor) -> int:
    """Return the number of elements of a tensor (1 for a scalar)."""
    return prod(tensor.shape)
