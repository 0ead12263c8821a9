"""Run plans: save, load and summarize them, write what they make, or change a base in place."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

from vita_ckpt import __version__
from vita_ckpt.api.fetch import fetched_casts, fetched_files, fetched_tensors
from vita_ckpt.api.locate import StrPath, local, reopen
from vita_ckpt.api.plans.again import plan_again
from vita_ckpt.api.plans.values import check_fetched
from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, LocalFile
from vita_ckpt.core.diff import diff_config, diff_tensors
from vita_ckpt.core.digest import digest
from vita_ckpt.core.filenames import MANIFEST, MODEL_CARD, PROVENANCE, may_change_in_place
from vita_ckpt.core.hub_card import with_lineage_and_metadata
from vita_ckpt.core.left_out import LeftOut
from vita_ckpt.core.manifest import encode as encode_manifest
from vita_ckpt.core.options import Options
from vita_ckpt.core.plan import (
    CopyFile,
    DropFile,
    Plan,
    PutFile,
    ReplaceTensor,
    SetConfig,
    saved_plan,
    subject_of,
)
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.provenance import Written, encode, lineage, needs_alignment
from vita_ckpt.core.reading_notes import reading_notes
from vita_ckpt.core.relocation import remote_refs
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.core.summary import (
    FileSize,
    PlannedChange,
    PlannedFile,
    PlannedKey,
    PlannedTensor,
    Summary,
)
from vita_ckpt.errors import InputError, UsageError, VitaCkptError
from vita_ckpt.storage.in_place.apply import shared_shards, write_in_place
from vita_ckpt.storage.in_place.rollback import sweep
from vita_ckpt.storage.reading.model_card import read_model_card
from vita_ckpt.storage.reading.paths import Stores, read_json
from vita_ckpt.storage.reading.pickles import disguised_pickles
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.tensors.compare import are_equal
from vita_ckpt.storage.tensors.stream import not_said
from vita_ckpt.storage.writing import commit
from vita_ckpt.storage.writing.atomic_file import write_new
from vita_ckpt.storage.writing.layout import (
    DirectoryLayout,
    InPlaceLayout,
    PatchedShard,
    WrittenShard,
    WrittenText,
    pickles_left_out,
    plan_in_place,
    plan_layout,
)
from vita_ckpt.storage.writing.limits import access_of_text
from vita_ckpt.storage.writing.manifest import current_manifest, manifest_of
from vita_ckpt.storage.writing.outputs import Finish

_WEIGHT_FILES = (".safetensors", ".bin")


def makes_a_file(plan: Plan) -> bool:
    """Return whether ``plan`` makes a file, and not a directory."""
    return plan.operation in ("extract-projector", "extract-audio-adapter") or (
        plan.operation == "consolidate" and plan.record is None
    )


# Is called with a tensor's name and how many of its values became zero in a conversion.
Flushed = Callable[[str, int], None]


def apply(
    plan: Plan,
    out: StrPath,
    *,
    options: Options = Options(),
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
    stores: Stores | None = None,
) -> str:
    """Write what ``plan`` makes to ``out``, whole and synced to disk, or nothing at all.

    ``out`` must not exist: a directory for a surgery, a ``.safetensors`` or ``.bin`` file for an
    extraction. ``on_progress`` is told what is being done, and how far it is: see
    :mod:`vita_ckpt.core.progress`. Returns the absolute path.
    Raises UsageError for an output that may not be written, StaleInputError if an input changed
    since the plan was computed, CastError where a conversion would lose a value, OutputError if
    the disk fails. ``flushed`` is called with a tensor's name and how many of its values become
    zero when they are converted, each time that some do.
    """
    stores = Stores() if stores is None else stores
    path = check_output(plan, out)
    if makes_a_file(plan):
        with fetched_tensors(plan, os.path.dirname(path), stores) as here:
            commit.write_file(here, path, check=options.check, on_progress=on_progress)
        return path
    lays_out = partial(plan_layout, plan, options.carry)
    with fetched_files(plan, lays_out, os.path.dirname(path), stores) as here:
        check_fetched(plan, here)
        write_result(here, path, options, on_progress, flushed, stores)
    return path


def write_result(
    plan: Plan,
    path: str,
    options: Options,
    on_progress: OnProgress,
    flushed: Flushed,
    stores: Stores,
) -> None:
    """Write the directory that ``plan`` makes to ``path``; all that it reads is on the disk."""
    layout = lay_out(plan, options)
    untouched = [file.name for file in layout.carried]
    finish = _finish(
        plan, untouched, layout.shards, layout.texts, options, _now(), on_progress, stores
    )
    commit.write_directory(
        plan,
        layout,
        path,
        finish,
        link=options.link,
        check=options.check,
        on_progress=on_progress,
        flushed=flushed,
    )


def apply_in_place(
    plan: Plan,
    *,
    options: Options = Options(check=True),
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
    stores: Stores | None = None,
) -> str:
    """Make the base of ``plan`` what the plan makes of it, where it is, or leave it as it was.

    Tensors that keep their place are patched, other shards are written anew; :func:`undo` brings
    back what was there. Where every byte is as the plan makes it, nothing is written, and what is
    kept to undo an earlier surgery stays. Returns the base's path. Raises UsageError for a plan
    that is no surgery of a directory, StaleInputError if an input changed since the plan was
    computed, InputError if another surgery of the base is under way, CastError where a conversion
    would lose a value, OutputError if the disk fails.
    """
    change_in_place(plan, options=options, on_progress=on_progress, flushed=flushed, stores=stores)
    return plan.base.root


def change_in_place(
    plan: Plan,
    *,
    options: Options = Options(check=True),
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
    stores: Stores | None = None,
) -> bool:
    """Do what :func:`apply_in_place` does; return whether there was anything to change."""
    stores = Stores() if stores is None else stores
    _check_here(plan)
    with fetched_tensors(plan, plan.base.root, stores) as here:
        check_fetched(plan, here)
        return _change_in_place(here, options, on_progress, flushed, stores)


def _change_in_place(
    plan: Plan, options: Options, on_progress: OnProgress, flushed: Flushed, stores: Stores
) -> bool:
    if os.path.isdir(plan.base.root):
        sweep(os.path.realpath(plan.base.root))  # second names of weights among it
    layout = lay_out_in_place(plan)
    if _is_idle(plan, layout, options, stores):
        return False
    known = current_manifest(plan.base, stores)
    now = _now()
    shards: tuple[PatchedShard | WrittenShard, ...] = (*layout.patched, *layout.shards)
    changed = {part.name for part in (*shards, *layout.texts)} | {*layout.removed}
    changed |= {*_lineage_files(plan, options)}
    there = (*(shard.name for shard in plan.base.shards), *plan.base.files)
    untouched = [name for name in there if name not in changed]
    write_in_place(
        plan,
        layout,
        _finish(plan, untouched, shards, layout.texts, options, now, on_progress, stores),
        time=now,
        check=options.check,
        known=known.files if known is not None else None,
        on_progress=on_progress,
        flushed=flushed,
    )
    return True


def _is_idle(plan: Plan, layout: InPlaceLayout, options: Options, stores: Stores) -> bool:
    """Return whether every byte is as the plan makes it, so that there is nothing to do or say.

    Raises what reading the inputs raises, and CastError where a conversion would lose a value.
    """
    base = plan.base
    if layout.changes and not _makes_what_is_there(plan):
        return False
    if options.digest and current_manifest(base, stores) is None:
        return False
    if not options.model_card:
        return True
    said = base.provenance or {}
    if not isinstance(said.get("operations"), list):
        return False
    card = read_model_card(base, stores)
    return with_lineage_and_metadata(card, said, base.config or {}) == card


def _makes_what_is_there(plan: Plan) -> bool:
    """Return whether a plan that has edits makes, byte for byte, what its base is."""
    base, target = plan.base, plan.target()
    record = plan.record
    if plan.weight_files is not None:  # the layout itself says what changes
        return False
    if target.config != base.config or (
        record is not None and record.needs_alignment != needs_alignment(base)
    ):
        return False
    replaced = [edit for edit in plan.edits if isinstance(edit, ReplaceTensor)]
    texts = [edit for edit in plan.edits if isinstance(edit, PutFile)]
    settings = sum(isinstance(edit, SetConfig) for edit in plan.edits)
    if len(replaced) + len(texts) + settings != len(plan.edits):  # something comes or goes
        return False
    if not all(_is_text_there(edit, base) for edit in texts):
        return False
    pairs = {edit.name: (base.tensors[edit.name], edit.tensor) for edit in replaced}
    return all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs.values()) and (
        not remote_refs({edit.name: edit.tensor for edit in replaced}) and are_equal(pairs)
    )


def _is_text_there(edit: PutFile, base: Checkpoint) -> bool:
    file, data = base.files.get(edit.name), edit.text.encode()
    if not isinstance(file, LocalFile) or file.size != len(data):
        return False
    with LOCAL.open(file.path) as source:
        return source.file.size == len(data) and source.read(len(data), 0) == data


def lay_out(
    plan: Plan, options: Options, disguised: Collection[str] | None = None
) -> DirectoryLayout:
    """Lay out every file of the output but the lineage, the model card and the manifest.

    ``disguised`` are the pickles that only their content tells, where the caller knows them.
    """
    if disguised is None:
        disguised = disguised_pickles(plan.target().files)
    layout = plan_layout(plan, options.carry, disguised)
    written = _lineage_files(plan, options)
    carried = tuple(file for file in layout.carried if file.name not in written)
    return replace(layout, carried=carried)


def unmeasured(plan: Plan, options: Options, stores: Stores) -> set[str]:
    """Return the files that are carried and must be read whole, for the digests of a manifest."""
    if plan.record is None or not _keeps_manifest(plan, options):
        return set()
    known = current_manifest(plan.base, stores)
    return {f.name for f in lay_out(plan, options).carried} - {*(known.files if known else ())}


def _lineage_files(plan: Plan, options: Options) -> tuple[str, ...]:
    """Return the names of the files that will say what was done."""
    if plan.record is None:
        return ()
    card = (MODEL_CARD,) if options.model_card else ()
    manifest = (MANIFEST,) if _keeps_manifest(plan, options) else ()
    return (PROVENANCE, *card, *manifest)


def _keeps_manifest(plan: Plan, options: Options) -> bool:
    """Return whether the result has a manifest. Raises UsageError for one that cannot be had."""
    if plan.weight_files is None or plan.weight_files.format == "safetensors":
        return options.digest or MANIFEST in plan.base.files
    if options.digest:
        raise UsageError(
            "options-exclude-each-other",
            "--digest",
            expected="weight files in safetensors, whose digests are known once they are written",
            got="--format torch",
        )
    return False


def lay_out_in_place(plan: Plan) -> InPlaceLayout:
    """Lay out what a plan changes of its base. Raises UsageError unless it is a surgery of one."""
    _check_here(plan)
    if plan.record is None or plan.base.layout not in ("safetensors", "torch"):
        raise UsageError(
            "not-in-place",
            plan.base.root or plan.operation,
            expected="a surgery of a checkpoint directory",
            got=plan.operation,
            hint="write the result to a new path with --out",
        )
    shared = shared_shards(plan.base, plan.donors)
    # What is not changed stays where it is, pickles too.
    layout = plan_in_place(plan, plan_layout(plan, carry=("*",)), shared)
    for name in layout.names:
        if not may_change_in_place(name):
            raise UsageError(
                "not-in-place",
                plan.base.root,
                expected="changes of weights, indexes, configs and the README in the directory",
                got=f"one of {name}",
                hint="write the result to a new path with --out",
            )
    return layout


def _check_here(plan: Plan) -> None:
    if is_remote(plan.base.root):
        raise UsageError(
            "in-place-on-hub",
            plan.base.root,
            expected="a directory on this machine",
            got="an address on the hub",
            hint="write to a new directory with --out, then vita-ckpt push",
        )


def _finish(
    plan: Plan,
    untouched: Sequence[str],
    shards: Sequence[WrittenShard | PatchedShard],
    texts: Sequence[WrittenText],
    options: Options,
    now: str,
    on_progress: OnProgress,
    stores: Stores,
) -> Finish:
    """Return what makes lineage, model card and manifest once digests are known."""
    if plan.record is None:
        return lambda _digests: ()
    keeps = _keeps_manifest(plan, options)
    known = current_manifest(plan.base, stores) if keeps else None
    card = read_model_card(plan.base, stores) if options.model_card else None

    def finish(digests: Mapping[str, str]) -> tuple[WrittenText, ...]:
        written = Written(digests, {text.name: digest(text.data) for text in texts})
        content = lineage(plan, written, time=now, versions=_versions())
        more = [WrittenText(PROVENANCE, encode(content))]
        if card is not None:
            written_card = with_lineage_and_metadata(card, content, plan.target().config or {})
            more.append(WrittenText(MODEL_CARD, written_card))
        if keeps:
            manifest = manifest_of(
                plan, known, untouched, shards, [*texts, *more], digests, on_progress
            )
            more.append(WrittenText(MANIFEST, encode_manifest(manifest)))
        return tuple(more)

    return finish


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _versions() -> dict[str, str]:
    return {"vita_ckpt": __version__, "python": ".".join(map(str, sys.version_info[:3]))}


def check_output(plan: Plan, out: StrPath) -> str:
    """Return the absolute path of ``out``; raise what :func:`apply` would raise for it."""
    path = commit.check_output(local(out), (plan.base, *plan.donors))
    if plan.base.root != EMPTY.root and plan.base.layout not in ("safetensors", "torch"):
        raise InputError(
            "not-a-checkpoint",
            plan.base.root,
            expected="a base that is a checkpoint directory",
            hint="compute the plan from the directory",
        )
    makes_file = makes_a_file(plan)
    if makes_file != path.endswith(_WEIGHT_FILES):
        raise UsageError(
            "wrong-output-kind",
            os.fspath(out),
            expected="a .safetensors or .bin file" if makes_file else "a directory",
            hint="name another output",
        )
    return path


def check_plan(
    plan: Plan,
    *,
    on_progress: OnProgress = unwatched,
    flushed: Flushed = not_said,
    stores: Stores | None = None,
) -> None:
    """Raise what :func:`apply` would raise for the values: a conversion that overflows."""
    with fetched_casts(plan, Stores() if stores is None else stores) as here:
        commit.check_casts(here, on_progress, flushed)


def check_plan_path(plan: Plan, path: StrPath) -> None:
    """Raise UsageError unless a plan may be saved there: a new file outside every input."""
    commit.check_output(local(path), (plan.base, *plan.donors))


def save_plan(plan: Plan, path: StrPath) -> None:
    """Write a plan as JSON to a new file outside its inputs; :func:`load_plan` reads it.

    It is no more open than every file of the inputs. Raises UsageError for a plan that no function
    ``plan_…`` of this package computed.
    """
    check_plan_path(plan, path)
    if plan.request is None:
        raise UsageError(
            "plan-not-repeatable",
            plan.operation,
            expected="a plan of a function such as plan_swap_tower, which can be computed again",
            hint="apply it without saving it",
        )
    access = access_of_text([plan.base, *plan.donors])
    write_new(os.fspath(path), json.dumps(plan.to_dict(), indent=2) + "\n", access)


def base_of(path: StrPath) -> str:
    """Return the path of the base of a saved plan. Raises InputError if the file is no plan."""
    with _named(path):
        return saved_plan(read_json(LOCAL, local(path))[0]).paths[0]


def load_plan(path: StrPath, *, stores: Stores | None = None) -> Plan:
    """Load a plan that :func:`save_plan` wrote: open its inputs, and compute it again.

    Raises StaleInputError if an input is not what the plan was computed from, and InputError if
    the file says anything that its operation does not make of these inputs.
    """
    data, _ = read_json(LOCAL, local(path))
    with _named(path):
        stores = Stores() if stores is None else stores
        saved = saved_plan(data)
        places = zip(saved.paths, saved.revisions, saved.keys, strict=True)
        as_is = saved.request.get("ignore_index") is True
        inputs = [reopen(*place, stores, ignore_index=as_is) for place in places]
        saved.check_inputs(inputs)
        plan = plan_again(saved, inputs, stores)
        saved.check_same(plan)
    return plan


@contextmanager
def _named(path: StrPath) -> Iterator[None]:
    """Make errors of a plan name the plan's file."""
    try:
        yield
    except VitaCkptError as error:
        if error.code == "invalid-plan":
            raise error.with_subject(os.fspath(path)) from error
        raise


