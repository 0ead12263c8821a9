"""Check the audio encoder: tensors, directory, settings, and the language model it feeds."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vita_ckpt.checks.audio_summary import described, fits
from vita_ckpt.checks.rules import finding
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.directory import WEIGHTS, AudioDirectory
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import (
    AUDIO_PREFIX,
    CMVN,
    STATISTICS,
    settings_of_shapes,
    wanted_tensors,
)
from vita_ckpt.core.binding import builds_audio, is_audio
from vita_ckpt.core.checkpoint import Checkpoint, Shape, TensorRef
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.core.report import Finding
from vita_ckpt.core.tensor_match import compare

# Of one kind of misfit this many tensors are named; the rest is counted.
_NAMED = 12


def check_audio(
    checkpoint: Checkpoint, directory: AudioDirectory | None, unread: Collection[str] = ()
) -> Iterator[Finding]:
    """Check the audio part of a VITA checkpoint by every rule about it.

    ``directory`` is what ``mm_audio_encoder`` leads to. ``unread`` names tensors in files that
    could not be read.
    """
    config = checkpoint.config or {}
    shapes = {name: t.shape for name, t in checkpoint.tensors.items() if is_audio(name)}
    if not builds_audio(config):
        if shapes:
            yield finding(
                "audio-not-built",
                "mm_audio_encoder",
                f"expected the audio encoder's path, since there are {len(shapes)} tensors of one, "
                f"got {config.get('mm_audio_encoder')!r}",
                hint="vita-ckpt set gives it one",
                file=_config_file(checkpoint),
            )
        return
    yield from _directory(checkpoint, directory)
    yield from _prompt(checkpoint, config)
    if shapes:
        yield from _tensors(checkpoint, shapes, directory, unread)
    elif not any(map(is_audio, unread)):
        yield finding(
            "audio-absent",
            "mm_audio_encoder",
            f"expected tensors {AUDIO_PREFIX}*, since the config names an audio encoder, got none",
            hint="vita-ckpt swap-audio-encoder puts them in",
            file=_config_file(checkpoint),
        )


def _directory(checkpoint: Checkpoint, directory: AudioDirectory | None) -> Iterator[Finding]:
    """Check the directory; one that is not reachable is a rule of the config."""
    if directory is None or directory.path is None:
        return
    if directory.missing:
        names = ", ".join(directory.missing)
        yield finding(
            "audio-files-missing",
            "mm_audio_encoder",
            f"expected train.yaml, global_cmvn and final.pt in {directory.path}, got no {names}",
            hint="any final.pt will do: the checkpoint's tensors replace what it holds"
            if directory.missing == (WEIGHTS,)
            else "copy them from where the encoder came from",
            file=directory.path,
        )
    elif directory.problem is not None:
        yield finding(
            "audio-directory-unreadable",
            "mm_audio_encoder",
            f"expected an encoder that can be built, got {directory.problem}",
            file=directory.path,
        )
    settings, cmvn = directory.settings, directory.cmvn
    if settings is not None and cmvn is not None and len(cmvn.mean) != settings.mel_bins:
        yield finding(
            "audio-directory-unreadable",
            "mm_audio_encoder",
            f"expected statistics of {settings.mel_bins} mel bins in global_cmvn, as train.yaml "
            f"says, got {len(cmvn.mean)}",
            file=posixpath.join(directory.path, "global_cmvn"),
        )
    if settings is not None and settings.dynamic_chunks:
        yield finding(
            "audio-dynamic-chunks",
            "mm_audio_encoder",
            "transformer-dynamic-chunks is true: upstream draws the chunk's size at random",
            hint="set it to false in train.yaml; vita-ckpt runs the configured chunk",
            file=posixpath.join(directory.path, "train.yaml"),
        )


def _prompt(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Iterator[Finding]:
    number = config.get("audio_prompt_num")
    if config.get("audio_prompt_finetune") is True and not (type(number) is int and number > 0):
        yield finding(
            "config-type",
            "audio_prompt_num",
            f"expected a positive integer, since audio_prompt_finetune is true, got {number!r}",
            file=_config_file(checkpoint),
        )


def _tensors(
    checkpoint: Checkpoint,
    shapes: Mapping[str, Shape],
    directory: AudioDirectory | None,
    unread: Collection[str],
) -> Iterator[Finding]:
    said = directory.settings if directory is not None else None
    stored = settings_of_shapes(parts.below(AUDIO_PREFIX, shapes))
    known = said or stored
    if known is None:
        if not any(map(is_audio, unread)):
            yield finding(
                "unknown-audio-encoder",
                AUDIO_PREFIX + "*",
                "expected the tensors of an audio encoder with its adapter, got "
                + ", ".join(list(shapes)[:3]),
                hint="a part of them was not saved, or two encoders were mixed",
                file=_file(checkpoint, next(iter(shapes))),
            )
        return
    if stored is not None and said is not None and not fits(stored, said):
        yield finding(
            "audio-directory-mismatch",
            "mm_audio_encoder",
            f"expected {described(said)}, as train.yaml says, got {described(stored)}"
            if described(said) != described(stored)
            else "expected the tensors that train.yaml describes, got those of other settings",
            hint="mm_audio_encoder leads to another encoder",
            file=_config_file(checkpoint),
        )
        return
    yield from _misfits(checkpoint, shapes, said, unread)
    hidden = (checkpoint.config or {}).get("hidden_size")
    if type(hidden) is int and known.adapter.out_width != hidden:
        yield finding(
            "audio-adapter-width",
            AUDIO_PREFIX + "adpter",
            f"expected an output of {hidden} features, the language model's width, got "
            f"{known.adapter.out_width}",
            hint="the adapter was trained for another language model",
        )


def _misfits(
    checkpoint: Checkpoint,
    shapes: Mapping[str, Shape],
    settings: AudioEncoder | None,
    unread: Collection[str],
) -> Iterator[Finding]:
    wanted = wanted_tensors(checkpoint.config or {}, shapes, settings)
    misfit = compare(wanted, shapes)
    findings = [_missing(name, wanted[name]) for name in misfit.missing if name not in unread]
    findings += [
        finding(
            "unexpected-tensor",
            name,
            "expected no such tensor in the audio encoder of the config",
            file=_file(checkpoint, name),
        )
        for name in misfit.unexpected
    ]
    findings += [
        finding(
            "shape-mismatch",
            name,
            f"expected {list(want)} in the audio encoder of the config, got {list(got)}",
            file=_file(checkpoint, name),
        )
        for name, want, got in misfit.mismatched
        if 0 not in got  # which has a rule of its own
    ]
    yield from findings[:_NAMED]
    if len(findings) > _NAMED:
        rest = findings[_NAMED:]
        yield finding(rest[0].rule, "…", f"and {len(rest)} more tensors of the audio encoder")


def _missing(name: str, shape: Shape) -> Finding:
    if name.endswith(STATISTICS):
        return finding(
            "audio-statistics-missing",
            name,
            f"expected {list(shape)}, a running statistic of the adapter's batch norm",
            hint="merge the adapter's file into its base with vita-ckpt merge-audio-adapter",
        )
    if name.removeprefix(AUDIO_PREFIX) in CMVN:
        message = f"expected {list(shape)}, a statistic of the features"
        return finding("audio-cmvn-missing", name, message)
    return finding("missing-tensor", name, f"expected {list(shape)}, a tensor of the audio encoder")


def _config_file(checkpoint: Checkpoint) -> str:
    file = checkpoint.files.get(CONFIG)
    return file.path if file is not None else ""


def _file(checkpoint: Checkpoint, name: str) -> str:
    tensor = checkpoint.tensors.get(name)
    return tensor.source.path if isinstance(tensor, TensorRef) else ""
