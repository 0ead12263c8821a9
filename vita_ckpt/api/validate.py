"""Validating: every rule on a checkpoint, an adapter, a LoRA run or a tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.fetch import downloaded, fetched
from vita_ckpt.api.locate import StrPath, locate
from vita_ckpt.api.values import check_values
from vita_ckpt.checks import kinds
from vita_ckpt.checks.config import check_config
from vita_ckpt.checks.digests import check_manifest, check_written
from vita_ckpt.checks.inspect import inspect_checkpoint
from vita_ckpt.checks.loader_metadata import check_loaders
from vita_ckpt.checks.lora import check_lora
from vita_ckpt.checks.pickles import check_pickles
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.checks.structure import check_structure
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.backbones import BACKBONES, PLAIN_LANGUAGE_MODELS
from vita_ckpt.core.anatomy.towers import tower as towers
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import CONFIG, foreign_kind, index_of
from vita_ckpt.core.provenance import last_written
from vita_ckpt.core.relocation import remote_refs
from vita_ckpt.core.report import Finding, Report, worst_first
from vita_ckpt.errors import INCONCLUSIVE, InputError, UsageError, VitaCkptError
from vita_ckpt.storage.reading.checkpoint import choose_weights
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.references import find_base, reaches
from vita_ckpt.storage.reading.survey import Problem, Survey, survey
from vita_ckpt.storage.reading.tokenizer import count_tokens
from vita_ckpt.storage.reading.tower import find_tower, read_carried_config, read_processor
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.surgery.projector import plan_extract_projector

KINDS = (
    kinds.VITA,
    kinds.LANGUAGE_MODEL,
    kinds.PROJECTOR,
    kinds.LORA_RUN,
    kinds.TOWER,
    kinds.AUDIO_ADAPTER,
)
_QUANTISED = (".qweight", ".qzeros", ".SCB", ".absmax", ".weight_scale", ".weight_packed")


def validate(
    path: StrPath,
    *,
    kind: str | None = None,
    values: bool = False,
    deep: bool = False,
    stores: Stores | None = None,
) -> Report:
    """Every rule on what lies at ``path``, without loading it: headers, configs, small parts.

    ``values`` reads every byte; those of projectors and adapters are always read, unless they lie
    on the hub: of what is there only headers are fetched without ``values``. ``deep`` compares with
    the digests that were taken: of what surgeries wrote, of every file where there is a manifest,
    of what is kept for an undo. ``kind`` says what to take it for (``vita-checkpoint``,
    ``language-model``, ``projector``, ``lora-run``, ``vision-tower``, ``audio-adapter``), by
    default what it looks like. What is wrong with it are findings; raises InputError only if
    nothing is there, or nothing of a known kind, HubError if the hub does not give what is asked
    for, StaleInputError if a file changes meanwhile, UsageError for a kind that is none.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError("unknown-kind", kind, expected=", ".join(KINDS))
    stores = Stores() if stores is None else stores
    place = locate(path, stores)
    report = report_on(survey(place, stores), stores, kind=kind, values=values, deep=deep)
    return replace(report, path=place)


def report_on(
    surveyed: Survey,
    stores: Stores,
    *,
    kind: str | None = None,
    values: bool = False,
    deep: bool = False,
) -> Report:
    """What :func:`validate` says of what was surveyed already."""
    checkpoint = surveyed.checkpoint
    path = checkpoint.root
    findings = [_of_problem(problem) for problem in surveyed.problems]
    findings += check_pickles(surveyed.pickles)
    subject, more = _subject(surveyed, kind, stores)
    findings += more
    if any(found.rule == "other-kind" for found in findings):
        return Report(path, subject.kind, worst_first(findings))
    if checkpoint.tensors:
        findings += check_structure(subject)
        findings += check_lora(subject)
        findings += _adapter(subject)
        findings += _values(subject, stores, everything=values)
    if checkpoint.tensors or checkpoint.config is not None:
        findings += check_config(subject)
    if subject.kind in (kinds.VITA, kinds.LANGUAGE_MODEL, kinds.TOWER):
        findings += check_loaders(checkpoint)
    findings += _beside(subject)
    if deep:
        findings += _digests(downloaded(checkpoint, stores), stores)
    return Report(path, subject.kind, worst_first(findings))


