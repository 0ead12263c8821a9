"""Load a model, run it once, and judge what came out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from vita_ckpt.checks.config import check_config
from vita_ckpt.checks.files import check_left_out
from vita_ckpt.checks.loader_metadata import check_loaders
from vita_ckpt.checks.structure import check_structure, unsaid
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.report import Finding, has_errors, worst_first
from vita_ckpt.core.verification import RankReport, Verification
from vita_ckpt.model.answer import ask
from vita_ckpt.model.image import prepare_image
from vita_ckpt.model.language import check_language_values
from vita_ckpt.model.load import StrPath, check_values, dtype_of
from vita_ckpt.model.pipeline import follow
from vita_ckpt.model.tokenizer import TokenizerProcess
from vita_ckpt.model.verification.forward import Batch, text_alone
from vita_ckpt.model.verification.judge import (
    check_against,
    check_float16,
    check_golden,
    check_pass,
    fingerprint,
    name_of,
)
from vita_ckpt.model.verification.loads import Loads
from vita_ckpt.model.verification.memory import peak_of, peak_of_host, release_memory
from vita_ckpt.model.verification.watch import Watch, sizes_of
from vita_ckpt.model.vita import VitaModel
from vita_ckpt.storage.reading.paths import Stores

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

# What is wrong with the audio encoder, and keeps nothing else from being run.
_AUDIO: Final = (
    "audio-absent",
    "audio-not-built",
    "audio-files-missing",
    "audio-directory-unreadable",
)


def verify_checkpoint(
    subject: Subject,
    *,
    device: str = "auto",
    dtype: str | None = None,
    tower: StrPath | None = None,
    attn: str | None = None,
    max_memory: Mapping[Any, int | str] | None = None,
    against: Checkpoint | None = None,
    golden: Mapping[str, Any] | None = None,
    image: StrPath | None = None,
    prompt: str | None = None,
    tokenizer: TokenizerProcess | None = None,
    max_new_tokens: int = 1,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
    known: Iterable[Finding] = (),
) -> Verification | None:
    """Build the model strictly, run it once on synthetic inputs, and say what is wrong.

    All variants (an image twice, another image, another text, a recording, another one, text alone)
    are rows of one batch, so the weights are read once. ``against`` is a checkpoint whose text-only
    logits must be the same; ``golden`` the fingerprint of an earlier verification. ``image`` is a
    file that takes the place of the first synthetic image and is what ``prompt`` asks about: its
    answer has at most ``max_new_tokens``, and is encoded and decoded by ``tokenizer``. ``known``
    are findings of whoever read the files. Errors of the input are raised as
    :func:`~vita_ckpt.model.load.load_model` does, a checkpoint that does not work gives findings.

    With ``ranks`` each of them runs some layers. Rank 0 asks and judges, the others may return
    None; ``golden``, ``image`` and ``prompt`` are only rank 0's.
    """
    checkpoint = subject.checkpoint
    stores = Stores() if stores is None else stores
    picture = None if image is None else prepare_image(checkpoint, image, tower, stores=stores)
    question = None
    if prompt is not None and tokenizer is not None:
        question = ask(checkpoint, prompt, with_image=picture is not None, tokenizer=tokenizer)
    findings = [found for found in known if found.severity == "error"]
    started = time.perf_counter()
    bound = subject.binding
    check_language_values(subject.config)
    findings += _wrong(subject)
    incomplete = bound is None or not bound.is_complete
    if bound is None or (incomplete and has_errors(f for f in findings if f.rule not in _AUDIO)):
        return _not_run(checkpoint, findings, dtype, time.perf_counter() - started)
    check_values(checkpoint, subject.surroundings, bound, stores)
    findings += _before_it_runs(subject)
    watch = Watch(sizes_of(checkpoint, bound.renamed), on_progress)
    loads = Loads(
        subject,
        bound,
        against,
        device=device if ranks is None else ranks.place(device),
        dtype=dtype,
        tower=tower,
        attn=attn,
        max_memory=max_memory or {},
        on_progress=on_progress,
        stores=stores,
        ranks=ranks,
    )
    if ranks is not None and ranks.rank:
        _follow(ranks, loads, watch)
        return None
    model = loads.checkpoint(dtype_of(dtype, checkpoint), watch)
    loaded = time.perf_counter()
    watch.follow(model)
    batch = Batch.of(model, picture)
    done = batch.run(model)
    _settle(model, ranks, watch)
    rows, tokens = done.rows, done.image_tokens
    findings += check_pass(done, batch, model, subject)
    findings += watch.findings()
    passed = time.perf_counter()
    answer = None
    if question is not None and not any(f.rule == "logits-not-finite" for f in findings):
        answer = question.answer(
            model,
            picture,
            max_new_tokens=max_new_tokens,
            on_token=lambda number: watch.expect(f"token {number} of {max_new_tokens}"),
        )
    skipped = 0 if model.audio_encoder is not None else _audio_tensors(checkpoint)
    if against is not None:
        watch.expect("text alone")
    alone = rows["text"] if against is None else text_alone(model, len(rows["text"]))
    model.end()
    shares = _shares(model, watch, ranks, 0, _devices(model))
    kind, on_gpu = model.dtype, model.device.type == "cuda"
    # A GPU that holds one model need not hold two.
    del model
    release_memory()
    if on_gpu:
        findings += check_float16(loads.in_float16(), batch)
    if against is not None:
        findings += check_against(against.root, loads.base(), alone)
    if golden is not None:
        findings += check_golden(golden, rows)
    return Verification(
        path=checkpoint.root,
        device=", ".join(dict.fromkeys(share.report.device for share in shares)),
        dtype=name_of(kind),
        streamed=any(share.streams for share in shares),
        findings=worst_first(findings),
        load_seconds=loaded - started,
        pass_seconds=passed - loaded,
        peak_memory=max(share.report.peak_memory for share in shares),
        tokens_per_image=tokens,
        tokens_per_recording=done.audio_tokens,
        skipped_audio_tensors=skipped,
        answer=answer,
        ranks=() if ranks is None else tuple(share.report for share in shares),
        golden=fingerprint(rows),
    )


def _follow(ranks: Ranks, loads: Loads, watch: Watch) -> None:
    """Run this rank's stage of each model that rank 0 runs."""
    device = torch.device(loads.device)
    model = loads.checkpoint(dtype_of(loads.dtype, loads.subject.checkpoint), watch)
    watch.follow(model)
    follow(model, ranks, device, partial(_settle, model, ranks, watch))
    _shares(model, watch, ranks, ranks.rank, loads.device)
    del model
    release_memory()
    if ranks.leader_on_gpu:
        follow(loads.checkpoint(torch.float16), ranks, device)
        release_memory()
    if loads.against is not None:
        follow(loads.base(), ranks, device)


