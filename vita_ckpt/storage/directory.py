"""The one way in: a directory or a file becomes a Checkpoint, read down to its headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vita_ckpt.core.checkpoint import (
    PROVENANCE,
    Checkpoint,
    File,
    Layout,
    LocalFile,
    RemoteFile,
    Shard,
    TensorRef,
    on_disk,
)
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.owner import is_stage
from vita_ckpt.storage.places import (
    check_known,
    expect_headers,
    find,
    folder_of,
    is_directory,
    is_file,
    listing,
    look,
    stays_below,
)
from vita_ckpt.storage.safetensors_file import read_safetensors
from vita_ckpt.storage.source import check_same, identify, read_json_object
from vita_ckpt.storage.wholeness import HOME, check_whole

CONFIG: Final = "config.json"
SAFETENSORS: Final = "model.safetensors"
SAFETENSORS_INDEX: Final = "model.safetensors.index.json"
_TORCH: Final = "pytorch_model.bin"
TORCH_INDEX: Final = "pytorch_model.bin.index.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
_NON_LORA: Final = "non_lora_trainables.bin"
_STEPS: Final = "mm_projector"

# What one file in a directory makes it, in the order in which loaders prefer them.
_SINGLE_FILES: Final[tuple[tuple[str, Layout], ...]] = (
    (SAFETENSORS, "safetensors"),
    (_TORCH, "torch"),
)
_LORA_FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
_RUN_FILES: Final = ("mm_projector.bin", "mm_projector.safetensors", "audio_adpter.bin")

_STEP: Final = re.compile(r"checkpoint-[0-9]+", re.ASCII)
_SHARD: Final = re.compile(r"-[0-9]+-of-[0-9]+\.", re.ASCII)
_STEP_FILE: Final = re.compile(r"checkpoint-[0-9]+\.(bin|safetensors)", re.ASCII)
_WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

# Files that a loader could take for weights: none of them may survive a surgery unnoticed.
_WEIGHTS_OR_INDEX: Final = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack)|.*\.(safetensors|bin)\.index\.json"
    r"|adapter_config\.json",
    re.ASCII | re.IGNORECASE,
)
TRAINING_STATE: Final = re.compile(
    r"(training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth)", re.ASCII
)
_STALE_DIRECTORIES: Final = re.compile(r"\..*|checkpoint-[0-9]+|global_step[0-9]+", re.ASCII)
_DEEPEST: Final = 16
_WHY_LEFT_OUT: Final = {
    "broken link": "a broken link",
    "link to a directory": "a link to a directory",
    "other": "not a regular file",
}


def read_shard(root: str, name: str) -> tuple[Shard, Mapping[str, TensorRef]]:
    """One weight file below ``root`` (``root`` itself if ``name`` is empty) with its tensors."""
    path = os.path.join(root, name) if name else root
    if path.endswith(".safetensors"):
        opened = read_safetensors(path)
        return Shard(name, opened.file, "safetensors", opened.metadata), opened.tensors
    from vita_ckpt.storage.torch_file import read_torch  # noqa: PLC0415 - zipfile, pickletools

    saved = read_torch(path)
    return Shard(name, saved.file, "torch"), saved.tensors


def duplicate(tensor: str, shard: Shard, other: TensorRef) -> MalformedFileError:
    """The error for a tensor of ``shard`` that another file has too."""
    return MalformedFileError(
        "duplicate-tensor",
        f"{shard.file.path}: {tensor}",
        expected="each tensor in one file",
        got=f"it also stands in {other.source.path}",
    )


def check_unchanged(files: Iterable[File]) -> None:
    """Raise StaleInputError unless every file is as it was: size, time, and header or config.

    One on the hub is pinned to a commit.
    """
    for file in files:
        if isinstance(file, RemoteFile):
            continue
        try:
            seen = _identify(file)
        except InputError as error:
            raise StaleInputError(
                "input-changed", file.path, expected="the file as it was", got=error.got
            ) from error
        check_same(file, seen)


def _identify(file: LocalFile) -> LocalFile:
    """What stands in the place of a file now, as far as it was read before."""
    if not file.digest:
        return identify(file.path)
    if file.path.endswith(".json"):
        return on_disk(read_json_object(file.path)[1])
    return on_disk(read_shard(file.path, "")[0].file)


@dataclass(slots=True)
class _Weights:
    """Shards read so far; a name may come from one of them only."""

    shards: list[Shard] = field(default_factory=list)
    tensors: dict[str, TensorRef] = field(default_factory=dict)

    def read(self, root: str, name: str) -> Mapping[str, TensorRef]:
        shard, tensors = read_shard(root, name)
        for tensor in tensors:
            if tensor in self.tensors:
                raise duplicate(tensor, shard, self.tensors[tensor])
        self.shards.append(shard)
        self.tensors.update(tensors)
        return tensors

    def check(self, path: str) -> None:
        """Raise InputError if there is not a single tensor."""
        if not self.tensors:
            raise InputError(
                "no-tensors",
                path,
                expected="weights",
                got="a file without a single tensor",
                hint="what saved it had gathered nothing: save it again",
            )


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint, adapter, run or tower: headers only, whatever its size.

    ``path`` is a directory (single-file or sharded safetensors or ``.bin``, a projector run, a PEFT
    run, a folder of steps) or a lone ``.safetensors``/``.bin``/``.pt`` file; or the address of one
    on the hub, pinned to a commit. Raises InputError (or a subclass) naming the file, and the
    tensor where one is concerned, if it cannot be read, breaks a rule of its format, or leads out
    of the directory.
    """
    root, entry = find(path)
    # A file is part of the checkpoint that it lies in, by whatever name it was reached.
    folder = root if entry.is_directory else folder_of(root)
    check_whole(folder)
    opened = _open_directory(root) if entry.is_directory else open_file(root)
    check_whole(folder)  # a surgery may have begun while it was read
    return opened


