"""Pushing: a checkpoint to the hub, once it is known to be sound."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vita_ckpt.api.locating import StrPath
from vita_ckpt.api.validation import validate
from vita_ckpt.core.address import is_remote, looks_like_repository
from vita_ckpt.core.hub_card import hub_card
from vita_ckpt.core.model_card import MODEL_CARD, with_lineage
from vita_ckpt.core.provenance import operations
from vita_ckpt.core.report import Report, has_errors
from vita_ckpt.errors import UsageError
from vita_ckpt.storage.places import find
from vita_ckpt.storage.surroundings import read_model_card
from vita_ckpt.storage.survey import survey

_KEPT_HIDDEN = (".gitattributes",)


@dataclass(frozen=True, slots=True)
class Push:
    """What validation found, and where the checkpoint is now; no ``url`` if it was refused.

    ``files`` are the names of what is uploaded, ``left_out`` says of everything else why it is not,
    ``removed`` are the weights of earlier pushes that are no longer in the repository.
    """

    report: Report
    url: str | None
    files: tuple[str, ...]
    left_out: dict[str, str]
    removed: tuple[str, ...] = ()


def push(
    path: StrPath,
    repository: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    force: bool = False,
    message: str | None = None,
) -> Push:
    """Upload the directory of a checkpoint, adapter or tower to the model repository ``org/name``.

    It is validated first: with errors nothing is uploaded unless ``force``. What goes up is what a
    surgery would carry: no stale weights, no state of a training run, nothing hidden. One commit
    holds everything, and removes weights that an earlier one left; an upload that was interrupted
    goes on where it stopped when it is run again. A model card is added, or its section on the
    lineage, from ``vita_ckpt.json``; in the directory nothing changes.

    Raises UsageError for what is no directory here or no name of a repository, InputError if it
    holds no checkpoint, HubError if the hub refuses or cannot be reached.
    """
    if not looks_like_repository(repository):
        raise UsageError("invalid-repository", repository, expected="org/name")
    root = _directory(path)
    report = validate(root)
    surveyed = survey(root)
    checkpoint = surveyed.checkpoint
    # A weight file that could not be read is broken, not stale.
    broken = {os.path.relpath(problem.file, root) for problem in surveyed.problems}
    left_out = {name: why for name, why in checkpoint.left_out.items() if name not in broken}
    files = dict(_files(root, left_out))
    if has_errors(report.findings) and not force:
        return Push(report, None, tuple(files), left_out)
    from vita_ckpt.storage.hub.upload import upload  # noqa: PLC0415 - only for what is remote

    known = operations(checkpoint)
    card = read_model_card(checkpoint)
    card = card or hub_card(repository, checkpoint.config or {}, known).encode()
    if known:
        card = with_lineage(card, {**(checkpoint.provenance or {}), "operations": known})
    contents: dict[str, str | bytes] = {**files, MODEL_CARD: card}
    done = upload(
        repository,
        contents,
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=message or f"Upload {os.path.basename(root)} with vita-ckpt",
    )
    return Push(report, done.url, tuple(sorted(contents)), left_out, done.removed)


def _directory(path: StrPath) -> str:
    root, entry = ("", None) if is_remote(os.fspath(path)) else find(path)
    if entry is None or not entry.is_directory:
        raise UsageError(
            "not-a-directory",
            os.fspath(path),
            expected="a directory on this machine",
            hint="push uploads a whole checkpoint: name its directory",
        )
    return root


def _files(root: str, left_out: dict[str, str]) -> list[tuple[str, str]]:
    """Every file that goes up, by its name in the repository; the others go to ``left_out``."""
    found: list[tuple[str, str]] = []
    for folder, folders, names in os.walk(root):
        below = os.path.relpath(folder, root)
        for name in sorted((*folders, *names)):
            relative = name if below == os.curdir else f"{below}/{name}"
            path = os.path.join(folder, name)
            if name.startswith(".") and name not in _KEPT_HIDDEN:
                left_out[relative] = "hidden"
            elif relative not in left_out and os.path.isfile(path):
                found.append((relative, path))
        folders[:] = sorted(
            n for n in folders if (n if below == os.curdir else f"{below}/{n}") not in left_out
        )
    return found
