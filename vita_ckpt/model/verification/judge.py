"""Judge the logits and tokens of a pass: by themselves, in float16, and against others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from vita_ckpt.checks.audio import check_audio_directory
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.report import Finding
from vita_ckpt.model.verification.forward import Batch, Pass, text_alone
from vita_ckpt.model.verification.memory import release_memory
from vita_ckpt.model.vita import VitaModel

# An input matters if it moves the logits this many times more than equal runs differ.
_MATTERS: Final = 100.0
# Below this part of the logits' scale two runs count as equal, whatever they differ.
_NOISE: Final = 1e-9
_AUDIO_ROWS: Final = ("audio", "other audio")
_GOLDEN_FORMAT: Final = "vita-ckpt-golden"
_GOLDEN_VERSION: Final = 1
_TOP: Final = 8
_NMSE: Final = 1e-3


def check_pass(done: Pass, batch: Batch, model: VitaModel, subject: Subject) -> list[Finding]:
    """Check what a pass gave: the numbers of tokens, and every row of logits."""
    findings = [
        *_check_image_tokens(done.image_tokens, batch.expected_tokens),
        *_check_audio_tokens(done.audio_tokens, batch.expected_audio_tokens),
        *_check_rows(done.rows, model),
    ]
    if done.audio_tokens is not None:
        directory = check_audio_directory(subject.audio_directory)
        findings += [finding for finding in directory if finding.severity == "warning"]
    return findings


def _check_image_tokens(made: int | None, expected: int | None) -> list[Finding]:
    if made == expected:
        return []
    return [
        Finding(
            "image-token-count",
            "error",
            "mm_projector",
            f"an image became {made} tokens, expected {expected}",
            "the image's size, the tower and the projector do not go together",
        )
    ]


def _check_audio_tokens(made: int | None, expected: int | None) -> list[Finding]:
    if made == expected:
        return []
    return [
        Finding(
            "audio-token-count",
            "error",
            "audio_encoder",
            f"a recording became {made} tokens, expected {expected}",
            "the encoder and the adapter do not go together",
        )
    ]


def _check_rows(rows: Mapping[str, Tensor], model: VitaModel) -> list[Finding]:
    findings: list[Finding] = []
    bad = [name for name, logits in rows.items() if not bool(torch.isfinite(logits).all())]
    if bad:
        return [
            Finding(
                "logits-not-finite",
                "error",
                "logits",
                f"NaN or infinite for {', '.join(bad)} in {name_of(model.dtype)}",
                "the activations named are where it begins",
            )
        ]
    if "again" not in rows:
        return findings
    twice = rows["image"] if "image" in rows else rows["audio"]
    noise = float((twice - rows["again"]).abs().max()) / (float(twice.abs().max()) or 1.0)
    if noise > 1e-3:
        findings.append(
            Finding("not-deterministic", "error", "logits", f"two equal runs differ by {noise:.1e}")
        )
    for rule, one, name, what in (
        ("image-ignored", "image", "other image", "the image"),
        ("text-ignored", "image", "other text", "the text"),
        ("audio-ignored", "audio", "other audio", "the recording"),
    ):
        if one not in rows:
            continue
        scale = float(rows[one].abs().max()) or 1.0
        moved = float((rows[one] - rows[name]).abs().max()) / scale
        if not moved > _MATTERS * max(noise, _NOISE):
            findings.append(
                Finding(
                    rule,
                    "error",
                    "logits",
                    f"{what} does not matter: another one moves the logits by {moved:.1e} of their "
                    f"scale, equal runs differ by {noise:.1e}",
                    _IGNORED_BECAUSE.get(rule, ""),
                )
            )
    return findings


_IGNORED_BECAUSE: Final = {
    "image-ignored": "a dead or zero projector",
    "audio-ignored": "a dead or zero audio adapter",
}


def check_float16(half: VitaModel, batch: Batch) -> list[Finding]:
    """On a GPU: the same pass as upstream runs it, in float16."""
    rows = batch.run(half).rows
    half.end()
    del half
    release_memory()
    if all(bool(torch.isfinite(logits).all()) for logits in rows.values()):
        return []
    return [
        Finding("float16-not-finite", "error", "logits", "NaN or infinite in upstream's float16")
    ]


def check_against(root: str, model: VitaModel, text: Tensor) -> list[Finding]:
    """Text-only logits are the base's: surgery on vision does not touch language."""
    logits = text_alone(model, len(text))
    model.end()
    if logits.shape == text.shape and bool(torch.equal(logits, text)):
        return []
    moved = "another vocabulary"
    if logits.shape == text.shape:
        scale = float(logits.abs().max()) or 1.0
        moved = f"a difference of {float((logits - text).abs().max()) / scale:.1e} of their scale"
    return [
        Finding(
            "language-changed",
            "error",
            "logits",
            f"text-only logits are not those of {root}: {moved}",
            "the language model was changed too",
        )
    ]


def fingerprint(rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """The largest logits of each position of each variant."""
    top = {name: logits.topk(min(_TOP, logits.shape[-1])) for name, logits in rows.items()}
    return {
        "format": _GOLDEN_FORMAT,
        "version": _GOLDEN_VERSION,
        "rows": {
            name: {"ids": found.indices.tolist(), "values": found.values.tolist()}
            for name, found in top.items()
        },
    }


def check_golden(golden: Mapping[str, Any], rows: Mapping[str, Tensor]) -> list[Finding]:
    """Check the logits against the fingerprint of an earlier verification."""
    for name, logits in rows.items():
        expected = golden["rows"].get(name)
        if expected is None and name in _AUDIO_ROWS:
            continue  # saved by a version that did not run audio
        if expected is None or len(expected["ids"]) != len(logits):
            return [Finding("golden-mismatch", "error", name, "the golden has other positions")]
        values = torch.tensor(expected["values"])
        found = logits.gather(-1, torch.tensor(expected["ids"]))
        nmse = float(((found - values) ** 2).sum() / (values**2).sum())
        if not nmse <= _NMSE:
            return [
                Finding(
                    "golden-mismatch",
                    "error",
                    name,
                    f"logits differ from the golden: NMSE {nmse:.1e}, at most {_NMSE:g}",
                )
            ]
    return []


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module."""
    return str(dtype).removeprefix("torch.")
