"""Plan surgery on audio: checkpoints or paths in, plans out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vita_ckpt.api.locate import StrPath, as_checkpoint, locate, whole
from vita_ckpt.api.plans.inputs import or_a_choice
from vita_ckpt.core.address import is_remote, parse_address
from vita_ckpt.core.anatomy.audio.directory import WEIGHTS
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import Plan, choice_of
from vita_ckpt.errors import InputError
from vita_ckpt.storage.reading.audio import (
    find_audio_encoder,
    open_audio_directory,
    read_settings_texts,
)
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.surgery import audio as audio_surgery
from vita_ckpt.surgery.audio import AudioModelArgs


def plan_extract_audio_adapter(
    checkpoint: Checkpoint | StrPath, *, stores: Stores | None = None
) -> Plan:
    """Plan a file that holds the audio adapter of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one. Unlike the trainer's file it has the running
    statistics of batch norms, so upstream loads it. Raises InputError if it cannot be read and
    AdapterError if it has no audio adapter.
    """
    plan = audio_surgery.plan_extract_audio_adapter(as_checkpoint(checkpoint, stores))
    return replace(plan, request={})


def plan_merge_audio_adapter(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    stores: Stores | None = None,
) -> Plan:
    """Plan to put the audio adapter of ``adapter`` into ``base``, and leave all else as it is.

    ``adapter`` is the trainer's ``audio_adpter.bin``, its run, or another checkpoint. Running
    statistics of batch norms that it lacks are kept from the base. Raises InputError or
    AdapterError where the two do not go together.
    """
    stores = Stores() if stores is None else stores
    base, adapter = as_checkpoint(base, stores), as_checkpoint(adapter, stores)
    directory = find_audio_encoder(base, stores)
    settings = directory.settings if directory is not None else None
    plan = audio_surgery.plan_merge_audio_adapter(base, adapter, settings)
    return replace(plan, request={})


def plan_swap_audio_encoder(
    base: Checkpoint | StrPath,
    audio_encoder: Checkpoint | StrPath,
    *,
    audio_path: str | None = None,
    adapter: Checkpoint | StrPath | None = None,
    seed: int = 0,
    stores: Stores | None = None,
) -> Plan:
    """Plan to give ``base`` another audio encoder, or one if it has none.

    ``audio_encoder`` is a directory with ``train.yaml``, ``global_cmvn`` and ``final.pt``, or the
    opened ``final.pt`` of one. ``audio_path`` is the string for the config, by default the path as
    it was given. ``adapter`` is ``"keep"``, ``"reinit"`` or an adapter; None keeps what still fits,
    and takes the adapter of ``final.pt`` where it does not. What is drawn anew follows from
    ``seed``.

    Raises InputError, AdapterError or CastError where these do not go together, UsageError where a
    choice is needed.
    """
    stores = Stores() if stores is None else stores
    donor = _final_pt(audio_encoder, stores)
    place = os.path.dirname(donor.root)
    directory = open_audio_directory(place, stores)
    if directory.settings is None:
        raise TypeError("an opened directory has settings")
    choice = adapter if adapter in ("keep", "reinit") else None
    path = audio_path if audio_path is not None else _audio_path(audio_encoder, place)
    given = None
    if adapter is not None and choice is None:
        with or_a_choice(adapter):
            given = as_checkpoint(adapter, stores)
    args = AudioModelArgs(
        audio_encoder=donor,
        settings=directory.settings,
        mm_audio_encoder=path,
        pretrain_audio_mlp_adapter=given,
        adapter=choice,  # type: ignore[arg-type]
        seed=seed,
    )
    plan = audio_surgery.initialize_audio_modules(as_checkpoint(base, stores), args)
    return replace(plan, request={"audio_path": path, "adapter": choice, "seed": seed})


def plan_extract_audio_encoder(
    checkpoint: Checkpoint | StrPath,
    *,
    audio_encoder: StrPath | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a directory that holds the audio encoder of ``checkpoint`` alone, as upstream loads it.

    ``audio_encoder`` is the directory that it was made with, for ``train.yaml`` and
    ``global_cmvn``, by default what the checkpoint's config leads to. Raises InputError if there is
    no encoder, or not the one that the directory describes.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    given = None if audio_encoder is None else whole(audio_encoder, stores)
    found = None if given is not None else find_audio_encoder(opened, stores)
    place = given or (found.path if found is not None else None)
    if place is None:
        raise InputError(
            "audio-encoder-unknown",
            opened.root,
            expected="the directory of its audio encoder, with train.yaml and global_cmvn",
            got=f"mm_audio_encoder {(opened.config or {}).get('mm_audio_encoder')!r}",
            hint="name it with --audio-encoder",
        )
    directory = open_audio_directory(place, stores)
    if directory.settings is None:
        raise TypeError("an opened directory has settings")
    plan = audio_surgery.plan_extract_audio_encoder(
        opened, directory.settings, read_settings_texts(place, stores)
    )
    return replace(plan, request={"audio_encoder": given})


def plan_audio_again(
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    """Plan an operation on audio again, from what was asked for and its inputs."""
    base, *donors = inputs
    if operation == "extract-audio-adapter":
        return plan_extract_audio_adapter(donors[0], stores=stores)
    if operation == "extract-audio-encoder":
        return plan_extract_audio_encoder(donors[0], **request, stores=stores)
    if operation == "merge-audio-adapter":
        return plan_merge_audio_adapter(base, donors[0], stores=stores)
    asked = {**request, "adapter": choice_of(request["adapter"], donors)}
    return plan_swap_audio_encoder(base, donors[0], **asked, stores=stores)


def _final_pt(audio_encoder: Checkpoint | StrPath, stores: Stores) -> Checkpoint:
    """Return the opened ``final.pt`` of an audio encoder's directory."""
    if isinstance(audio_encoder, Checkpoint):
        return audio_encoder
    try:
        return as_checkpoint(os.path.join(locate(audio_encoder, stores), WEIGHTS), stores)
    except InputError as error:
        if error.code == "not-found":
            wanted = f"the directory of an audio encoder, with {WEIGHTS}"
            raise error.replaced(expected=wanted) from error
        raise


def _audio_path(audio_encoder: Checkpoint | StrPath, place: str) -> str:
    """Return the string that upstream will look an audio encoder up by."""
    if is_remote(place):
        address = parse_address(place)
        return "/".join(filter(None, (address.repository, address.below)))
    return place if isinstance(audio_encoder, Checkpoint) else os.fspath(audio_encoder)
