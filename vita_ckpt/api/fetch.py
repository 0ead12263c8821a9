"""Fetch what a plan or a check reads from the hub to the disk, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from vita_ckpt.core.checkpoint import Checkpoint, RemoteFile, TensorRef, converts
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.relocation import Relocation, remote_refs
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.system.owner import stage_name

if TYPE_CHECKING:
    from vita_ckpt.storage.writing.layout import DirectoryLayout


@contextmanager
def fetched_files(
    plan: Plan,
    lay_out: Callable[[], DirectoryLayout],
    beside: str,
    stores: Stores,
    outlined: Collection[RemoteFile] = (),
) -> Iterator[Plan]:
    """Yield ``plan``, which makes a directory, with everything it reads from the hub on the disk.

    ``lay_out`` says which files these are. Files of the base that are carried or rewritten are
    downloaded to the cache. Of adapters and towers only the tensors are fetched, to a folder in
    ``beside`` that is removed at the end. Of ``outlined``, weight files that nothing but the result
    needs, there are headers in files of their length, in ``beside``.
    """
    if not _is_remote(plan):
        yield plan
        return
    from vita_ckpt.storage.reading.fetch import download, outline  # noqa: PLC0415 - only for what is remote

    layout = lay_out()
    refs = frozenset().union(*(remote_refs(dict(shard.entries)) for shard in layout.shards))
    of_base = {f for f in plan.base.fingerprint if isinstance(f, RemoteFile)}
    whole = {f.source for f in layout.carried if isinstance(f.source, RemoteFile)}
    needed = {ref.source for ref in refs if ref.source in of_base}
    outlined = frozenset(outlined) - needed
    files = download(stores.hub, (whole | needed) - outlined)
    with fetched(frozenset(ref for ref in refs if ref.source not in files), stores, beside) as here:
        files |= outline(stores.hub, outlined, beside) if outlined else {}
        yield replace(here, files=files).plan(plan)


@contextmanager
def fetched_tensors(plan: Plan, beside: str, stores: Stores) -> Iterator[Plan]:
    """Yield ``plan`` with the tensors of its target on the disk; from the hub, only their bytes."""
    with fetched(remote_refs(plan.target().tensors), stores, beside) as here:
        yield here.plan(plan)


@contextmanager
def fetched_casts(plan: Plan, stores: Stores) -> Iterator[Plan]:
    """Yield ``plan`` with the remote tensors that it converts on the disk."""
    casts = {n: t for n, t in plan.target().tensors.items() if converts(t)}
    with fetched(remote_refs(casts), stores) as here:
        yield here.plan(plan)


def downloaded(checkpoint: Checkpoint, stores: Stores) -> Checkpoint:
    """Return ``checkpoint`` with all its remote files in huggingface_hub's cache."""
    files = {ref.source for ref in remote_refs(checkpoint.tensors)} | {*checkpoint.files.values()}
    far = {file for file in files if isinstance(file, RemoteFile)}
    if not far:
        return checkpoint
    from vita_ckpt.storage.reading.fetch import download  # noqa: PLC0415 - only for what is remote

    return Relocation(download(stores.hub, far)).checkpoint(checkpoint)


@contextmanager
def fetched(
    refs: Collection[TensorRef], stores: Stores, beside: str | None = None
) -> Iterator[Relocation]:
    """Fetch remote tensors, and yield where they are on the disk.

    They are in a folder below ``beside``, by default the system's temporary directory, which is
    removed at the end.
    """
    if not refs:
        yield Relocation()
        return
    import shutil  # noqa: PLC0415 - only for what is remote
    import tempfile  # noqa: PLC0415

    from vita_ckpt.storage.reading.fetch import disk_errors, fetch_tensors  # noqa: PLC0415

    folder = os.path.join(beside or tempfile.gettempdir(), stage_name())
    with disk_errors(folder):
        os.mkdir(folder, 0o700)
    try:
        yield Relocation(tensors=fetch_tensors(stores.hub, refs, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_remote(plan: Plan) -> bool:
    return any(isinstance(file, RemoteFile) for file in plan.preconditions)
