"""Validate a checkpoint, an adapter, a LoRA run or a tower by every rule."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vita_ckpt.api.fetch import downloaded, fetched
from vita_ckpt.api.locate import StrPath, check_key, locate
from vita_ckpt.api.ranks import agree_on, told_to_all
from vita_ckpt.api.subject import file_of, gather
from vita_ckpt.checks.config import check_config
from vita_ckpt.checks.digests import check_manifest, check_written
from vita_ckpt.checks.files import (
    check_left_out,
    check_undo_data,
    finding_of_error,
    unreadable_undo_data,
)
from vita_ckpt.checks.loader_metadata import check_loaders
from vita_ckpt.checks.pickles import check_pickles, check_weights
from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.runs import check_run
from vita_ckpt.checks.structure import check_structure, unsaid
from vita_ckpt.checks.subject import Subject
from vita_ckpt.checks.training import check_training
from vita_ckpt.checks.values import (
    Values,
    as_one,
    check_tensor,
    values_of,
    values_of_pieces,
    values_up_to,
    width_of,
)
from vita_ckpt.core import kinds
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import VITA
from vita_ckpt.core.binding.loaders import LOADER_NAMES
from vita_ckpt.core.checkpoint import Checkpoint, Tensor, TensorRef, refs_of, source_of
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    CONFIG,
    ORIGIN_CONFIG,
    SINGLE_FILES,
    STEP,
    STEPS,
    index_of,
    shards_in_all,
)
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.provenance import last_written
from vita_ckpt.core.relocation import remote_refs
from vita_ckpt.core.report import Finding, Report, worst_first
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.core.team import ALONE, Team
from vita_ckpt.core.training_state import foreign_directory
from vita_ckpt.errors import INCONCLUSIVE, InputError, UsageError, VitaCkptError
from vita_ckpt.storage.reading.checkpoint import choose_weights
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.survey import Survey, survey
from vita_ckpt.storage.reading.unused_tower import difference_from_directory
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.tensors.native import compiled
from vita_ckpt.storage.tensors.scan import scan
from vita_ckpt.storage.tensors.stream import Progress, no_progress

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

KINDS = (
    *kinds.WHOLE,
    kinds.LANGUAGE_MODEL,
    kinds.PROJECTOR,
    kinds.LORA_RUN,
    kinds.TOWER,
    kinds.AUDIO_ADAPTER,
)


def validate(
    path: StrPath,
    *,
    kind: str | None = None,
    values: bool = False,
    deep: bool = False,
    loader: str | None = None,
    key: str | None = None,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
) -> Report:
    """Check what lies at ``path`` by every rule, without loading it: headers, configs, small parts.

    ``values`` reads every byte; those of projectors and adapters are always read, unless they lie
    on the hub: of what is there only headers are fetched without ``values``. ``deep`` compares with
    the digests that were taken: of what surgeries wrote, of every file where there is a manifest,
    of what is kept for an undo. ``kind`` says what to take it for (``vita-checkpoint``,
    ``language-model``, ``projector``, ``lora-run``, ``vision-tower``, ``audio-adapter``), by
    default what it looks like. ``loader`` is whose binding is judged, by its name in
    :func:`~vita_ckpt.explain`, by default the loader of the model's family. ``key`` is the path of
    the state dict to read in files of ``torch.save`` that hold several. ``on_progress`` is told
    what is being read, and how far that is: see :mod:`vita_ckpt.core.progress`. What is wrong are
    findings; raises InputError only if nothing is there, or nothing of a known kind, HubError if
    the hub does not give what is asked for, StaleInputError if a file changes while it is read,
    UsageError for an unknown kind or loader, or for a ``key`` without such a file.

    With the ``ranks`` of :func:`join_ranks` every process of a launcher makes the same call. They
    share the bytes that are to be read, and all return the same report or raise the same error;
    each tells how far its own share is.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(
            "unknown-kind", kind, expected=", ".join(KINDS), hint=did_you_mean(kind, KINDS)
        )
    if loader is not None and loader not in LOADER_NAMES:
        raise UsageError(
            "unknown-loader",
            loader,
            expected=", ".join(LOADER_NAMES),
            hint=did_you_mean(loader, LOADER_NAMES),
        )
    stores = Stores() if stores is None else stores
    team = ALONE if ranks is None else ranks
    with told_to_all(ranks):
        with team.agreement():
            place = locate(path, stores)
            surveyed = survey(place, stores, key or "")
            check_key(key, surveyed.checkpoint)
        agree_on(ranks, surveyed.checkpoint)
        report = report_on(
            surveyed,
            stores,
            kind=kind,
            values=values,
            deep=deep,
            loader=loader,
            on_progress=on_progress,
            team=team,
        )
        report = replace(report, path=place)
        return report if ranks is None else ranks.share(report)