def _settle(model: VitaModel, ranks: Ranks | None, watch: Watch) -> None:
    """Look at what no pass has read, then no more; on rank 0 with what the other ranks saw."""
    if model.later is not None:
        model.later.settle()
    model.observe_rest()
    watch.stop()
    if ranks is not None:
        watch.add(ranks.gather(watch.seen))


@dataclass(frozen=True)
class _Share:
    """What one process did, and whether its weights streamed."""

    report: RankReport
    streams: bool


def _shares(
    model: VitaModel, watch: Watch, ranks: Ranks | None, rank: int, devices: str
) -> list[_Share]:
    """Return what this process did, of several what each of them did."""
    own = _Share(RankReport(rank, devices, watch.bytes_read, peak_of(devices)), model.streams)
    return [own] if ranks is None else ranks.gather(own)


def _not_run(
    checkpoint: Checkpoint, findings: list[Finding], dtype: str | None, seconds: float
) -> Verification:
    """Return what is known of a checkpoint whose tensors are not those of its config."""
    if needs_alignment(checkpoint):
        findings.append(_untrained())
    return Verification(
        path=checkpoint.root,
        device="meta",
        dtype=name_of(dtype_of(dtype, checkpoint)),
        streamed=False,
        findings=worst_first(findings),
        load_seconds=seconds,
        pass_seconds=0.0,
        peak_memory=peak_of_host(),
        tokens_per_image=None,
        tokens_per_recording=None,
        skipped_audio_tensors=_audio_tensors(checkpoint),
        answer=None,
        golden=None,
    )


def _audio_tensors(checkpoint: Checkpoint) -> int:
    return sum(
        parts.part_of(name) in (parts.AUDIO_ENCODER, parts.AUDIO_ADAPTER)
        for name in checkpoint.tensors
    )


def _untrained() -> Finding:
    return Finding(
        "projector-untrained",
        "warning",
        "mm_projector",
        "drawn at random, and no trained one has been merged since",
        "train it, and merge it with merge-projector",
    )


def _wrong(subject: Subject) -> list[Finding]:
    """Return the errors of tensors and config that validate finds too."""
    found = [*check_structure(subject), *check_config(subject)]
    found += unsaid(subject, found)
    return [finding for finding in found if finding.severity == "error"]


def _before_it_runs(subject: Subject) -> list[Finding]:
    """Return what is known to be wrong, and keeps nothing from being run here."""
    found = (*check_loaders(subject.checkpoint), *check_left_out(subject))
    untrained = [_untrained()] if needs_alignment(subject.checkpoint) else []
    return [*(finding for finding in found if finding.severity == "error"), *untrained]


def _devices(model: VitaModel) -> str:
    """Where a model runs; several GPUs in the order in which it runs on them."""
    if model.streams:
        return str(model.device)
    return ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))