def holds_checkpoints(path: str) -> list[str]:
    """The checkpoints, adapters and towers in a directory that is none itself; else nothing."""
    if not os.path.isdir(path) or os.path.lexists(os.path.join(path, CONFIG)):
        return []
    # Loose weight files without an index and a config make no checkpoint either.
    if _why_not(path) not in ("not-a-checkpoint", "missing-index"):
        return []
    below = (os.path.join(path, name) for name in LOCAL.listing(path) if not name.startswith("."))
    return [
        entry
        for entry in below
        if os.path.isdir(entry) and _why_not(entry) not in ("not-a-checkpoint", "missing-index")
    ]


def _why_not(path: str) -> str | None:
    """The code of the error why a directory is no checkpoint; None if it is one."""
    try:
        names = LOCAL.listing(path)
        if index_of(names) is None and foreign_kind(names) is None:
            choose_weights(LOCAL, path, names)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return error.code
    return None


def _subject(surveyed: Survey, kind: str | None, stores: Stores) -> tuple[Subject, list[Finding]]:
    """The checkpoint with its surroundings, and what of those cannot be read."""
    checkpoint, findings = surveyed.checkpoint, []
    directory = find_tower(checkpoint, stores)
    inspected = inspect_checkpoint(checkpoint, directory)
    taken_for = kind or _kind(checkpoint, inspected.kind)
    if taken_for != inspected.kind:
        inspected = inspect_checkpoint(checkpoint, directory, kind=taken_for)
    if _is_quantised(checkpoint):
        findings.append(_other(checkpoint, "quantised weights (take what they were made of)"))
    elif taken_for == kinds.UNKNOWN and checkpoint.tensors:
        names = ", ".join(list(checkpoint.tensors)[:3])
        findings.append(_other(checkpoint, f"weights of no known kind: {names}"))

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except INCONCLUSIVE:
            raise
        except InputError as error:
            findings.append(_of_problem(Problem(_file_of(error), error)))
            return None

    carried = attempt(lambda: read_carried_config(checkpoint, stores))
    audio = (checkpoint.config or {}).get("mm_audio_encoder")
    subject = Subject(
        checkpoint=checkpoint,
        inspection=inspected,
        unread=surveyed.unread,
        tower_directory=directory,
        tower_config=carried or (directory.config if directory is not None else None),
        processor=attempt(lambda: read_processor(checkpoint, stores)),
        tokens=attempt(lambda: count_tokens(checkpoint, stores)),
        audio_reachable=isinstance(audio, str) and reaches(checkpoint, audio, stores) is not None,
        base=find_base(checkpoint, stores) if taken_for == kinds.LORA_RUN else None,
    )
    return subject, findings


def _kind(checkpoint: Checkpoint, looks_like: str) -> str:
    """What a checkpoint is meant to be, where its weights are wrapped or could not be read."""
    if looks_like not in (kinds.UNKNOWN, kinds.TOWER):
        return looks_like
    if checkpoint.layout not in ("safetensors", "torch"):
        return looks_like
    config = checkpoint.config or {}
    model_type = str(config.get("model_type"))
    if model_type in BACKBONES or "mm_vision_tower" in config:
        return kinds.VITA
    if model_type in PLAIN_LANGUAGE_MODELS:
        return kinds.LANGUAGE_MODEL
    return kinds.TOWER if towers.tower_of_config(config) is not None else looks_like