def report_on(
    surveyed: Survey,
    stores: Stores,
    *,
    kind: str | None = None,
    values: bool = False,
    deep: bool = False,
    loader: str | None = None,
    on_progress: OnProgress = unwatched,
    outlined: Collection[str] = (),
    team: Team = ALONE,
) -> Report:
    """Validate what was surveyed already; the options are those of :func:`validate`.

    ``outlined`` are weight files that hold headers only: no values of theirs are read. ``team``
    shares what is to be read; what is kept for an undo its first process reads.
    """
    checkpoint = surveyed.checkpoint
    path = checkpoint.root
    findings = [finding_of_error(problem.error, problem.file) for problem in surveyed.problems]
    findings += check_pickles(surveyed.pickles)
    findings += check_weights(checkpoint.shards)
    subject, more = gather(checkpoint, stores, surveyed=surveyed, kind=kind, loader=loader)
    findings += more
    family = subject.inspection.family
    if any(found.rule == "other-kind" for found in findings) or subject.kind not in kinds.KNOWN:
        if subject.kind == kinds.MULTIMODAL:
            findings += check_left_out(subject)
        return Report(path, subject.kind, worst_first(findings), family=family)
    subject = _with_unused_tower(subject, stores, everything=values)
    if checkpoint.tensors:
        findings += check_structure(subject)
        findings += _run(subject)
        findings += check_training(subject)
        findings += _adapter(subject)
        findings += _values(
            subject, stores, on_progress, everything=values, outlined=outlined, team=team
        )
    if checkpoint.tensors or checkpoint.config is not None:
        findings += check_config(subject)
    findings += unsaid(subject, findings)
    if subject.kind in (*kinds.WHOLE, kinds.LANGUAGE_MODEL, kinds.TOWER):
        findings += check_loaders(checkpoint)
    findings += check_left_out(subject)
    if deep:
        findings += _digests(downloaded(checkpoint, stores), on_progress, stores, team)
    return Report(path, subject.kind, worst_first(_said_once(findings)), family=family)


# A finding of the second rule says again what one of the first says of the same file.
_UNREADABLE: Final = ("invalid-json", "unreadable-file", "git-lfs-pointer")
_SAID_BY: Final = {
    "other-weights": ("ambiguous-weights",),
    "config-missing": _UNREADABLE,
    "lora-config-missing": _UNREADABLE,
    "lora-pair-incomplete": (*_UNREADABLE, "truncated-file", "header-too-small"),
}


def _said_once(findings: Sequence[Finding]) -> list[Finding]:
    """Leave out what another finding about the same file has said."""
    said = {(one.rule, os.path.basename(one.file)) for one in findings}
    return [
        one
        for one in findings
        if one.rule not in _SAID_BY
        or not any((rule, os.path.basename(one.subject)) in said for rule in _SAID_BY[one.rule])
    ]