def open_file(path: str) -> Checkpoint:
    """A lone weight file as a checkpoint, with the config beside it."""
    check_no_json(path)
    weights = _Weights()
    weights.read(path, "")
    weights.check(path)
    folder, name = os.path.split(path)
    is_step = _STEP_FILE.fullmatch(name) and os.path.basename(folder) == _STEPS
    config: dict[str, Any] | None = None
    files: dict[str, File] = {}
    if not _SHARD.search(name):  # a shard is a part of what the config beside it describes
        config, files = read_optional(os.path.dirname(folder) if is_step else folder, CONFIG)
    return Checkpoint(
        path, "file", weights.tensors, tuple(weights.shards), config=config, files=files
    )


def check_no_json(path: str) -> None:
    """Raise InputError if a file is a config or an index by its name: its directory was meant."""
    if path.endswith(".json"):
        raise InputError(
            "not-a-weight-file",
            path,
            expected="a checkpoint directory or a weight file",
            hint=f"give the directory {os.path.dirname(path)}",
        )


def _open_directory(root: str) -> Checkpoint:
    names = listing(root)
    weights = _Weights()
    index: dict[str, Any] | None = None
    layout: Layout
    files: dict[str, File] = {}
    index_name = index_of(names)
    if index_name is not None:
        index, index_file = read_json_object(os.path.join(root, index_name))
        files[index_name] = index_file
        _read_indexed(root, index_name, index, names, weights)
        layout = "safetensors" if index_name == SAFETENSORS_INDEX else "torch"
    else:
        layout, weight_files = choose_weights(root, names)
        for name in weight_files:
            weights.read(root, name)
    weights.check(root)
    config, config_files = read_optional(home_of_config(root, weights.shards[0].name), CONFIG)
    adapter_config, adapter_files = (
        read_optional(root, ADAPTER_CONFIG) if layout == "lora" else (None, {})
    )
    files |= config_files | adapter_files
    provenance = _read_provenance(root, files)
    left_out: dict[str, str] = {}
    used = {shard.name for shard in weights.shards} | files.keys()
    collect_files(root, "", used, files, left_out, 0)
    return Checkpoint(
        root,
        layout,
        weights.tensors,
        tuple(weights.shards),
        config=config,
        adapter_config=adapter_config,
        index=index,
        files=files,
        left_out=left_out,
        provenance=provenance,
    )


def index_of(names: Iterable[str]) -> str | None:
    """The index that says which files of a directory are its weights, if one does."""
    found = next((n for n in (SAFETENSORS_INDEX, TORCH_INDEX) if n in names), None)
    return None if found == TORCH_INDEX and SAFETENSORS in names else found


def home_of_config(root: str, weight_file: str) -> str:
    """Where the config of a run lies: with the step that is taken, or above a folder of steps."""
    step, _, file = weight_file.rpartition("/")
    if _STEP.fullmatch(step):
        return os.path.join(root, step)
    is_step = _STEP_FILE.fullmatch(file) and not step
    if is_step and os.path.basename(root) == _STEPS:
        return os.path.dirname(root)
    return root


