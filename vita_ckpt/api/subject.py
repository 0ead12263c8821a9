"""Gather what is checked: a checkpoint, and what its config refers to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vita_ckpt.checks.explain.tower_files import why_unprepared, why_unreadable
from vita_ckpt.checks.files import check_kind, finding_of_error, intended_kind
from vita_ckpt.checks.inspection.inspect import inspect_checkpoint
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.anatomy.families import VITA, ModelFamily, family_of
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.binding.bind import bind, takes_directory
from vita_ckpt.core.binding.loaders import model_name
from vita_ckpt.core.binding.modules import Surroundings, builds_audio, tower_family
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.kinds import part_as
from vita_ckpt.core.report import Finding
from vita_ckpt.errors import INCONCLUSIVE, InputError, VitaCkptError
from vita_ckpt.storage.reading.audio import find_audio_encoder, open_audio_directory
from vita_ckpt.storage.reading.file_listing import read_weight_files
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.references import find_base
from vita_ckpt.storage.reading.surroundings import look_around
from vita_ckpt.storage.reading.survey import Survey
from vita_ckpt.storage.reading.tokenizer import count_tokens
from vita_ckpt.storage.reading.tower import (
    find_tower,
    processor_around,
    read_carried_config,
)


def gather(
    checkpoint: Checkpoint,
    stores: Stores,
    *,
    kind: str | None = None,
    surveyed: Survey | None = None,
    tower: str | None = None,
    audio_encoder: str | None = None,
    loader: str | None = None,
) -> tuple[Subject, list[Finding]]:
    """Gather the checkpoint and what it refers to; findings for what of it cannot be read.

    ``tower`` takes the place of what ``mm_vision_tower`` leads to, ``audio_encoder`` of what
    ``mm_audio_encoder`` does. ``surveyed`` is what was found
    beside the checkpoint's own tensors. With the ``kind`` of a part, only that part is the subject.
    """
    given = None if tower is None else look_around(checkpoint, stores, tower)
    audio = find_audio_encoder(checkpoint, stores)
    if audio_encoder is not None and builds_audio(checkpoint.config or {}):
        audio = open_audio_directory(audio_encoder, stores)
    directory = find_tower(checkpoint, stores) if given is None else given.tower
    inspected = inspect_checkpoint(checkpoint, directory, audio)
    taken_for = kind or intended_kind(checkpoint, inspected.kind)
    if taken_for != inspected.kind:
        checkpoint = part_as(checkpoint, taken_for)
        directory = find_tower(checkpoint, stores) if given is None else given.tower
        inspected = inspect_checkpoint(checkpoint, directory, audio, kind=taken_for)
    findings = list(check_kind(checkpoint, taken_for))

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except INCONCLUSIVE:
            raise
        except InputError as error:
            findings.append(finding_of_error(error, file_of(error)))
            return None

    if given is not None:
        carried = given.carried
    else:
        carried = attempt(lambda: read_carried_config(checkpoint, stores))
    config = checkpoint.config or {}
    family = family_of(config, checkpoint.tensors) or VITA
    own = directory if given is None else find_tower(checkpoint, stores)
    around = Surroundings(
        directory,
        carried,
        audio,
        path_exists=given.path_exists if given is not None else None,
        safetensors=all(shard.format == "safetensors" for shard in checkpoint.shards),
        name=model_name(checkpoint.root),
        processor=attempt(lambda: processor_around(checkpoint, own, stores)),
    )
    if taken_for in kinds.WHOLE:
        whole = takes_directory(config, checkpoint.tensors, around, loader)
        built = tower_family(config, around, family)
        is_given = given is not None
        directory = _as_it_loads(built, around, stores, family, is_given=is_given, whole=whole)
        around = replace(around, tower=directory)
    bound = None
    if taken_for in (*kinds.WHOLE, kinds.LANGUAGE_MODEL) and checkpoint.tensors:
        bound = bind(config, checkpoint.tensors, around, loader)
    subject = Subject(
        checkpoint=checkpoint,
        inspection=inspected,
        unread=surveyed.unread if surveyed is not None else frozenset(),
        rivals=surveyed.rivals if surveyed is not None else {},
        taken=surveyed.taken if surveyed is not None else frozenset(),
        tokens=attempt(lambda: count_tokens(checkpoint, stores)),
        base=find_base(checkpoint, stores) if taken_for == kinds.LORA_RUN else None,
        binding=bound,
        surroundings=around,
        family=family,
    )
    return subject, findings


def _as_it_loads(
    built: str | None,
    around: Surroundings,
    stores: Stores,
    family: ModelFamily,
    *,
    is_given: bool,
    whole: bool,
) -> TowerDirectory | None:
    """Return the tower's directory with what keeps a loader from reading its weights, if any.

    One that is given in its place may be a config alone. ``built`` is the family of the tower that
    the loader builds, ``whole`` is set where it ends with the one that it finds there.
    """
    directory = around.tower
    if directory is None or directory.path is None or directory.problem is not None:
        return directory
    if built is None or (is_given and directory.path.endswith(".json")):
        return directory
    files = read_weight_files(directory.path, stores)
    if is_given and not files.files:
        return directory
    problem = None if is_given else why_unprepared(files, built, family)
    problem = problem or why_unreadable(files, built, directory.config, whole=whole)
    return replace(directory, problem=problem)


def file_of(error: VitaCkptError) -> str:
    """Return the file that an error is about; empty if it names none."""
    path = error.subject.partition(": ")[0]
    return path if is_remote(path) or os.path.exists(path) else ""