def _is_quantised(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config or {}
    return isinstance(config.get("quantization_config"), Mapping) or any(
        name.endswith(_QUANTISED) for name in checkpoint.tensors
    )


def _other(checkpoint: Checkpoint, what: str) -> Finding:
    message = f"expected weights that VITA's loaders read, got {what}"
    return finding("other-kind", checkpoint.root, message, file=checkpoint.root)


def _adapter(subject: Subject) -> Iterator[Finding]:
    """What get_w makes of an adapter's names."""
    if subject.kind not in (kinds.PROJECTOR, kinds.LORA_RUN):
        return
    has_projector = any("mm_projector" in name for name in subject.checkpoint.tensors)
    if subject.kind == kinds.LORA_RUN and not has_projector:
        return
    try:
        plan_extract_projector(subject.checkpoint)
    except VitaCkptError as error:
        if error.code != "empty-tensor":  # has been said
            yield _of_problem(Problem(_file_of(error), error))


def _values(subject: Subject, stores: Stores, *, everything: bool) -> list[Finding]:
    """The values of the small parts, or of all."""
    refs = subject.checkpoint.refs
    if is_remote(subject.checkpoint.root) and not everything:  # headers only
        return []
    small = subject.kind in (kinds.PROJECTOR, kinds.LORA_RUN, kinds.AUDIO_ADAPTER)
    if everything or small:
        with fetched(remote_refs(subject.checkpoint.tensors), stores) as here:
            return check_values(here.checkpoint(subject.checkpoint))
    names = frozenset(name for name in refs if name.startswith(parts.PROJECTOR_PREFIX))
    return check_values(subject.checkpoint, names) if names else []


def _digests(checkpoint: Checkpoint, stores: Stores) -> Iterator[Finding]:
    """Where bytes are not those that digests were taken of."""
    from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests  # noqa: PLC0415 - only when asked for
    from vita_ckpt.storage.writing.manifest import measure, read_manifest  # noqa: PLC0415 - only when asked for

    written = last_written(checkpoint)
    try:
        manifest = read_manifest(checkpoint, stores)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        manifest = None
        yield _of_problem(Problem(_file_of(error), error))
    if manifest is not None:
        found = measure(checkpoint)
        for known in check_manifest(manifest, found):
            yield replace(known, file=os.path.join(checkpoint.root, known.file))
    else:
        refs = {n: ref for n, ref in checkpoint.refs.items() if n in written.tensors}
        yield from check_written(written.tensors, tensor_digests(refs), what="tensor")
        files = file_digests({n: checkpoint.files[n].path for n in written.files})
        hashes = {name: file.sha256 for name, file in files.items()}
        yield from check_written(written.files, hashes, what="file")
    yield from _undo_data(checkpoint.root)


def _undo_data(root: str) -> Iterator[Finding]:
    from vita_ckpt.storage.in_place.journal import read_journal, undo_data  # noqa: PLC0415
    from vita_ckpt.storage.in_place.rollback import damaged  # noqa: PLC0415 - only when asked for

    kept = undo_data(root)
    if kept is None:
        return
    try:
        for subject in damaged(kept, root, read_journal(kept, root), deep=True):
            message = "expected the bytes that were saved, got others"
            yield finding("undo-damaged", subject, message, file=subject.partition(": ")[0])
    except InputError as error:
        message = f"expected what was saved, got {error.got}"
        yield finding("undo-damaged", error.subject, message, file=error.subject)


def _beside(subject: Subject) -> Iterator[Finding]:
    """Weight files that are not part of the checkpoint, and the state of its training."""
    checkpoint = subject.checkpoint
    is_vita = subject.kind == kinds.VITA
    for name, reason in checkpoint.left_out.items():
        path = os.path.join(checkpoint.root, name)
        if reason.startswith("state of the run"):
            yield finding("training-state", name, "not part of the checkpoint", file=path)
        elif not checkpoint.shards or not reason.startswith("a weight file"):
            continue  # where no weights could be read, they are perhaps among these
        elif is_vita and name.endswith(".safetensors"):
            yield finding(
                "stale-weights",
                name,
                "expected only files that the checkpoint consists of, got one that upstream's "
                "loader reads all the same when unfreeze_vision_tower is set",
                hint="remove it, or move it out of the directory",
                file=path,
            )
        else:
            yield finding(
                "other-weights",
                name,
                "expected only files that the checkpoint consists of, got other weights",
                hint="remove it, or move it out of the directory",
                file=path,
            )


def _of_problem(problem: Problem) -> Finding:
    error = problem.error
    rule = RULES.get(error.code)
    said = [f"expected {error.expected}" if error.expected else ""]
    said += [f"got {error.got}" if error.got else ""]
    return Finding(
        error.code,
        rule.severity if rule is not None else "error",
        error.subject,
        ", ".join(filter(None, said)),
        error.hint,
        problem.file,
    )


def _file_of(error: VitaCkptError) -> str:
    path = error.subject.partition(": ")[0]
    return path if is_remote(path) or os.path.exists(path) else ""