def _read_indexed(
    root: str, index_name: str, index: Mapping[str, Any], names: Iterable[str], weights: _Weights
) -> None:
    path = os.path.join(root, index_name)
    weight_map = weight_map_of(index, path)
    shards = tensors_by_shard(weight_map)
    for shard in shards:
        check_inside(root, shard, path)
    both = ambiguous_weights(root, index_name, names, shards)
    if both is not None:
        raise both
    expect_headers(root, list(shards))
    for shard, promised in shards.items():
        found = weights.read(root, shard)
        for error in index_mismatches(path, weight_map, shard, promised, found):
            raise error


def weight_map_of(index: Mapping[str, Any], path: str) -> dict[str, str]:
    """Which file each tensor is in; raises MalformedFileError for an index that does not say."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedFileError("invalid-index", path, expected="a weight_map of tensors to files")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            raise MalformedFileError(
                "invalid-index", f"{path}: {tensor}", expected="a file name", got=repr(shard)
            )
    return weight_map


def tensors_by_shard(weight_map: Mapping[str, str]) -> dict[str, list[str]]:
    """The files that an index names, sorted, each with the tensors that it promises there."""
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        shards.setdefault(shard, []).append(tensor)
    return dict(sorted(shards.items()))


def ambiguous_weights(
    root: str, index_name: str, names: Iterable[str], shards: Iterable[str]
) -> InputError | None:
    """The error for a single weight file beside an index that does not name it."""
    single = SAFETENSORS if index_name == SAFETENSORS_INDEX else _TORCH
    if single not in names or single in shards:
        return None
    return InputError(
        "ambiguous-weights",
        root,
        expected=f"either {single} or {index_name}",
        got="both",
        hint="loaders disagree which one counts: remove the stale one",
    )


def index_mismatches(
    index_path: str,
    weight_map: Mapping[str, str],
    shard: str,
    promised: Iterable[str],
    found: Iterable[str],
) -> Iterator[MalformedFileError]:
    """How the tensors ``promised`` in a shard and those ``found`` there disagree, both ways."""
    folder, index_name = os.path.split(index_path)
    there = dict.fromkeys(found)
    for tensor in there:
        if weight_map.get(tensor) != shard:
            yield MalformedFileError(
                "index-mismatch",
                f"{os.path.join(folder, shard)}: {tensor}",
                expected=f"{index_name} to name this file for it",
                got=repr(weight_map.get(tensor, "nothing")),
            )
    for tensor in promised:
        if tensor not in there:
            yield MalformedFileError(
                "index-mismatch",
                f"{index_path}: {tensor}",
                expected=f"the tensor in {shard}",
                got="no such tensor there",
            )


def check_inside(root: str, name: str, index_path: str) -> None:
    """A name in an index stays in the directory; the file itself may be a link (the hub cache)."""
    if stays_below(root, name):
        return
    raise MalformedFileError(
        "path-outside-checkpoint",
        f"{index_path}: {name!r}",
        expected="a file in the directory",
        hint="the index is broken or hostile; nothing was read through it",
    )


def choose_weights(root: str, names: list[str]) -> tuple[Layout, list[str]]:
    """What a directory without an index is, and its weight files.

    Raises InputError if it holds no weights, or several and nothing says which count.
    """
    for name, layout in _SINGLE_FILES:
        if name in names:
            return layout, [name]
    lora = [name for name in _LORA_FILES if name in names][:1]
    if lora or _NON_LORA in names:
        return "lora", lora + ([_NON_LORA] if _NON_LORA in names else [])
    run: str | None = next((name for name in _RUN_FILES if name in names), None)
    if run is None:
        run = _step_or_lone_file(root, names)
    is_run = run in _RUN_FILES or _STEP_FILE.fullmatch(os.path.basename(run)) is not None
    return "run" if is_run else "file", [run]


def _step_or_lone_file(root: str, names: list[str]) -> str:
    """The only weight file of a directory without one of the known names."""
    steps = [name for name in names if _STEP_FILE.fullmatch(name)]
    folder = os.path.join(root, _STEPS)
    if not steps and is_directory(folder):
        steps = [f"{_STEPS}/{n}" for n in listing(folder) if _STEP_FILE.fullmatch(n)]
    steps += [
        f"{name}/{file}"
        for name in names
        if _STEP.fullmatch(name)
        for file in _RUN_FILES
        if is_file(os.path.join(root, name, file))
    ]
    lone = [
        name
        for name in names
        if name.endswith(_WEIGHT_SUFFIXES) and not TRAINING_STATE.fullmatch(name)
    ]
    found = steps or lone
    if len(found) == 1:
        return found[0]
    if steps:
        raise InputError(
            "several-steps",
            root,
            expected="one projector",
            got=", ".join(steps[:8]),
            hint=f"name one of them: {os.path.join(root, steps[-1])}",
        )
    if lone:
        raise InputError(
            "missing-index",
            root,
            expected=f"{SAFETENSORS_INDEX} beside several weight files",
            got=", ".join(lone[:8]),
            hint="copy the index too, or name one of the files",
        )
    check_known(f"{root}: weights")
    raise InputError(
        "not-a-checkpoint",
        root,
        expected="model.safetensors, pytorch_model.bin, an index of either, or an adapter",
        got=what_it_looks_like(names),
    )


def what_it_looks_like(names: list[str]) -> str:
    """What a directory without known weights holds, for a person."""
    if not names:
        return "an empty directory"
    foreign = foreign_kind(names)
    if foreign is not None:
        return foreign
    steps = [name for name in names if _STEP.fullmatch(name)]
    if steps:
        return f"a run with checkpoints in {', '.join(steps[:8])}"
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


_FOREIGN: Final = (
    (r".*\.gguf", "a GGUF model (convert_hf_to_gguf made it: take what it was made of)"),
    (
        r"global_step[0-9]+|zero_to_fp32\.py|zero_pp_rank_.*|(bf16_)?zero_pp_.*",
        "a DeepSpeed checkpoint (zero_to_fp32.py in it makes weights)",
    ),
    (
        r"model-rank-[0-9]+-part-[0-9]+\.safetensors",
        "a sharded state that vLLM exported (take the checkpoint it was made of)",
    ),
    (r".*\.(distcp)|\.metadata", "a torch.distributed checkpoint (convert it first)"),
    (r"pytorch_model_fsdp.*|__[0-9]+_[0-9]+\.distcp", "an FSDP checkpoint (convert it first)"),
    (r".*\.(h5|msgpack|onnx|tflite)", "a model of another framework"),
)


def foreign_kind(names: Iterable[str]) -> str | None:
    """The kind of weights that these names in a directory tell and that is not read here."""
    listed = list(names)
    for pattern, kind in _FOREIGN:
        if any(re.fullmatch(pattern, name, re.ASCII | re.IGNORECASE) for name in listed):
            return kind
    return None


def _read_provenance(root: str, files: dict[str, File]) -> dict[str, Any] | None:
    """What earlier surgeries noted. It decides nothing about a tensor, so one that is no JSON
    object stops nobody: it counts as absent, and validate says that it is broken.
    """
    try:
        provenance, found = read_optional(root, PROVENANCE)
    except MalformedFileError:
        return None
    files |= found
    return provenance


def read_optional(root: str, name: str) -> tuple[dict[str, Any] | None, dict[str, File]]:
    """A JSON file that may be there, and its identity by name."""
    path = os.path.join(root, name)
    if look(path) is None:
        return None, {}
    value, file = read_json_object(path)
    return value, {name: file}


def collect_files(
    root: str,
    below: str,
    used: set[str],
    files: dict[str, File],
    left_out: dict[str, str],
    depth: int,
) -> None:
    """Sort what else the directory holds into files to carry and what is left out, with why."""
    for name in listing(os.path.join(root, below)):
        relative = f"{below}{name}"
        if relative in used or relative == HOME:  # how to undo what was done is no part of it
            continue
        entry = look(os.path.join(root, relative))
        if entry is None:  # removed just now, or not to be reached
            left_out[relative] = "not readable"
        elif entry.file is not None:
            reason = None if below else _why_left_out(name)
            if reason is not None:
                left_out[relative] = reason
            else:
                files[relative] = entry.file
        elif entry.kind != "directory":
            left_out[relative] = _WHY_LEFT_OUT[entry.kind]
        elif (not below and name == _STEPS) or _STALE_DIRECTORIES.fullmatch(name):
            left_out[relative] = "a directory of other checkpoints or hidden"
        elif depth >= _DEEPEST:
            left_out[relative] = "nested too deeply"
        else:
            collect_files(root, f"{relative}/", used, files, left_out, depth + 1)


def counts_as_weights(name: str) -> bool:
    """Whether a loader could take a file of this name for weights, or an index of them."""
    is_state = TRAINING_STATE.fullmatch(name) is not None
    return not is_state and _WEIGHTS_OR_INDEX.fullmatch(name) is not None


def _why_left_out(name: str) -> str | None:
    """Why a regular file in the directory itself is no part of the checkpoint; None if it is."""
    if TRAINING_STATE.fullmatch(name):
        return "state of the run that trained the checkpoint"
    if _WEIGHTS_OR_INDEX.fullmatch(name):
        return "a weight file that is not part of the checkpoint"
    return "left by a run that was killed" if is_stage(name) else None