def check_values(
    checkpoint: Checkpoint,
    names: Collection[str] | None = None,
    *,
    team: Team = ALONE,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Check the values of tensors that lie in files: of ``names``, or of all.

    Findings are in the order of the checkpoint's tensors. Bytes that several names share are read
    once. ``team``, ``progress`` and the errors are those of
    :func:`~vita_ckpt.storage.tensors.scan.scan`.
    """
    tensors = {n: t for n, t in checkpoint.stored.items() if names is None or n in names}
    seen = {part: Values() for tensor in tensors.values() for part in refs_of(tensor)}
    seen |= scan(seen, values_of, glance=_glance, team=team, progress=progress)
    return [
        found
        for name, tensor in tensors.items()
        for found in check_tensor(name, as_one(tensor), values_of_pieces(tensor, seen))
    ]


def _glance(tensor: TensorRef, descriptor: int, offset: int, nbytes: int) -> Values | None:
    """Summarise a range of a contiguous tensor by its largest pattern alone, if that is enough."""
    native, width = compiled(), width_of(tensor.dtype)
    found = native.extent(descriptor, offset, nbytes, width) if native and width else None
    return found and values_up_to(tensor.dtype, nbytes // (width or 1), *found)


def holds_checkpoints(path: str) -> list[str]:
    """List what is to be validated in a directory of checkpoints, adapters and towers.

    Empty for a directory that is one itself, with nothing but its own steps below. What is one
    itself and holds others, such as its tower or the runs that were made of it, comes first.
    """
    if not os.path.isdir(path):
        return []
    why_not = _why_not(path)
    if why_not == "unreadable-directory":
        return []  # said by whoever opens it
    names = LOCAL.listing(path)
    with_config = CONFIG in names
    lies_loose = _is_none(path)
    is_model = index_of(names) is not None or any(single in names for single, _ in SINGLE_FILES)
    below = [
        os.path.join(path, name)
        for name in names
        # The steps of a run are its own: of a run that says so by its config.
        if not name.startswith(".")
        and foreign_directory([name]) is None  # said of the directory that holds it
        and (lies_loose or name != STEPS)
        and not (with_config and not is_model and STEP.fullmatch(name))
    ]
    # Below a model or a run, a config alone may be that of its tower.
    own = is_model or with_config
    found = [
        entry
        for entry in below
        if (_is_below(entry, path, links=lies_loose) and not _is_none(entry, with_weights=own))
        or (lies_loose and _leads_nowhere(entry))
    ]
    return [path, *found] if found and not lies_loose else found


# Loose weight files without an index make no checkpoint, unless a config or their names say so.
_NO_CHECKPOINT: Final = ("not-a-checkpoint", "missing-index")
_CONFIGS: Final = frozenset({CONFIG, ORIGIN_CONFIG, ADAPTER_CONFIG})


def _is_none(path: str, *, with_weights: bool = False) -> bool:
    """Return whether a directory is no checkpoint, nor (without weights) what is left of one."""
    if _why_not(path) not in _NO_CHECKPOINT:
        return False
    names = LOCAL.listing(path)
    is_left = not _CONFIGS.isdisjoint(names) or any(shards_in_all(name) > 1 for name in names)
    return with_weights or not is_left


def _is_below(entry: str, path: str, *, links: bool) -> bool:
    """Return whether an entry of ``path`` is another directory, or with ``links`` leads to one."""
    if not os.path.isdir(entry) or not os.path.islink(entry):
        return os.path.isdir(entry)
    place = os.path.join(os.path.realpath(entry), "")
    return links and not os.path.join(os.path.realpath(path), "").startswith(place)


def _leads_nowhere(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _why_not(path: str) -> str | None:
    """Return the code of the error that opening a directory raises; None if it is a checkpoint."""
    try:
        names = LOCAL.listing(path)
        if index_of(names) is None and foreign_directory(names) is None:
            choose_weights(LOCAL, path, names)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        return error.code
    return None


def _with_unused_tower(subject: Subject, stores: Stores, *, everything: bool) -> Subject:
    """Return the subject with what distinguishes a stored tower from the one that is taken."""
    directory = subject.tower_directory
    if not subject.reads_directory or directory is None or directory.path is None:
        return subject
    found = difference_from_directory(
        subject.checkpoint, directory.path, stores, everything=everything
    )
    return replace(subject, unused_tower=found)


def _run(subject: Subject) -> Iterator[Finding]:
    """Check a run by the rules about them."""
    if subject.kind == kinds.LORA_RUN:
        from vita_ckpt.checks.lora import check_lora  # noqa: PLC0415 - of runs only

        yield from check_lora(subject)
    if subject.family is not VITA:
        yield from check_run(subject)


def _adapter(subject: Subject) -> Iterator[Finding]:
    """Check that get_w finds a projector by an adapter's names."""
    if subject.kind == kinds.AUDIO_ADAPTER and not any(
        "audio_encoder.adpter." in name for name in subject.checkpoint.tensors
    ):
        yield finding(
            "adapter-no-audio-adapter",
            subject.checkpoint.root,
            "expected tensors named model.audio_encoder.adpter.*, got none",
            hint=f"it is a {kinds.kind_of(subject.checkpoint).name}: leave --kind out",
        )
    if subject.kind not in (kinds.PROJECTOR, kinds.LORA_RUN):
        return
    has_projector = any("mm_projector" in name for name in subject.checkpoint.tensors)
    if subject.kind == kinds.LORA_RUN and not has_projector:
        return
    from vita_ckpt.surgery.projector import plan_extract_projector  # noqa: PLC0415 - of adapters

    try:
        plan_extract_projector(subject.checkpoint)
    except VitaCkptError as error:
        if error.code != "empty-tensor":  # has been said
            yield finding_of_error(error, file_of(error))


def _values(
    subject: Subject,
    stores: Stores,
    on_progress: OnProgress,
    *,
    everything: bool,
    outlined: Collection[str],
    team: Team,
) -> list[Finding]:
    """Check the values of the small parts, or of all."""
    refs = subject.checkpoint.stored
    if is_remote(subject.checkpoint.root) and not everything:  # headers only
        return []
    small = subject.kind in (kinds.PROJECTOR, kinds.LORA_RUN, kinds.AUDIO_ADAPTER)
    if everything or small:
        with fetched(remote_refs(subject.checkpoint.tensors), stores) as here:
            there = here.checkpoint(subject.checkpoint)
            step = _reading(there.stored.values(), on_progress, team)
            return check_values(there, team=team, progress=step)
    names = frozenset(
        name
        for name, tensor in refs.items()
        if name.startswith(parts.PROJECTOR_PREFIX) and source_of(tensor) not in outlined
    )
    if not names:
        return []
    step = _reading((refs[name] for name in names), on_progress, team)
    return check_values(subject.checkpoint, names, team=team, progress=step)


def _reading(tensors: Iterable[Tensor], on_progress: OnProgress, team: Team) -> Tally:
    parts_read = {part for tensor in tensors for part in refs_of(tensor)}
    return Tally(on_progress, "reading", sum(part.span for part in parts_read) // team.size)


def _digests(
    checkpoint: Checkpoint, on_progress: OnProgress, stores: Stores, team: Team
) -> Iterator[Finding]:
    """Check bytes against the digests that were taken of them."""
    from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests  # noqa: PLC0415 - only when asked for
    from vita_ckpt.storage.writing.manifest import measure, read_manifest  # noqa: PLC0415 - only when asked for

    written = last_written(checkpoint)
    try:
        manifest = read_manifest(checkpoint, stores)
    except INCONCLUSIVE:
        raise
    except InputError as error:
        manifest = None
        yield finding_of_error(error, file_of(error))
    if manifest is not None:
        found = measure(checkpoint, on_progress=on_progress, team=team)
        for known in check_manifest(manifest, found):
            yield replace(known, file=os.path.join(checkpoint.root, known.file))
    else:
        refs = {n: ref for n, ref in checkpoint.refs.items() if n in written.tensors}
        files_there = {n: checkpoint.files[n] for n in written.files}
        size = sum(one.nbytes for one in refs.values())
        size += sum(file.size for file in files_there.values())
        step = Tally(on_progress, "digesting", size // team.size)
        hashes = tensor_digests(refs, step, team=team)
        yield from check_written(written.tensors, hashes, what="tensor")
        paths = {name: file.path for name, file in files_there.items()}
        files = file_digests(paths, step, team=team)
        hashes = {name: file.sha256 for name, file in files.items()}
        yield from check_written(written.files, hashes, what="file")
    if team.rank == 0:
        yield from _undo_data(checkpoint.root)


def _undo_data(root: str) -> Iterator[Finding]:
    # Only when asked for.
    from vita_ckpt.storage.in_place.journal import undo_data  # noqa: PLC0415
    from vita_ckpt.storage.in_place.rollback import damaged  # noqa: PLC0415
    from vita_ckpt.storage.reading.signed_journal import read_journal  # noqa: PLC0415

    kept = undo_data(root)
    if kept is None:
        return
    try:
        yield from check_undo_data(damaged(kept, root, read_journal(kept, root), deep=True))
    except InputError as error:
        yield unreadable_undo_data(error)
