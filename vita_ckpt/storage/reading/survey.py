"""Read what is readable of a broken checkpoint, and note everything that is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from typing import Any, TypeVar

from vita_ckpt.core.checkpoint import Checkpoint, File, Layout, Shard, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.file_listing import other_total_size
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    HUB_DOWNLOADS,
    ORIGIN_CONFIG,
    PARTIAL_DOWNLOAD,
    PICKLE_SUFFIXES,
    PROVENANCE,
    SAFETENSORS_INDEX,
    TRAINED_FILES,
    TRAINING_STATE,
    WEIGHT_SUFFIXES,
    index_of,
    shards_in_all,
)
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.remedies import ignore_index
from vita_ckpt.core.rivals import Rival
from vita_ckpt.core.training_state import Foreign, foreign_directory
from vita_ckpt.errors import INCONCLUSIVE, InputError, MalformedFileError, VitaCkptError
from vita_ckpt.storage.reading.announce import announce
from vita_ckpt.storage.reading.checkpoint import (
    choose_weights,
    collect_files,
    home_of_config,
    open_file,
    open_state,
    training_state_in,
    vita_and_serving,
)
from vita_ckpt.storage.reading.in_progress import check_whole
from vita_ckpt.storage.reading.index import (
    ambiguous_weights,
    check_inside,
    index_mismatches,
    missing_shard,
    single_of,
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
from vita_ckpt.storage.reading.pickles import ScannedPickle, scan_beside
from vita_ckpt.storage.reading.rival_weights import other_weights, rival
from vita_ckpt.storage.reading.shards import duplicate, is_same, read_shard
from vita_ckpt.storage.reading.training.find import Place
from vita_ckpt.storage.stores.base import Kind, Store
from vita_ckpt.storage.system.owner import is_stage

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be as it is: the file that it is about, and the error."""

    file: str
    error: VitaCkptError


@dataclass(frozen=True, slots=True)
class Survey:
    """The readable part of a checkpoint and what is wrong with the rest.

    ``unread`` names the tensors that an index promises in files that could not be read,
    ``pickles`` what the pickles beside the weights name. ``rivals`` compare other files of weights
    in the directory with the checkpoint's, ``taken`` names those among them that hold what the
    index promises in files that are not there.
    """

    checkpoint: Checkpoint
    problems: tuple[Problem, ...] = ()
    unread: frozenset[str] = frozenset()
    pickles: tuple[ScannedPickle, ...] = ()
    rivals: Mapping[str, Rival] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()


def survey(path: str | os.PathLike[str], stores: Stores, key: str = "") -> Survey:
    """Read what there is at ``path``: headers only, one problem for each thing that is wrong.

    ``key`` is the path of the state dict to read in files of ``torch.save``, empty for the
    likeliest. Raises InputError if nothing is there, or no weights of any known kind, or no state
    dict at ``key``, HubError if the hub does not give what is asked for, StaleInputError for a file
    that changes meanwhile.
    """
    store = stores.store_of(os.fspath(path))
    root, entry = find(store, path)
    surveyor = _Surveyor(store, root, key)
    found = surveyor.directory() if entry.is_directory else surveyor.file()
    if not found.problems:  # a surgery may have begun while it was read
        folder = root if entry.is_directory else store.folder_of(root)
        surveyor._passes(root, lambda: check_whole(store, folder))
        found = replace(found, problems=tuple(surveyor.problems))
    if key and any(shard.format == "torch" for shard in found.checkpoint.shards):
        found = replace(found, checkpoint=replace(found.checkpoint, key=key))
    return found


