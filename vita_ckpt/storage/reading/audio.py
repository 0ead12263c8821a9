"""Find and read the directories of audio encoders."""

from __future__ import annotations

import os
from typing import Any

from vita_ckpt.core.anatomy.audio.cmvn import Cmvn, cmvn_of_json, cmvn_of_text
from vita_ckpt.core.anatomy.audio.directory import FILES, GLOBAL_CMVN, TRAIN, AudioDirectory
from vita_ckpt.core.anatomy.audio.settings import SECTIONS, read_settings
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import INCONCLUSIVE, InputError, MalformedFileError
from vita_ckpt.storage.formats.json_file import read_json_object
from vita_ckpt.storage.reading.paths import Stores, is_file

# A sum and a square for each mel bin take kilobytes.
_LARGEST_CMVN = 4 << 20


def find_audio_encoder(checkpoint: Checkpoint, stores: Stores) -> AudioDirectory | None:
    """Return what ``mm_audio_encoder`` leads to; None if the config names no audio encoder.

    A relative path is looked up as that of a tower: in the working directory, as upstream does,
    then beside the checkpoint, then in it; for a checkpoint on the hub only in its repository.
    Raises HubError and StaleInputError.
    """
    name = (checkpoint.config or {}).get("mm_audio_encoder")
    if not isinstance(name, str) or not name:
        return None
    path = stores.store_of(checkpoint.root).reached_from(checkpoint.root, name)
    if path is None:
        return AudioDirectory(None, "not reachable from here")
    return read_audio_directory(path, stores)


def read_audio_directory(path: str, stores: Stores) -> AudioDirectory:
    """Describe the audio encoder in the directory at ``path`` by its ``train.yaml``.

    What cannot be read is said in the result. Raises HubError and StaleInputError.
    """
    store = stores.store_of(path)
    missing = tuple(name for name in FILES if not is_file(store, os.path.join(path, name)))
    settings = cmvn = problem = None
    try:
        content = _content(path, stores)
        settings = read_settings(content)
        cmvn = _cmvn(path, content.get("is_json_cmvn"), stores)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        problem = f"no {TRAIN} in it" if TRAIN in missing else str(error)
    if problem is not None and settings is not None and GLOBAL_CMVN in missing:
        problem = f"no {GLOBAL_CMVN} in it"
    return AudioDirectory(path, problem, settings, cmvn, missing)


def open_audio_directory(path: str, stores: Stores) -> AudioDirectory:
    """Describe the audio encoder in the directory at ``path``, whose files must be readable.

    Raises InputError for one that is missing, or that describes no encoder.
    """
    content = _content(path, stores)
    try:
        settings = read_settings(content)
    except InputError as error:
        raise error.with_subject(f"{os.path.join(path, TRAIN)}: {error.subject}") from error
    cmvn = _cmvn(path, content.get("is_json_cmvn"), stores)
    store = stores.store_of(path)
    missing = tuple(name for name in FILES if not is_file(store, os.path.join(path, name)))
    if len(cmvn.mean) != settings.mel_bins:
        raise InputError(
            "unsupported-audio-config",
            os.path.join(path, GLOBAL_CMVN),
            expected=f"{settings.mel_bins} mel bins, as in {TRAIN}",
            got=str(len(cmvn.mean)),
        )
    return AudioDirectory(path, None, settings, cmvn, missing)


def read_settings_texts(path: str, stores: Stores) -> dict[str, str]:
    """Return the texts of ``train.yaml`` and ``global_cmvn``, which are known to be readable."""
    texts: dict[str, str] = {}
    for name in (TRAIN, GLOBAL_CMVN):
        with stores.open(os.path.join(path, name)) as source:
            texts[name] = source.read(source.file.size, 0).decode("utf-8-sig")
    return texts


def _content(path: str, stores: Stores) -> dict[str, Any]:
    # Only where audio is: YAML's modules take time to import.
    from vita_ckpt.storage.formats.yaml_file import read_yaml_sections  # noqa: PLC0415

    with stores.open(os.path.join(path, TRAIN)) as source:
        return read_yaml_sections(source, SECTIONS)


def _cmvn(path: str, is_json: Any, stores: Stores) -> Cmvn:
    """Read ``global_cmvn`` in the form that ``is_json_cmvn`` says."""
    file = os.path.join(path, GLOBAL_CMVN)
    if type(is_json) is not bool:
        raise InputError(
            "unsupported-audio-config",
            "is_json_cmvn",
            expected=f"true or false in {TRAIN}",
            got="nothing" if is_json is None else repr(is_json),
        )
    with stores.open(file) as source:
        size = source.file.size
        if size > _LARGEST_CMVN:
            raise MalformedFileError(
                "invalid-global-cmvn",
                file,
                expected=f"at most {_LARGEST_CMVN} bytes",
                got=str(size),
            )
        if is_json:
            return cmvn_of_json(read_json_object(source)[0], file)
        return cmvn_of_text(source.read(size, 0).decode("utf-8", "replace"), file)
