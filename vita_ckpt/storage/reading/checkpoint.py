"""Open a directory or a file as a Checkpoint, down to its headers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.checkpoint import Checkpoint, File, Layout
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    HOME,
    INDEX_SUFFIX,
    LORA_FILES,
    NON_LORA,
    ORIGIN_CONFIG,
    PROVENANCE,
    RUN_FILES,
    SAFETENSORS_INDEX,
    SAFETENSORS_SUFFIX,
    SHARD,
    SINGLE_FILES,
    STALE_DIRECTORIES,
    STEP,
    STEP_FILE,
    STEPS,
    TRAINING_STATE,
    WEIGHT_SUFFIXES,
    WEIGHTS_OR_INDEX,
    index_of,
    weight_files_of,
    what_it_looks_like,
)
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.remedies import ignore_index
from vita_ckpt.core.serving import is_serving_config
from vita_ckpt.core.training_state import Foreign, file_of_training_state, foreign_directory
from vita_ckpt.errors import INCONCLUSIVE, InputError, MalformedFileError
from vita_ckpt.storage.reading.announce import announce
from vita_ckpt.storage.reading.in_progress import check_whole
from vita_ckpt.storage.reading.index import (
    ambiguous_weights,
    check_inside,
    index_mismatches,
    missing_shard,
    tensors_by_shard,
    weight_map_of,
)
from vita_ckpt.storage.reading.paths import (
    Stores,
    find,
    is_directory,
    is_file,
    read_json,
    read_optional,
)
from vita_ckpt.storage.reading.shards import Weights
from vita_ckpt.storage.reading.training.find import (
    Place,
    engine_of,
    find_state,
    latest_tag,
    states_below,
)
from vita_ckpt.storage.stores.base import Kind, Store
from vita_ckpt.storage.system.owner import is_stage

_DEEPEST: Final = 16
_LEFT_OUT_KINDS: Final = {
    Kind.BROKEN_LINK: LeftOut.BROKEN_LINK,
    Kind.DIRECTORY_LINK: LeftOut.DIRECTORY_LINK,
    Kind.OTHER: LeftOut.NOT_REGULAR,
}

# Of a directory without weights so many entries are looked into.
_MOST_FOLDERS: Final = 64
# Where the hub's cache has the files of each revision.
_SNAPSHOTS: Final = "snapshots"

_WEIGHTS_LEFT_BEHIND: Final = (
    "the weights were not saved, or not copied with the config.json: those of a projector run are "
    "mm_projector.bin"
)


def open_checkpoint(
    path: str | os.PathLike[str],
    stores: Stores,
    key: str | None = None,
    *,
    ignore_index: bool = False,
) -> Checkpoint:
    """Open a checkpoint, adapter, run, tower or training state: headers only, whatever its size.

    ``path`` is a directory (single-file or sharded safetensors or ``.bin``, a projector run, a PEFT
    run, a folder of steps, the state of a training) or a lone ``.safetensors``/``.bin``/``.pt``
    file; or the address of one on the hub, pinned to a commit. ``key`` is the path of the state
    dict to read in files of ``torch.save``; safetensors files have none. With ``ignore_index`` the
    weight files of a directory are those that loaders name so, whatever an index says.

    Raises InputError (or a subclass) naming the file, and the tensor where one is concerned, if it
    cannot be read, breaks a rule of its format, or leads out of the directory.
    """
    store = stores.store_of(os.fspath(path))
    root, entry = find(store, path)
    # A file is part of the checkpoint that it lies in, by whatever name it was reached.
    folder = root if entry.is_directory else store.folder_of(root)
    check_whole(store, folder)
    if entry.is_directory:
        opened = _open_directory(store, root, key or "", ignore_index=ignore_index)
    else:
        opened = open_file(store, root, key or "")
    check_whole(store, folder)  # a surgery may have begun while it was read
    has_keys = any(shard.format == "torch" for shard in opened.shards)
    return replace(opened, key=key) if key and has_keys else opened


def open_file(store: Store, path: str, key: str = "") -> Checkpoint:
    """A lone weight file as a checkpoint, with the config beside it."""
    check_no_json(path)
    folder, name = os.path.split(path)
    weights = Weights(key)
    try:
        weights.read(store, path, "")
    except INCONCLUSIVE:
        raise
    except InputError as error:
        state = file_of_training_state(name)
        raise error if state is None else _training_state(path, state) from error
    weights.check(path)
    is_step = STEP_FILE.fullmatch(name) and os.path.basename(folder) == STEPS
    config: dict[str, Any] | None = None
    files: dict[str, File] = {}
    if not SHARD.search(name):  # a shard is a part of what the config beside it describes
        home = os.path.dirname(folder) if is_step else folder
        config, files = read_optional(store, home, CONFIG)
        origin, _ = read_optional(store, home, ORIGIN_CONFIG)
        config, _, _ = vita_and_serving(config, origin)
    return Checkpoint(
        path, "file", weights.tensors, tuple(weights.shards), config=config, files=files
    )


def _training_state(path: str, state: Foreign) -> InputError:
    return InputError(
        "other-kind",
        path,
        expected="weights that VITA's loaders read",
        got=state.label,
        hint=state.remedy,
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


def training_state_in(store: Store, root: str, names: list[str]) -> Place | None:
    """Return the training state that a directory is or leads to; None if it has other weights.

    Raises InputError if it leads to several, or out of the directory.
    """
    known = (*(name for name, _ in SINGLE_FILES), *LORA_FILES, NON_LORA, *RUN_FILES)
    if index_of(names) is not None or not {*known}.isdisjoint(names):
        return None
    engine = engine_of(names)
    if engine is not None:
        return Place(root, tuple(names), engine)
    if latest_tag(store, root, names) is None and not states_below(store, root, names):
        return None
    return find_state(store, root)


def open_state(store: Store, place: Place) -> Checkpoint:
    """Return the training state at a place, as :func:`open_checkpoint` does."""
    # Reads pickles, and is seldom needed.
    from vita_ckpt.storage.reading.training.state import open_place  # noqa: PLC0415

    return open_place(store, place)


def _open_directory(store: Store, root: str, key: str, *, ignore_index: bool = False) -> Checkpoint:
    names = store.listing(root)
    place = training_state_in(store, root, names)
    if place is not None:
        return open_state(store, place)
    weights = Weights(key)
    index: dict[str, Any] | None = None
    layout: Layout
    files: dict[str, File] = {}
    index_name = index_of(names)
    unindexed = weight_files_of(names) if ignore_index else []
    if unindexed:
        layout = "safetensors" if unindexed[0].endswith(SAFETENSORS_SUFFIX) else "torch"
        announce(store, root, names, weights=unindexed)
        for name in unindexed:
            weights.read(store, root, name)
        files |= _unread_indexes(store, root, names)
    elif index_name is not None:
        announce(store, root, names, index_name)
        index, index_file = read_json(store, os.path.join(root, index_name))
        files[index_name] = index_file
        _read_indexed(store, root, index_name, index, names, weights)
        layout = "safetensors" if index_name == SAFETENSORS_INDEX else "torch"
    else:
        layout, weight_files = choose_weights(store, root, names)
        announce(store, root, names, weights=weight_files)
        weights.is_lora = layout == "lora"
        for name in weight_files:
            weights.read(store, root, name)
    weights.check(root)
    home = home_of_config(root, weights.shards[0].name)
    config, config_files = read_optional(store, home, CONFIG)
    origin, origin_files = read_optional(store, home, ORIGIN_CONFIG)
    config, serving, config_file = vita_and_serving(config, origin)
    config_files |= origin_files if serving is not None else {}
    adapter_config, adapter_files = (
        read_optional(store, root, ADAPTER_CONFIG) if layout == "lora" else (None, {})
    )
    files |= config_files | adapter_files
    provenance = _read_provenance(store, root, files)
    left_out: dict[str, LeftOut] = {}
    used = {shard.name for shard in weights.shards} | files.keys()
    collect_files(store, root, "", used, files, left_out, 0)
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
        config_file=config_file,
        serving_config=serving,
    )


def vita_and_serving(
    config: dict[str, Any] | None, origin: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """Return VITA's config, a server's (None if there is none), and the file that VITA's is from.

    ``config`` is what config.json says, ``origin`` what origin_config.json does.
    """
    if config is not None and origin is not None and is_serving_config(config, origin):
        return origin, config, ORIGIN_CONFIG
    return config, None, CONFIG


def _unread_indexes(store: Store, root: str, names: Iterable[str]) -> dict[str, File]:
    """Return the indexes of a directory, which go with weight files that are written anew."""
    entries = {n: store.look(os.path.join(root, n)) for n in names if n.endswith(INDEX_SUFFIX)}
    return {n: entry.file for n, entry in entries.items() if entry is not None and entry.file}


def home_of_config(root: str, weight_file: str) -> str:
    """Where the config of a run lies: with the step that is taken, or above a folder of steps."""
    step, _, file = weight_file.rpartition("/")
    if STEP.fullmatch(step):
        return os.path.join(root, step)
    is_step = STEP_FILE.fullmatch(file) and not step
    if is_step and os.path.basename(root) == STEPS:
        return os.path.dirname(root)
    return root


def _read_indexed(
    store: Store,
    root: str,
    index_name: str,
    index: Mapping[str, Any],
    names: Iterable[str],
    weights: Weights,
) -> None:
    path = os.path.join(root, index_name)
    weight_map = weight_map_of(index, path)
    shards = tensors_by_shard(weight_map)
    for shard in shards:
        check_inside(store, root, shard, path)
    both = ambiguous_weights(root, index_name, names, shards)
    if both is not None:
        raise both
    for shard, promised in shards.items():
        if store.look(os.path.join(root, shard)) is None:
            store.check_known(os.path.join(root, shard))
            raise missing_shard(os.path.join(root, shard), index_name)
        found = weights.read(store, root, shard)
        for error in index_mismatches(path, weight_map, shard, promised, found):
            raise error


def choose_weights(store: Store, root: str, names: list[str]) -> tuple[Layout, list[str]]:
    """What a directory without an index is, and its weight files.

    Raises InputError if it holds no weights, or several and nothing says which count.
    """
    for name, layout in SINGLE_FILES:
        if name in names:
            return layout, [name]
    lora = [name for name in LORA_FILES if name in names][:1]
    if lora or NON_LORA in names:
        return "lora", lora + ([NON_LORA] if NON_LORA in names else [])
    run: str | None = next((name for name in RUN_FILES if name in names), None)
    if run is None:
        run = _step_or_lone_file(store, root, names)
    is_run = run in RUN_FILES or STEP_FILE.fullmatch(os.path.basename(run)) is not None
    return "run" if is_run else "file", [run]


def _step_or_lone_file(store: Store, root: str, names: list[str]) -> str:
    """The only weight file of a directory without one of the known names."""
    steps = [name for name in names if STEP_FILE.fullmatch(name)]
    folder = os.path.join(root, STEPS)
    if not steps and is_directory(store, folder):
        steps = [f"{STEPS}/{n}" for n in store.listing(folder) if STEP_FILE.fullmatch(n)]
    steps += [
        f"{name}/{file}"
        for name in names
        if STEP.fullmatch(name)
        for file in RUN_FILES
        if is_file(store, os.path.join(root, name, file))
    ]
    lone = [
        name
        for name in names
        if name.endswith(WEIGHT_SUFFIXES) and file_of_training_state(name) is None
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
            hint=f"copy the index too; without it, {ignore_index(root)} takes what is there",
        )
    store.check_known(f"{root}: weights")
    foreign = foreign_directory(names)
    remedy = "" if foreign is None else foreign.remedy
    raise InputError(
        "not-a-checkpoint",
        root,
        expected="model.safetensors, pytorch_model.bin, an index of either, or an adapter",
        got=what_it_looks_like(names),
        hint=remedy
        or _hint_of_folders(store, root, names)
        or (_WEIGHTS_LEFT_BEHIND if foreign is None and CONFIG in names else ""),
    )


def _hint_of_folders(store: Store, root: str, names: list[str]) -> str:
    """Return where weights lie below a directory on this disk that has none itself."""
    folders = [os.path.join(root, name) for name in names[:_MOST_FOLDERS] if store.is_local]
    folders += [
        os.path.join(folder, name)
        for folder in folders
        if os.path.basename(folder) == _SNAPSHOTS
        for name in _listing(store, folder)[:_MOST_FOLDERS]
    ]
    found = [folder for folder in folders if _holds_weights(_listing(store, folder))]
    last = max(found, key=_natural, default=None)
    return "" if last is None else f"weights lie in {last}: name that"


def _listing(store: Store, path: str) -> list[str]:
    """Return the names in a directory; none where there is no directory, or one of others."""
    try:
        return store.listing(path) if is_directory(store, path) else []
    except INCONCLUSIVE:
        raise
    except InputError:
        return []


def _holds_weights(names: list[str]) -> bool:
    return bool(weight_files_of(names)) or any(n in names for n in (*LORA_FILES, *RUN_FILES))


def _natural(path: str) -> list[tuple[int, str]]:
    """Return a key by which checkpoint-1000 comes after checkpoint-500."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d{1,9})", path)]


