"""Check the audio encoder: tensors, directory, settings, and the language model it feeds."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping

from vita_ckpt.checks.audio_summary import described, fits
from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.directory import WEIGHTS, AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import (
    AUDIO_PREFIX,
    CMVN,
    STATISTICS,
    prompt_rows,
    settings_of_shapes,
)
from vita_ckpt.core.binding.modules import builds_audio, hidden_size, is_audio
from vita_ckpt.core.binding.result import PartBinding
from vita_ckpt.core.checkpoint import Checkpoint, Shape, TensorRef
from vita_ckpt.core.report import Finding

# Of one kind of misfit this many tensors are named; the rest is counted.
_NAMED = 12


def check_audio(
    subject: Subject, bound: PartBinding, known: Collection[str] = ()
) -> Iterator[Finding]:
    """Check the audio part of a VITA checkpoint by every rule about it.

    ``bound`` is how it binds, but for the names in ``known``: of those something else has been
    said.
    """
    checkpoint, directory, config = subject.checkpoint, subject.audio_directory, subject.config
    shapes = {name: t.shape for name, t in checkpoint.tensors.items() if is_audio(name)}
    if not builds_audio(config):
        if shapes and checkpoint.config is not None:
            yield finding(
                "audio-not-built",
                "mm_audio_encoder",
                f"expected the audio encoder's path, since there are {len(shapes)} tensors of one, "
                f"got {config.get('mm_audio_encoder')!r}",
                hint="vita-ckpt set gives it one",
                file=subject.config_path,
            )
        return
    yield from check_audio_directory(directory)
    yield from _prompt(subject)
    if shapes:
        yield from _tensors(subject, shapes, bound, known)
    elif not any(map(is_audio, known)):
        yield finding(
            "audio-absent",
            "mm_audio_encoder",
            f"expected tensors {AUDIO_PREFIX}*, since the config names an audio encoder, got none",
            hint="vita-ckpt swap-audio-encoder puts them in",
            file=subject.config_path,
        )


def check_audio_directory(directory: AudioDirectory | None) -> Iterator[Finding]:
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


def _prompt(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    number = config.get("audio_prompt_num")
    if config.get("audio_prompt_finetune") and not prompt_rows(config):
        yield finding(
            "config-type",
            "audio_prompt_num",
            f"expected a positive integer, since audio_prompt_finetune is set, got {number!r}",
            file=subject.config_path,
        )


def _tensors(
    subject: Subject, shapes: Mapping[str, Shape], bound: PartBinding, known: Collection[str]
) -> Iterator[Finding]:
    checkpoint, directory = subject.checkpoint, subject.audio_directory
    said = directory.settings if directory is not None else None
    stored = settings_of_shapes(parts.below(AUDIO_PREFIX, shapes))
    settings = said or stored
    if settings is None:
        if not any(map(is_audio, known)):
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
            file=subject.config_path,
        )
        return
    yield from _misfits(checkpoint, bound)
    hidden = hidden_size(subject.config)
    if settings.adapter.out_width != hidden:
        yield finding(
            "audio-adapter-width",
            AUDIO_PREFIX + "adpter",
            f"expected an output of {hidden} features, the language model's width, got "
            f"{settings.adapter.out_width}",
            hint="the adapter was trained for another language model",
        )


def _misfits(checkpoint: Checkpoint, bound: PartBinding) -> Iterator[Finding]:
    wanted, misfit = bound.wanted, bound.mismatch
    findings = [_missing(name, wanted[name]) for name in misfit.missing if name in wanted]
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


def _file(checkpoint: Checkpoint, name: str) -> str:
    tensor = checkpoint.tensors.get(name)
    return tensor.source.path if isinstance(tensor, TensorRef) else ""