@dataclass(slots=True)
class _Surveyor:
    store: Store
    root: str
    key: str = ""
    problems: list[Problem] = field(default_factory=list)
    shards: list[Shard] = field(default_factory=list)
    tensors: dict[str, TensorRef] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    rivals: dict[str, Rival] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def file(self) -> Survey:
        """A lone weight file."""
        folder = self.store.folder_of(self.root)
        self._passes(self.root, lambda: check_whole(self.store, folder))
        opened = self._attempt(self.root, lambda: open_file(self.store, self.root, self.key))
        if (of := shards_in_all(os.path.basename(self.root))) > 1:
            error = InputError(
                "lone-shard",
                self.root,
                expected=f"all {of} files of the checkpoint",
                got="one of them",
                hint=f"name the directory: {folder}",
            )
            self._note(self.root, error)
        empty = Checkpoint(self.root, "file", {})
        return Survey(opened or empty, tuple(self.problems))

    def directory(self) -> Survey:
        """A directory of any layout."""
        names = self.store.listing(self.root)
        self._passes(self.root, lambda: check_whole(self.store, self.root))
        before = len(self.problems)
        place = self._attempt(self.root, lambda: training_state_in(self.store, self.root, names))
        if place is not None or len(self.problems) > before:
            return self._training_state(place)
        index_name = index_of(names)
        index: dict[str, Any] | None = None
        files: dict[str, File] = {}
        layout: Layout = "safetensors"
        if index_name is not None:
            announce(self.store, self.root, names, index_name)
            layout = "safetensors" if index_name == SAFETENSORS_INDEX else "torch"
            path = os.path.join(self.root, index_name)
            read = self._attempt(path, lambda: read_json(self.store, path))
            if read is not None:
                index, files[index_name] = read
                self._indexed(index_name, index, names)
        else:
            layout = self._unindexed(names)
        if not self.tensors and not self.problems:
            self._note(self.root, _no_tensors(self.root))
        first = self.shards[0].name if self.shards else ""
        home = home_of_config(self.root, first)
        config = self._json(home, CONFIG, files)
        beside: dict[str, File] = {}
        origin = self._json(home, ORIGIN_CONFIG, beside) if config is not None else None
        config, serving, config_file = vita_and_serving(config, origin)
        files |= beside if serving is not None else {}
        adapter = self._json(self.root, ADAPTER_CONFIG, files) if layout == "lora" else None
        provenance = self._json(self.root, PROVENANCE, files)
        left_out: dict[str, LeftOut] = {}
        # What was chosen and is broken is no left-over: nobody should be told to remove it.
        used = self.chosen | files.keys()
        collect_files(self.store, self.root, "", used, files, left_out, 0)
        checkpoint = Checkpoint(
            self.root,
            layout,
            self.tensors,
            tuple(self.shards),
            config=config,
            adapter_config=adapter,
            index=index,
            files=files,
            left_out=left_out,
            provenance=provenance,
            config_file=config_file,
            serving_config=serving,
        )
        self._beside(names, left_out)
        pickles = scan_beside(self.store, checkpoint, [problem.file for problem in self.problems])
        return Survey(
            checkpoint,
            tuple(self.problems),
            frozenset(self.unread),
            pickles,
            self.rivals,
            frozenset(self.taken),
        )

    def _training_state(self, place: Place | None) -> Survey:
        """Read a training state, which is whole or an error."""
        empty = Checkpoint(self.root, "state", {})
        if place is None:
            return Survey(empty, tuple(self.problems))
        opened = self._attempt(place.root, lambda: open_state(self.store, place))
        return Survey(opened or empty, tuple(self.problems))

    def _indexed(self, index_name: str, index: Mapping[str, Any], names: list[str]) -> None:
        path = os.path.join(self.root, index_name)
        weight_map = self._attempt(path, lambda: weight_map_of(index, path))
        if weight_map is None:
            return
        shards = tensors_by_shard(weight_map)
        complete = True
        for name, promised in shards.items():
            found = self._shard(name, path)
            if found is None:
                complete = False
                self.unread |= set(promised)
                continue
            for error in index_mismatches(path, weight_map, name, promised, found):
                self._note(path, error)
        both = ambiguous_weights(self.root, index_name, names, shards)
        if both is not None:
            self._note(self.root, self._which(both, single_of(index_name)))
        if complete:
            self._total_size(path, index)
        elif self.store.is_local:
            self._held_elsewhere(index_name, names, shards)

    def _which(self, both: InputError, name: str) -> InputError:
        """Add to the error over two sets of weights how the single file compares with the other."""
        if not self.store.is_local:
            return both
        read = self._quietly(name)
        if read is None:
            return both
        found = str(rival(self.tensors, self.shards, read[0].file, read[1]))
        return both.replaced(hint=f"{both.hint}; of {name}: {found}") if found else both

    def _held_elsewhere(
        self, index_name: str, names: list[str], shards: Mapping[str, list[str]]
    ) -> None:
        """Say of absent shards that files which the index does not name hold all they should."""
        paths = {name: os.path.join(self.root, name) for name in shards}
        lacking = {name for name, path in paths.items() if not is_file(self.store, path)}
        if not lacking:
            return
        wanted = {tensor for name in lacking for tensor in shards[name]}
        holders: dict[str, Mapping[str, TensorRef]] = {}
        for name in names:
            if name in shards or name in TRAINED_FILES or not name.endswith(WEIGHT_SUFFIXES):
                continue
            if TRAINING_STATE.fullmatch(name):
                continue
            read = self._quietly(name)
            if read is not None and wanted & read[1].keys():
                holders[name] = read[1]
        if not holders or wanted - set().union(*(held.keys() for held in holders.values())):
            return
        self.taken |= holders.keys()
        listed = ", ".join(list(holders)[:4]) + (" …" if len(holders) > 4 else "")
        hint = (
            f"{listed} hold{'s' if len(holders) == 1 else ''} every tensor that {index_name} names "
            f"there: {ignore_index(self.root)} takes what is there"
        )
        self.problems = [
            replace(problem, error=problem.error.replaced(hint=hint))
            if problem.error.code == "missing-shard"
            else problem
            for problem in self.problems
        ]

    def _quietly(self, name: str) -> tuple[Shard, Mapping[str, TensorRef]] | None:
        """Read a file that is not part of the checkpoint; None if it cannot be read."""
        try:
            return read_shard(self.store, self.root, name)
        except INCONCLUSIVE:
            raise
        except InputError:
            return None

    def _shard(self, name: str, index_path: str) -> Mapping[str, TensorRef] | None:
        """The tensors of a file that the index names; None if they cannot be read."""
        path = os.path.join(self.root, name)
        if not self._passes(
            index_path, lambda: check_inside(self.store, self.root, name, index_path)
        ):
            return None
        entry = self.store.look(path)
        if entry is None or entry.kind is Kind.BROKEN_LINK:
            got = "nothing there" + (" (a broken link)" if entry is not None else "")
            error = missing_shard(path, os.path.basename(index_path), got)
            self._note(path, error.replaced(hint="copy or download it"))
            return None
        return self._weights(name)

    def _weights(self, name: str, *, is_lora: bool = False) -> Mapping[str, TensorRef] | None:
        self.chosen.add(name)
        read = self._attempt(
            os.path.join(self.root, name),
            lambda: read_shard(self.store, self.root, name, self.key),
        )
        if read is None:
            return None
        shard, tensors = read
        twice = tensors.keys() & self.tensors.keys()
        for tensor in sorted(twice):
            if not (is_lora and is_same(self.store, tensors[tensor], self.tensors[tensor])):
                error = duplicate(tensor, shard, self.tensors[tensor], differs=is_lora)
                self._note(shard.file.path, error)
        self.shards.append(shard)
        self.tensors |= {n: t for n, t in tensors.items() if n not in twice} if twice else tensors
        return tensors

    def _unindexed(self, names: list[str]) -> Layout:
        try:
            layout, chosen = choose_weights(self.store, self.root, names)
        except INCONCLUSIVE:
            raise
        except InputError as error:
            foreign = foreign_directory(names)
            if foreign is not None:
                self._note(self.root, _other_kind(self.root, foreign))
            elif error.code == "not-a-checkpoint":
                raise
            else:
                self._note(self.root, error)
            return "none"
        announce(self.store, self.root, names, weights=chosen)
        for name in chosen:
            self._weights(name, is_lora=layout == "lora")
        return layout

    def _total_size(self, path: str, index: Mapping[str, Any]) -> None:
        metadata = index.get("metadata")
        if not isinstance(metadata, dict):
            return
        size = other_total_size(metadata, self.tensors.values())
        if size is not None:
            error = MalformedFileError(
                "index-total-size",
                path,
                expected=f"total_size {size}, the bytes of the tensors",
                got=repr(metadata["total_size"]),
                hint="write the index anew: any surgery does",
            )
            self._note(path, error)

    def _beside(self, names: list[str], left_out: Mapping[str, LeftOut]) -> None:
        """Files beside the weights: left-overs of downloads, pickles that are not tensors."""
        for path in (
            *(os.path.join(self.root, n) for n in names),
            *_hub_left_overs(self.store, self.root),
        ):
            if is_partial(path):
                error = InputError(
                    "partial-download",
                    path,
                    expected="complete files only",
                    got="what an interrupted download or copy left",
                    hint="download it again; what it was to become may be incomplete",
                )
                self._note(path, error)
        pickled: dict[str, TensorRef] = {}
        for name, reason in left_out.items():
            is_pickle = name.endswith(PICKLE_SUFFIXES)
            if reason is not LeftOut.OTHER_WEIGHTS or not name.endswith(WEIGHT_SUFFIXES):
                continue
            if not is_pickle and not self.store.is_local:
                continue
            try:
                shard, tensors = read_shard(self.store, self.root, name)
            except INCONCLUSIVE:
                raise
            except InputError as error:
                if error.code == "unsafe-pickle":
                    self._note(os.path.join(self.root, name), error)
                continue
            self.rivals[name] = rival(self.tensors, self.shards, shard.file, tensors)
            pickled |= tensors if name.startswith("pytorch_model") and is_pickle else {}
        other = other_weights(self.tensors, pickled) if self.store.is_local else None
        if other is not None:
            file = os.path.basename(pickled[other].source.path)
            self._note(pickled[other].source.path, self._two_models(other, self.rivals.get(file)))

    def _two_models(self, tensor: str, found: Rival | None) -> InputError:
        ours = self.shards[0].name if self.shards else "the others"
        return InputError(
            "ambiguous-weights",
            self.root,
            expected="one set of weights, or two that are the same",
            got=f"complete pickled weights beside the others, and {tensor} differs",
            hint=f"VITA's loader and transformers read {ours} while it is there, and the pickled "
            "weights once it is not"
            + (f"; of these: {found}" if found is not None else "")
            + ". Decide which set is meant, and move the other to a directory of its own",
        )

    def _json(self, folder: str, name: str, files: dict[str, File]) -> dict[str, Any] | None:
        read = self._attempt(
            os.path.join(folder, name), lambda: read_optional(self.store, folder, name)
        )
        if read is None:
            return None
        value, found = read
        files |= found
        return value

    def _attempt(self, file: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except INCONCLUSIVE:
            raise
        except InputError as error:
            if error.code == "key-not-found":  # wrong is what was asked for, not what is there
                raise
            self._note(file, error)
            return None

    def _passes(self, file: str, check: Callable[[], None]) -> bool:
        before = len(self.problems)
        self._attempt(file, check)
        return len(self.problems) == before

    def _note(self, file: str, error: InputError) -> None:
        self.problems.append(Problem(file, error))


def _other_kind(root: str, foreign: Foreign) -> InputError:
    return InputError(
        "other-kind",
        root,
        expected="weights that VITA's loaders read",
        got=foreign.label,
        hint=foreign.remedy,
    )


def _no_tensors(root: str) -> InputError:
    return InputError(
        "no-tensors",
        root,
        expected="weights",
        got="a file without a single tensor",
        hint="what saved it had gathered nothing: save it again",
    )


def is_partial(path: str) -> bool:
    """Whether a file's name says that an interrupted download or copy left it."""
    name = os.path.basename(path)
    return PARTIAL_DOWNLOAD.fullmatch(name) is not None and not is_stage(name)


def _hub_left_overs(store: Store, root: str) -> Iterator[str]:
    folder = os.path.join(root, HUB_DOWNLOADS)
    if is_directory(store, folder):
        yield from (os.path.join(folder, name) for name in store.listing(folder))