def _read_provenance(store: Store, root: str, files: dict[str, File]) -> dict[str, Any] | None:
    """What earlier surgeries noted. It decides nothing about a tensor, so one that is no JSON
    object stops nobody: it counts as absent, and validate says that it is broken.
    """
    try:
        provenance, found = read_optional(store, root, PROVENANCE)
    except MalformedFileError:
        return None
    files |= found
    return provenance


def collect_files(
    store: Store,
    root: str,
    below: str,
    used: set[str],
    files: dict[str, File],
    left_out: dict[str, LeftOut],
    depth: int,
) -> None:
    """Sort what else the directory holds into files to carry and what is left out."""
    for name in store.listing(os.path.join(root, below)):
        relative = f"{below}{name}"
        if relative in used or relative == HOME:  # how to undo what was done is no part of it
            continue
        entry = store.look(os.path.join(root, relative))
        if entry is None:  # removed just now, or not to be reached
            left_out[relative] = LeftOut.UNREADABLE
        elif entry.file is not None:
            reason = None if below else _why_left_out(name)
            if reason is not None:
                left_out[relative] = reason
            else:
                files[relative] = entry.file
        elif entry.kind is not Kind.DIRECTORY:
            left_out[relative] = _LEFT_OUT_KINDS[entry.kind]
        elif (not below and name == STEPS) or STALE_DIRECTORIES.fullmatch(name):
            left_out[relative] = LeftOut.OTHER_CHECKPOINTS
        elif depth >= _DEEPEST:
            left_out[relative] = LeftOut.TOO_DEEP
        else:
            collect_files(store, root, f"{relative}/", used, files, left_out, depth + 1)


def _why_left_out(name: str) -> LeftOut | None:
    """Return why a regular file at the top is not part of the checkpoint; None if it is."""
    state = None if name.endswith(SAFETENSORS_SUFFIX) else file_of_training_state(name)
    if TRAINING_STATE.fullmatch(name) or state is not None:
        return LeftOut.TRAINING_STATE
    if WEIGHTS_OR_INDEX.fullmatch(name):
        return LeftOut.OTHER_WEIGHTS
    return LeftOut.KILLED_RUN if is_stage(name) else None
