"""The pickles in a directory that are no weights of it: found, and looked through."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint, File, LocalFile
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.effort import Effort
from vita_ckpt.core.filenames import (
    SAFETENSORS_SUFFIX,
    is_no_weight_file,
    may_be_array,
    may_be_pickle,
)
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.pickle_globals import judge
from vita_ckpt.errors import INCONCLUSIVE, InputError
from vita_ckpt.storage.stores.base import Kind, Store
from vita_ckpt.storage.stores.local import LOCAL

# In all steps together so many files are looked at, and in a step so many levels.
_MOST_OF_STEPS: Final = 512
_DEEPEST: Final = 3

# How pickles start, arrays, and what they are packed in: zip, gzip, bz2, xz, lzma, zlib.
_STARTS: Final = (
    *(b"\x80", b"c", b"\x93NUMPY"),
    *(b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x5d\x00\x00", b"x"),
)


@dataclass(frozen=True, slots=True)
class ScannedPickle:
    """A pickle of a directory: the modules and names of its globals.

    ``computed`` says that it takes a global whose name is not written in it, ``failure`` why it was
    not looked through to its end; empty if it was.
    """

    name: str
    path: str
    globals: frozenset[tuple[str, str]]
    computed: bool
    failure: str

    @property
    def runs_code(self) -> bool:
        """Whether it would run code when it is loaded."""
        return self.computed or any(judge(*found) == "runs-code" for found in self.globals)


def is_pickle(store: Store, path: str) -> bool:
    """Return whether a file is a pickle, by its name or by how it starts.

    Of what lies on the hub only the name is looked at.
    """
    if may_be_pickle(os.path.basename(path)):
        return True
    if not store.is_local or path.endswith(SAFETENSORS_SUFFIX):
        return False
    try:
        with store.open(path) as source:
            if not source.read(min(6, source.file.size), 0).startswith(_STARTS):
                return False
            from vita_ckpt.storage.formats import pickle_scan  # noqa: PLC0415 - few have any

            return pickle_scan.starts_like_pickle(source)
    except INCONCLUSIVE:
        raise
    except InputError:
        return False


def disguised_pickles(files: Mapping[str, File]) -> tuple[str, ...]:
    """Return the files on this disk that are pickles without weights, as only their content tells.

    Those are pickles under the names of other files, arrays of objects, and pickles under the names
    of weights that run code.
    """
    effort = Effort()
    return tuple(
        name
        for name, file in files.items()
        if isinstance(file, LocalFile) and _is_disguised(file.path, effort)
    )


def _is_disguised(path: str, effort: Effort) -> bool:
    folder, name = os.path.split(path)
    if not may_be_pickle(name):
        return is_pickle(LOCAL, path)
    if is_no_weight_file(name):
        return False
    found = _scan(LOCAL, folder, name, effort)
    is_more_than_numbers = bool(found.globals or found.failure)
    return found.runs_code or (may_be_array(name) and is_more_than_numbers)


def scan_beside(
    store: Store, checkpoint: Checkpoint, known: Collection[str]
) -> tuple[ScannedPickle, ...]:
    """Look through the pickles of a directory that are no weights of it, but not through ``known``.

    Weights themselves are read as tensors, and refused where they are more than that. In the steps
    of a training below, which are checkpoints of their own, it is only told what runs code.
    """
    effort = Effort()
    beside = (
        _scan(store, checkpoint.root, name, effort)
        for name in _beside(store, checkpoint)
        if os.path.join(checkpoint.root, name) not in known
    )
    steps = (_scan(store, checkpoint.root, name, effort) for name in _of_steps(store, checkpoint))
    return (*beside, *(found for found in steps if found.runs_code))


def _beside(store: Store, checkpoint: Checkpoint) -> Iterator[str]:
    for name in sorted({*checkpoint.files, *checkpoint.left_out}):
        path = os.path.join(checkpoint.root, name)
        if name not in checkpoint.files:
            entry = store.look(path)
            if entry is None or entry.file is None:
                continue
        if is_pickle(store, path):
            yield name


def _of_steps(store: Store, checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the pickles in the directories of steps on this disk, up to a number of files."""
    folders = [
        (name, 0)
        for name, reason in checkpoint.left_out.items()
        if reason is LeftOut.OTHER_CHECKPOINTS and store.is_local
    ]
    left = _MOST_OF_STEPS
    while folders and left:
        folder, depth = folders.pop()
        for name in store.listing(os.path.join(checkpoint.root, folder))[:left]:
            relative = f"{folder}/{name}"
            entry = store.look(os.path.join(checkpoint.root, relative))
            if entry is None:
                continue
            left -= 1
            if entry.kind is Kind.DIRECTORY and depth < _DEEPEST:
                folders.append((relative, depth + 1))
            elif entry.file is not None and is_pickle(
                store, os.path.join(checkpoint.root, relative)
            ):
                yield relative


def _scan(store: Store, root: str, name: str, effort: Effort) -> ScannedPickle:
    from vita_ckpt.storage.formats.pickle_scan import scan_pickles  # noqa: PLC0415 - few have any

    path = os.path.join(root, name)
    try:
        with store.open(path) as source:
            found = scan_pickles(source, effort)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return ScannedPickle(name, path, frozenset(), False, f"{error.code}: {error.got}")
    return ScannedPickle(name, path, found.globals, found.computed, found.failure)
