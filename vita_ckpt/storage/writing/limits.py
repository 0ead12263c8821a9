"""How open the files of an output may be: no more than what they are made of."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import replace

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import Checkpoint, LocalFile, Tensor, refs_of
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.core.plan import Plan
from vita_ckpt.storage.system.access import Access, access_of, narrowest


class Limits:
    """The access to the files of a plan's base, or of what something is extracted from.

    What is on the hub sets no limit: its copies in the cache are as umask says.
    """

    def __init__(self, plan: Plan) -> None:
        self._base = plan.base if _is_local(plan.base) else None
        starts_from_nothing = plan.base.root == ""
        donors = [donor for donor in plan.donors if starts_from_nothing and _is_local(donor)]
        self._donors = [path for donor in donors for path in _paths(donor)]

    def of_directory(self, name: str = "") -> Access | None:
        """Return the limit for a directory of the output; None if there is none."""
        if self._base is not None:
            path = os.path.join(self._base.root, name)
            return access_of(path if os.path.isdir(path) else self._base.root)
        folders = dict.fromkeys(os.path.dirname(path) for path in self._donors)
        return narrowest(access_of(folder) for folder in folders)

    def of_file(self, name: str, sources: Collection[str] = ()) -> Access | None:
        """Return the limit for a file with bytes of ``sources``; None if there is none.

        It is that of the base's file of this name and of those that ``sources`` are, or of the
        base's config for a file that is new. What is extracted is no more open than its sources in
        their directories, or than any file beside them.
        """
        if self._base is not None:
            parts = [access_of(path) for path in self._of_base(name, sources)]
        else:
            origins = [path for path in sources if path in self._donors] or self._donors
            parts = [access_of(p).within(access_of(os.path.dirname(p))) for p in origins]
        found = narrowest(parts)
        return None if found is None else found.for_file()

    def _of_base(self, name: str, sources: Collection[str]) -> list[str]:
        assert self._base is not None  # noqa: S101 - for the type checker
        there = _files(self._base)
        paths = {*there.values()}
        found = [path for path in sources if path in paths]
        if name in there:
            return [there[name], *found]
        return found or ([there[CONFIG]] if CONFIG in there else [*there.values()])


def sources_of(tensors: Iterable[Tensor]) -> frozenset[str]:
    """Return the paths of the files that tensors are read from."""
    return frozenset(ref.source.path for tensor in tensors for ref in refs_of(tensor))


def access_in_place(base: Checkpoint, name: str) -> Access:
    """Return the access that a file has, or that a new one gets, in a checkpoint on this disk.

    A link that a file replaces gives its owner and group; the mode is that of what it leads to.
    """
    path = os.path.join(base.root, name)
    if os.path.lexists(path):
        link = os.lstat(path)
        if not os.path.exists(path):
            return Access(0o600, link.st_uid, link.st_gid)
        return replace(access_of(path), owner=link.st_uid, group=link.st_gid)
    there = _files(base)
    shards = [there[shard.name] for shard in base.shards if shard.name in there]
    if name.endswith((".safetensors", ".bin")) and shards:
        like = shards
    else:
        like = [there[CONFIG]] if CONFIG in there else [*there.values()]
    return (narrowest(map(access_of, like)) or access_of(base.root)).for_file()


def narrowest_of_files(base: Checkpoint) -> Access:
    """Return what is allowed with every file of a checkpoint on this disk."""
    found = narrowest(map(access_of, (base.root, *_files(base).values())))
    return (found or access_of(base.root)).for_file()


def access_of_text(about: Iterable[Checkpoint]) -> Access | None:
    """Return the limit for a text about checkpoints: what is allowed with every file of them."""
    return narrowest(narrowest_of_files(one) for one in about if _is_local(one))


def _is_local(checkpoint: Checkpoint) -> bool:
    return checkpoint.root != "" and not is_remote(checkpoint.root)


def _files(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the paths on the disk of a checkpoint's files, by their names in it."""
    named = {shard.name: shard.file for shard in checkpoint.shards} | dict(checkpoint.files)
    return {name: file.path for name, file in named.items() if isinstance(file, LocalFile)}


def _paths(checkpoint: Checkpoint) -> list[str]:
    return [file.path for file in checkpoint.fingerprint if isinstance(file, LocalFile)]