def summarize(
    plan: Plan,
    *,
    in_place: bool = False,
    options: Options = Options(),
    stores: Stores | None = None,
) -> Summary:
    """Summarize what ``plan`` will do: tensors and config before and after, files, bytes.

    With ``in_place`` it is what :func:`apply_in_place` does, for which tensors on this machine are
    compared with those that they replace, up to the first difference. The size of lineage, model
    card and manifest is not known before and not counted.
    """
    notes = [note for opened in (plan.base, *plan.donors) for note in reading_notes(opened)]
    plan = replace(plan, notes=(*plan.notes, *dict.fromkeys(notes)))
    target = plan.target()
    changes = lay_out_in_place(plan) if in_place else None
    is_idle = changes is not None and _is_idle(plan, changes, options, stores or Stores())
    if is_idle:
        plan = replace(plan, edits=())
        target, changes = plan.target(), lay_out_in_place(plan)
    reasons = {subject_of(edit): edit.reason for edit in plan.edits}
    files = [
        PlannedFile(edit.name, _file_change(edit, plan.base), edit.reason)
        for edit in plan.edits
        if isinstance(edit, PutFile | CopyFile | DropFile)
    ]
    summary = Summary(
        operation=plan.operation,
        base=plan.base.root or None,
        donors=tuple(donor.root for donor in plan.donors),
        notes=plan.notes,
        tensors=tuple(
            PlannedTensor(c.name, c.change, c.before, c.after, reasons["tensor", c.name])
            for c in diff_tensors(plan.base, target)
        ),
        config=tuple(
            PlannedKey(c.key, c.before, c.after, reasons["config", c.key])
            for c in diff_config(plan.base, target)
        ),
        files=(*files, *(() if is_idle else _lineage_changes(plan, options))),
    )
    if makes_a_file(plan):
        size = sum(tensor.nbytes for tensor in target.tensors.values())
        return replace(summary, bytes_to_write=size)
    if changes is not None:
        return replace(
            summary,
            patched=_sizes(changes.patched),
            rewritten=_sizes(changes.shards) + _text_sizes(changes.texts),
            bytes_to_write=changes.bytes_written,
        )
    hidden = disguised_pickles(target.files)
    layout = lay_out(plan, options, hidden)
    pickles = dict.fromkeys(pickles_left_out(target, options.carry, hidden), LeftOut.PICKLE)
    unused = _carries_nothing(options.carry, pickles_left_out(target, (), hidden))
    return replace(
        summary,
        notes=(*plan.notes, *map(_pickle_note, pickles), *unused),
        rewritten=_sizes(layout.shards) + _text_sizes(layout.texts),
        carried=tuple(FileSize(file.name, file.source.size) for file in layout.carried),
        left_out={**plan.base.left_out, **pickles},
        bytes_to_write=layout.bytes_written + layout.bytes_carried,
    )


