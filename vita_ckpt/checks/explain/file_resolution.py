"""Resolve which files of a directory each library reads.

Read from the sources of transformers 4.41.1, 5.5.0 and 5.23.0, huggingface_hub 0.23 and 2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from vita_ckpt.checks.explain.trace import Tracer, some_files
from vita_ckpt.core.anatomy.families import family_of
from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.file_listing import Index, WeightFile, other_total_size
from vita_ckpt.core.filenames import (
    LOADED_FORMATS,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    SAFETENSORS_SUFFIX,
    TORCH,
    TORCH_INDEX,
    TRAINED_FILES,
)

# PreTrainedModel.from_pretrained (4.41.1) and _get_resolved_checkpoint_files (5.x): the first that
# exists. ``use_safetensors=False`` starts at the third; ``use_safetensors=True`` ends after the
# second in 5.x, and changes nothing in 4.41.1 where there is a .bin; ``variant="x"`` puts ``.x``
# before the suffix of each; ``subfolder`` looks below. VITA's loaders pass none of them.
FROM_PRETRAINED_ORDER: Final = (SAFETENSORS, SAFETENSORS_INDEX, TORCH, TORCH_INDEX)

# get_safetensors_metadata (0.23), get_local_safetensors_metadata (2.4): the first that exists.
# PyTorchModelHubMixin reads a directory's model.safetensors and knows no index at all.
METADATA_ORDER: Final = (SAFETENSORS, SAFETENSORS_INDEX)

_OTHER_FRAMEWORKS: Final = ("tf", "flax")

# _load_safetensors_file of huggingface_hub 2.4: one of these, unless there is no metadata at all.
_FORMATS_HUB: Final = ("pt", "mlx")


@dataclass(frozen=True, slots=True)
class Read:
    """What was read: the tensors in the order of the files, later ones over earlier ones.

    ``tensors`` holds the last of each name with the file it is from, ``index`` the index, if any.
    """

    tensors: Mapping[str, tuple[TensorRef, str]]
    index: Index | None


def from_pretrained(tracer: Tracer, *, old: bool, build: Callable[[], None] | None = None) -> Read:
    """Read the files of ``from_pretrained``; ``old`` for 4.41.1.

    The files are chosen first, and a lone one is read once. Then ``build`` is called, which builds
    the model; then the weights are read (UPSTREAM §8).

    There every safetensors file must say its format.

    Both need ``metadata`` in an index (``index["metadata"]`` in get_checkpoint_shard_files), and
    read its files in the order of their names. In 5.x a config may name the file in
    ``transformers_weights``.
    """
    explicit = None if old else (tracer.files.config or {}).get("transformers_weights")
    if isinstance(explicit, str):
        tracer.step("chooses", f"{explicit}: transformers_weights of config.json names it")
        return _single(tracer, explicit, old=old, build=build)
    name = _choose(tracer, FROM_PRETRAINED_ORDER)
    if name is None:
        tracer.stop("not-a-checkpoint", f"none of {', '.join(FROM_PRETRAINED_ORDER)}")
    if name.startswith(SAFETENSORS) and (other := tracer.files.other_pickled) is not None:
        tracer.flaws.append(name)
        tracer.step("leaves out", f"complete pickled weights: {other} differs, meant or not")
    if name not in tracer.files.indexes:
        _say_second_set(tracer, name)
        _say_stray(tracer, [name])
        return _single(tracer, name, old=old, build=build)
    index = _index(tracer, name)
    _say_stray(tracer, index.weight_map.values())
    if index.mismatch is not None:
        tracer.flaws.append(index.name)
        tracer.step(
            "passes over", f"what offloading to the disk trips over: {index.mismatch.message}"
        )
    if index.metadata is None:
        tracer.stop("no-index-metadata", f"{name} has no metadata: KeyError")
    _say_total_size(tracer, index, index.metadata)
    if not index.weight_map:
        tracer.stop("invalid-index", f"{name} names no file: IndexError")
    if build is not None:
        build()
    return _all(tracer, sorted(set(index.weight_map.values())), index, old=old)


def load_torch_model(tracer: Tracer) -> Read:
    """Read the files of huggingface_hub 2.4's ``load_torch_model`` with ``safe=True``.

    An index wins over a single file; without one there must be exactly one ``*.safetensors`` file,
    whatever its name. The files of an index are read in no fixed order, those whose names lead out
    of the directory or that are no safetensors are refused. 0.23 has no such function.
    """
    index = tracer.files.indexes.get(SAFETENSORS_INDEX)
    if index is not None:
        _chosen(tracer, SAFETENSORS_INDEX, "an index comes first")
        index = _index(tracer, SAFETENSORS_INDEX)
        names = sorted(set(index.weight_map.values()))
        for name in names:
            if not name.endswith(SAFETENSORS_SUFFIX):
                tracer.stop("invalid-index", f"{index.name} names {name}: no safetensors file")
    else:
        names = [name for name in tracer.files.names if name.endswith(SAFETENSORS_SUFFIX)]
        if len(names) != 1:
            found = (
                f"{len(names)} files *.safetensors instead of one" if names else "no *.safetensors"
            )
            tracer.stop("not-a-checkpoint", f"no index, and {found}")
        _chosen(tracer, names[0], "the only *.safetensors file")
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for name in names:
        file = tracer.read(_file(tracer, name))
        if file.format is not None and file.format not in _FORMATS_HUB:
            tracer.stop("no-format-metadata", f"{name}: metadata without format pt: OSError")
        tensors |= {tensor: (ref, name) for tensor, ref in file.tensors.items()}
    loose = ", in no fixed order" if len(names) > 1 else ""
    tracer.step("reads", some_files(names) + loose)
    return Read(tensors, index)


def metadata(tracer: Tracer) -> Read:
    """Read the headers that huggingface_hub's safetensors metadata is made of."""
    name = _choose(tracer, METADATA_ORDER)
    if name is None:
        tracer.stop("not-a-checkpoint", f"neither {' nor '.join(METADATA_ORDER)}")
    index = _index(tracer, name) if name in tracer.files.indexes else None
    names = [name] if index is None else sorted(set(index.weight_map.values()))
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for file_name in names:
        file = tracer.read(_file(tracer, file_name))
        tensors |= {tensor: (ref, file_name) for tensor, ref in file.tensors.items()}
    tracer.step("reads", f"the headers of {some_files(names)}")
    return Read(tensors, index)


