"""Which files each library reads of a directory: the rules, as tables over what is there.

Read from the sources of transformers 4.41.1, 5.5.0 and 5.23.0, huggingface_hub 0.23 and 2.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vita_ckpt.checks.explain.trace import Teller, some_files
from vita_ckpt.core.checkpoint import TensorRef
from vita_ckpt.core.file_listing import Index, WeightFile

SAFETENSORS: Final = "model.safetensors"
_SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
_TORCH: Final = "pytorch_model.bin"
_TORCH_INDEX: Final = "pytorch_model.bin.index.json"

# PreTrainedModel.from_pretrained (4.41.1) and _get_resolved_checkpoint_files (5.x): the first that
# exists. ``use_safetensors=False`` starts at the third; ``use_safetensors=True`` ends after the
# second in 5.x, and changes nothing in 4.41.1 where there is a .bin; ``variant="x"`` puts ``.x``
# before the suffix of each; ``subfolder`` looks below. VITA's loaders pass none of them.
FROM_PRETRAINED_ORDER: Final = (SAFETENSORS, _SAFETENSORS_INDEX, _TORCH, _TORCH_INDEX)

# get_safetensors_metadata (0.23), get_local_safetensors_metadata (2.4): the first that exists.
# PyTorchModelHubMixin reads a directory's model.safetensors and knows no index at all.
METADATA_ORDER: Final = (SAFETENSORS, _SAFETENSORS_INDEX)

# load_state_dict and from_pretrained of 4.41.1: a safetensors file has to say one of these.
_FORMATS_4_41: Final = ("pt", "mlx")
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


def from_pretrained(teller: Teller, *, old: bool) -> Read:
    """The files of ``from_pretrained``; ``old`` for 4.41.1, where every file must say its format.

    Both need ``metadata`` in an index (``index["metadata"]`` in get_checkpoint_shard_files), and
    read its files in the order of their names. In 5.x a config may name the file in
    ``transformers_weights``.
    """
    explicit = None if old else (teller.files.config or {}).get("transformers_weights")
    if isinstance(explicit, str):
        teller.step("chooses", f"{explicit}: transformers_weights of config.json names it")
        return _single(teller, explicit, old=old)
    name = _choose(teller, FROM_PRETRAINED_ORDER)
    if name is None:
        teller.stop("not-a-checkpoint", f"none of {', '.join(FROM_PRETRAINED_ORDER)}")
    if name not in teller.files.indexes:
        return _single(teller, name, old=old)
    index = _index(teller, name)
    if index.metadata is None:
        teller.stop("no-index-metadata", f"{name} has no metadata: KeyError")
    if not index.weight_map:
        teller.stop("invalid-index", f"{name} names no file: IndexError")
    return _all(teller, sorted(set(index.weight_map.values())), index, old=old)


def load_torch_model(teller: Teller) -> Read:
    """The files of huggingface_hub 2.4's ``load_torch_model`` with its defaults (``safe=True``).

    An index wins over a single file; without one there must be exactly one ``*.safetensors`` file,
    whatever its name. The files of an index are read in no fixed order, those whose names lead out
    of the directory or that are no safetensors are refused. 0.23 has no such function.
    """
    index = teller.files.indexes.get(_SAFETENSORS_INDEX)
    if index is not None:
        _chosen(teller, _SAFETENSORS_INDEX, "an index comes first")
        index = _index(teller, _SAFETENSORS_INDEX)
        names = sorted(set(index.weight_map.values()))
        for name in names:
            if not name.endswith(".safetensors"):
                teller.stop("invalid-index", f"{index.name} names {name}: no safetensors file")
    else:
        names = [name for name in teller.files.names if name.endswith(".safetensors")]
        if len(names) != 1:
            found = (
                f"{len(names)} files *.safetensors instead of one" if names else "no *.safetensors"
            )
            teller.stop("not-a-checkpoint", f"no index, and {found}")
        _chosen(teller, names[0], "the only *.safetensors file")
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for name in names:
        file = teller.read(_file(teller, name))
        if file.format is not None and file.format not in _FORMATS_HUB:
            teller.stop("no-format-metadata", f"{name}: metadata without format pt: OSError")
        tensors |= {tensor: (ref, name) for tensor, ref in file.tensors.items()}
    loose = ", in no fixed order" if len(names) > 1 else ""
    teller.step("reads", some_files(names) + loose)
    return Read(tensors, index)


def metadata(teller: Teller) -> Read:
    """The headers that huggingface_hub's safetensors metadata is made of; no weights."""
    name = _choose(teller, METADATA_ORDER)
    if name is None:
        teller.stop("not-a-checkpoint", f"neither {' nor '.join(METADATA_ORDER)}")
    index = _index(teller, name) if name in teller.files.indexes else None
    names = [name] if index is None else sorted(set(index.weight_map.values()))
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for file_name in names:
        file = teller.read(_file(teller, file_name))
        tensors |= {tensor: (ref, file_name) for tensor, ref in file.tensors.items()}
    teller.step("reads", f"the headers of {some_files(names)}")
    return Read(tensors, index)


def _choose(teller: Teller, order: tuple[str, ...]) -> str | None:
    """The first file of ``order`` that is there; what it passes over is said."""
    present = [name for name in order if name in teller.files.names]
    if not present:
        return None
    over = f", over {', '.join(present[1:])}" if present[1:] else ""
    _chosen(teller, present[0], f"the first of {len(order)} names that exists{over}")
    return present[0]


def _chosen(teller: Teller, name: str, why: str) -> None:
    teller.chosen = name
    teller.step("chooses", f"{name}: {why}")


def _index(teller: Teller, name: str) -> Index:
    index = teller.files.indexes[name]
    if index.trouble is not None:
        teller.stop_for(index.trouble)
    return index


def _file(teller: Teller, name: str) -> WeightFile:
    if name not in teller.files.files:
        teller.stop("missing-shard", f"{name} is not there: FileNotFoundError")
    return teller.files.files[name]


def _single(teller: Teller, name: str, *, old: bool) -> Read:
    teller.chosen = name
    return _all(teller, [name], None, old=old)


def _all(teller: Teller, names: list[str], index: Index | None, *, old: bool) -> Read:
    tensors: dict[str, tuple[TensorRef, str]] = {}
    for name in names:
        file = _file(teller, name)
        if old and file.trouble is None and name.endswith(".safetensors"):
            _check_format(teller, file, sharded=index is not None)
        teller.read(file)
        tensors |= {tensor: (ref, name) for tensor, ref in file.tensors.items()}
    teller.step("reads", some_files(names))
    return Read(tensors, index)


def _check_format(teller: Teller, file: WeightFile, *, sharded: bool) -> None:
    """4.41.1 asks the metadata of every safetensors file for its format."""
    if file.format is None:
        teller.stop("no-format-metadata", f"{file.name} has no metadata: AttributeError")
    if file.format in _OTHER_FRAMEWORKS:
        if not sharded:
            teller.stop("no-format-metadata", f"{file.name} is taken for weights of {file.format}")
    elif file.format not in _FORMATS_4_41:
        teller.stop("no-format-metadata", f"{file.name}: format {file.format or 'not said'}")
