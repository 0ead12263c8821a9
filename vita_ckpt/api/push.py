"""Push a checkpoint to the hub, once it is known to be sound."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from vita_ckpt.api.destination import check_destination
from vita_ckpt.api.locate import StrPath, local
from vita_ckpt.api.validate import report_on
from vita_ckpt.core.checkpoint import Checkpoint, File, RemoteFile
from vita_ckpt.core.digest import digest
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    MANIFEST,
    MODEL_CARD,
    counts_as_weights,
    index_of,
)
from vita_ckpt.core.hub_card import hub_card, with_metadata
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.manifest import FileDigest, Manifest, encode
from vita_ckpt.core.model_card import with_lineage
from vita_ckpt.core.outcomes import Push
from vita_ckpt.core.provenance import operations
from vita_ckpt.core.report import has_errors
from vita_ckpt.errors import InputError, MalformedFileError, UsageError
from vita_ckpt.storage.hub.upload import upload
from vita_ckpt.storage.reading.checkpoint import choose_weights
from vita_ckpt.storage.reading.fetch import download
from vita_ckpt.storage.reading.in_progress import check_whole
from vita_ckpt.storage.reading.index import weight_map_of
from vita_ckpt.storage.reading.model_card import read_model_card
from vita_ckpt.storage.reading.paths import Stores, find
from vita_ckpt.storage.reading.shards import check_unchanged
from vita_ckpt.storage.reading.survey import Survey, is_partial, survey
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.writing.manifest import read_manifest

_KEPT_HIDDEN = (".gitattributes",)


def push(
    path: StrPath,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    message: str | None = None,
    stores: Stores | None = None,
) -> Push:
    """Upload the directory of a checkpoint, adapter or tower to the model repository ``org/name``.

    It is validated first: with errors nothing is uploaded unless ``force``. What goes up is what a
    surgery would carry: no stale weights, no state of a training run, nothing hidden. One commit
    holds everything, and removes weights that an earlier one left; an upload that was interrupted
    goes on where it stopped when it is run again. A model card is added, or its section on the
    lineage, from ``vita_ckpt.json``; in the directory nothing changes.

    The files that are uploaded are those that were validated. If one of them changes before the
    commit, the push stops. Links are followed to weights, inside the directory and to blobs of the
    hub's cache only.

    Raises UsageError for a path that is not a directory, and for a wrong repository or branch,
    InputError if it holds no checkpoint or is in the middle of a surgery, StaleInputError if it
    changes, HubError if the hub refuses or cannot be reached.
    """
    check_destination(repository, revision)
    stores = Stores() if stores is None else stores
    return push_directory(
        _directory(path),
        repository,
        private=private,
        revision=revision,
        create_pr=create_pr,
        force=force,
        message=message,
        stores=stores,
    )


def push_directory(
    root: str,
    repository: str,
    *,
    private: bool,
    revision: str | None,
    create_pr: bool,
    force: bool,
    message: str | None,
    stores: Stores,
    copies: Mapping[str, RemoteFile] = MappingProxyType({}),
    outlined: Collection[str] = (),
) -> Push:
    """Do what :func:`push` does. ``copies`` are the files that the hub has as they are.

    Those among them that hold headers only are ``outlined``, by their paths.
    """
    surveyed = survey(root, stores)
    checkpoint = surveyed.checkpoint
    report = report_on(surveyed, stores, outlined=outlined)
    files, left_out = _sorted_out(surveyed)
    if has_errors(report.findings) and not force:
        return Push(report, None, tuple(files), left_out)

    def check() -> None:
        check_whole(LOCAL, root)
        check_unchanged(files.values())

    def fetch(wanted: Mapping[str, RemoteFile]) -> dict[str, str]:
        found = download(stores.hub, wanted.values())
        return {name: found[file].path for name, file in wanted.items()}

    check_whole(LOCAL, root)
    known = operations(checkpoint)
    card = read_model_card(checkpoint, stores) if MODEL_CARD in files else b""
    if card.strip():
        card = with_metadata(card, known, checkpoint.config or {})
    else:
        card = hub_card(repository, checkpoint.config or {}, known).encode()
    if known:
        card = with_lineage(card, {**(checkpoint.provenance or {}), "operations": known})
    written = {MODEL_CARD: card, **_manifest_with(checkpoint, card, stores)}
    kept = {n: file for n, file in copies.items() if n in files and n not in written}
    contents = {name: file.path for name, file in files.items() if name not in kept}
    done = upload(
        stores.hub.session,
        repository,
        {**contents, **written},
        check,
        copies=kept,
        fetch=fetch,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message or f"Upload {os.path.basename(root)} with vita-ckpt",
    )
    names = tuple(sorted({*files, *written}))
    return Push(report, done.url, names, left_out, done.removed, done.copied)


def _manifest_with(checkpoint: Checkpoint, card: bytes, stores: Stores) -> dict[str, bytes]:
    """Return the manifest with the digest of the card that goes up, if it knows that of another."""
    try:
        manifest = read_manifest(checkpoint, stores)
    except MalformedFileError:  # it goes up as it is
        return {}
    if manifest is None or MODEL_CARD not in manifest.files:
        return {}
    files = {**manifest.files, MODEL_CARD: FileDigest(len(card), digest(card))}
    return {MANIFEST: encode(Manifest(files))}


def _directory(path: StrPath) -> str:
    root, entry = find(LOCAL, local(path))
    if not entry.is_directory:
        raise UsageError(
            "not-a-directory",
            os.fspath(path),
            expected="a directory on this machine",
            hint="push uploads a whole checkpoint: name its directory",
        )
    return root


def _sorted_out(surveyed: Survey) -> tuple[dict[str, File], dict[str, LeftOut]]:
    """Return the files to upload, as they were surveyed, and why each other one is left out."""
    checkpoint = surveyed.checkpoint
    root = checkpoint.root
    parts = _parts(checkpoint)
    left_out = dict(checkpoint.left_out)
    for problem in surveyed.problems:
        name = os.path.relpath(problem.file, root)
        if name in parts:  # broken, not stale
            left_out.pop(name, None)
    known = {**checkpoint.files, **{shard.name: shard.file for shard in checkpoint.shards}}
    files: dict[str, File] = {}
    for name, path in _walk(root, left_out):
        if is_partial(path) and name not in parts:
            left_out[name] = LeftOut.PARTIAL_DOWNLOAD
            continue
        if os.path.islink(path) and name not in parts and not _stays_inside(root, path):
            left_out[name] = LeftOut.OUTSIDE_LINK
            continue
        entry = LOCAL.look(path)
        file = known.get(name) or (entry.file if entry is not None else None)
        if file is None:
            left_out[name] = LeftOut.UNREADABLE
        else:
            files[name] = file
    for shard in checkpoint.shards:
        if shard.name not in files:
            raise UsageError(
                "weights-left-out",
                os.path.join(root, shard.name),
                expected="weights in the directory itself, under a name that the hub takes",
                hint="push the directory that they lie in, or name them otherwise",
            )
    return files, left_out


def _walk(root: str, left_out: dict[str, LeftOut]) -> Iterator[tuple[str, str]]:
    """Yield names and paths of the other files; add hidden ones and those not in UTF-8."""
    for folder, folders, names in os.walk(root):
        below = os.path.relpath(folder, root)
        relative = {n: n if below == os.curdir else f"{below}/{n}" for n in (*folders, *names)}
        for name in sorted(relative):
            if name.startswith(".") and name not in _KEPT_HIDDEN:
                left_out[relative[name]] = LeftOut.HIDDEN
            elif not _is_utf8(name):
                left_out[relative[name]] = LeftOut.NOT_UTF8
        for name in sorted(names):
            if relative[name] not in left_out:
                yield relative[name], os.path.join(folder, name)
        folders[:] = sorted(name for name in folders if relative[name] not in left_out)


def _parts(checkpoint: Checkpoint) -> set[str]:
    """Return the weight files that the index or the layout promises, broken ones too."""
    root = checkpoint.root
    names = LOCAL.listing(root)
    index = index_of(names)
    try:
        if index is None:
            parts = set(choose_weights(LOCAL, root, names)[1])
        else:
            parts = {index, *weight_map_of(checkpoint.index or {}, index).values()}
    except InputError:  # nothing that can be read promises anything
        parts = set() if index is None else {index}
    parts |= {ADAPTER_CONFIG} if checkpoint.layout == "lora" else set()
    return {name for name in parts if counts_as_weights(os.path.basename(name))}


def _stays_inside(root: str, link: str) -> bool:
    """Return whether a link leads to a visible file below, or to a blob of the hub's cache.

    There, ``snapshots/COMMIT`` holds links to files in ``blobs``, beside it.
    """
    top, target = os.path.realpath(root), os.path.realpath(link)
    home, snapshots, _ = f"{top}/".rpartition("/snapshots/")
    if snapshots and os.path.dirname(target) == f"{home}/blobs":
        return True
    below = os.path.relpath(target, top).split("/")
    return not any(name.startswith(".") for name in below)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