def _choose(tracer: Tracer, order: tuple[str, ...]) -> str | None:
    """Return the first file of ``order`` that is there, and record what it passes over."""
    present = [name for name in order if name in tracer.files.names]
    if not present:
        return None
    over = f", over {', '.join(present[1:])}" if present[1:] else ""
    _chosen(tracer, present[0], f"the first of {len(order)} names that exists{over}")
    return present[0]


def _say_second_set(tracer: Tracer, single: str) -> None:
    """Record the files of an index that a single file is chosen over, if it is none of them."""
    name = SAFETENSORS_INDEX if single == SAFETENSORS else TORCH_INDEX
    index = tracer.files.indexes.get(name)
    if index is None or index.trouble is not None or single in index.weight_map.values():
        return
    tracer.flaws.append(index.name)
    tracer.step("leaves out", f"the files of {index.name}: a second set of weights, meant or not")


def _say_stray(tracer: Tracer, read: Collection[str]) -> None:
    """Record files of weights that are not read, and would be once the tower is trained."""
    family = family_of(tracer.files.config or {})
    if family is None or not family.reads_tower_again:
        return
    others = [name for name in tracer.files.names if name.endswith(SAFETENSORS_SUFFIX)]
    stray = [name for name in others if name not in read and name not in TRAINED_FILES]
    if stray and not any(name in tracer.flaws for name in (SAFETENSORS_INDEX, TORCH_INDEX)):
        tracer.flaws.extend(stray)
        tracer.step("leaves out", f"{some_files(stray)}: weights beside those that it reads")


def _say_total_size(tracer: Tracer, index: Index, metadata: Mapping[str, Any]) -> None:
    """Record a total_size that is not the size of the tensors; no loader reads it."""
    files = (tracer.files.files.get(name) for name in {*index.weight_map.values()})
    tensors = {name: t for file in files if file is not None for name, t in file.tensors.items()}
    size = other_total_size(metadata, tensors.values())
    if size is not None and index.mismatch is None:
        said = metadata["total_size"]
        tracer.flaws.append(index.name)
        tracer.step("passes over", f"total_size {said!r}, where the tensors have {size} bytes")


def _chosen(tracer: Tracer, name: str, why: str) -> None:
    tracer.chosen = name
    tracer.step("chooses", f"{name}: {why}")


def _index(tracer: Tracer, name: str) -> Index:
    index = tracer.files.indexes[name]
    if index.trouble is not None:
        tracer.stop_for(index.trouble)
    return index


def _file(tracer: Tracer, name: str) -> WeightFile:
    if name not in tracer.files.files:
        tracer.stop("missing-shard", f"{name} is not there: FileNotFoundError")
    return tracer.files.files[name]


def _single(tracer: Tracer, name: str, *, old: bool, build: Callable[[], None] | None) -> Read:
    tracer.chosen = name
    if build is not None:
        file = _file(tracer, name)
        if file.trouble is not None:
            tracer.stop_for(file.trouble)
        if old and name.endswith(SAFETENSORS_SUFFIX):
            _check_format(tracer, file, sharded=False)
        build()
    return _all(tracer, [name], None, old=old)


def _all(tracer: Tracer, names: list[str], index: Index | None, *, old: bool) -> Read:
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for name in names:
        file = _file(tracer, name)
        if old and file.trouble is None and name.endswith(SAFETENSORS_SUFFIX):
            _check_format(tracer, file, sharded=index is not None)
        tracer.read(file)
        tensors |= {tensor: (ref, name) for tensor, ref in file.tensors.items()}
    tracer.step("reads", some_files(names))
    return Read(tensors, index)


def _check_format(tracer: Tracer, file: WeightFile, *, sharded: bool) -> None:
    """End the trace if 4.41.1 would refuse the format in a safetensors file's metadata."""
    if file.format is None:
        tracer.stop("no-format-metadata", f"{file.name} has no metadata: AttributeError")
    if file.format in _OTHER_FRAMEWORKS:
        if not sharded:
            tracer.stop("no-format-metadata", f"{file.name} is taken for weights of {file.format}")
    elif file.format not in LOADED_FORMATS:
        tracer.stop("no-format-metadata", f"{file.name}: format {file.format or 'not said'}")