def _pickle_note(name: str) -> str:
    left = f"{name} is {LeftOut.PICKLE}: it is left out"
    return f"{left}; --carry {shlex.quote(name)} takes it along"


def _carries_nothing(carry: Collection[str], pickles: Collection[str]) -> Iterator[str]:
    """Say which globs of --carry match none of the pickles that would have been left out."""
    names = {part for name in pickles for part in (name, os.path.basename(name))}
    for glob in carry:
        if not any(fnmatchcase(name, glob) for name in names):
            hint = did_you_mean(glob, names)
            yield f"--carry {glob} matches no pickle that is left out" + (hint and f" ({hint})")


def unchanged(summary: Summary) -> Summary:
    """Return the summary of a plan that turned out to change nothing."""
    return replace(
        summary, tensors=(), config=(), files=(), patched=(), rewritten=(), bytes_to_write=0
    )


def _lineage_changes(plan: Plan, options: Options) -> list[PlannedFile]:
    reasons = {PROVENANCE: "what was done", MODEL_CARD: "what was done", MANIFEST: "digests"}
    return [
        PlannedFile(name, "replaced" if name in plan.base.files else "added", reasons[name])
        for name in _lineage_files(plan, options)
    ]


def _sizes(shards: Sequence[WrittenShard | PatchedShard]) -> tuple[FileSize, ...]:
    return tuple(FileSize(shard.name, shard.nbytes) for shard in shards)


def _text_sizes(texts: Sequence[WrittenText]) -> tuple[FileSize, ...]:
    return tuple(FileSize(text.name, len(text.data)) for text in texts)


def _file_change(edit: PutFile | CopyFile | DropFile, base: Checkpoint) -> PlannedChange:
    if isinstance(edit, DropFile):
        return "removed"
    return "replaced" if edit.name in base.files else "added"
