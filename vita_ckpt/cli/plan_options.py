"""Share among surgery commands the options, the running and the rendering of a plan."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import click

from vita_ckpt.api import apply as api
from vita_ckpt.api import lifecycle
from vita_ckpt.api.destination import check_destination, check_pushable
from vita_ckpt.api.verify import verify
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.cli.pushed import notes_on, pushed_line, say_refused
from vita_ckpt.cli.verification_text import verification_lines
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Tensor
from vita_ckpt.core.options import LINKS, Link, Options
from vita_ckpt.core.outcomes import Push, PutBack
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.report import has_errors
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.core.summary import PlannedTensor, Summary
from vita_ckpt.errors import InputError, UsageError, printable

_Command = Callable[..., Any]

# More changed tensors than this are shown by part.
_MOST_ROWS: Final = 16
# A part on its own has names without the prefix that tells the part.
_ALONE: Final = {
    "extract-tower": parts.VISION_TOWER,
    "extract-audio-encoder": parts.AUDIO_ENCODER,
}


def plan_options(command: _Command) -> _Command:
    """Add the options of every command that runs a plan: where to, whether to, what to print."""
    return _with_options(
        command,
        click.option("--out", type=LOCAL, metavar="PATH", help="What to write; must be new."),
        click.option(
            "--dry-run",
            is_flag=True,
            help="Print what would be done, and write nothing but --plan-out.",
        ),
        click.option(
            "--plan-out",
            type=LOCAL,
            metavar="FILE",
            help="Save the plan for 'vita-ckpt apply'; without --out nothing else is written.",
        ),
        click.option(
            "--check/--no-check",
            default=None,
            help="Read again what was written, and compare.  [default: in place only]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the plan's summary as JSON."),
    )


def verify_option(result: str) -> Callable[[_Command], _Command]:
    """Return what adds ``--verify`` to a surgery; ``result`` says what its model is then."""
    return click.option(
        "--verify",
        is_flag=True,
        help=f"Run the {result} model once before a byte is written; a failure leaves no output.",
    )


def seed_option(command: _Command) -> _Command:
    """Add ``--seed``, of every command that can draw a new part."""
    return click.option(
        "--seed",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        show_default=True,
        help="What reinit draws from.",
    )(command)


def bad_values_option(command: _Command) -> _Command:
    """Add ``--allow-bad-values``, of every command that takes an adapter."""
    return click.option(
        "--allow-bad-values",
        is_flag=True,
        help="Take an adapter with NaN, infinities, matrices of zeros or integers.",
    )(command)


def surgery_options(command: _Command) -> _Command:
    """Add the options of :func:`plan_options`, and those for changing a whole checkpoint."""
    return _with_options(
        plan_options(command),
        click.option(
            "--in-place",
            is_flag=True,
            help="Change the checkpoint where it is, at the cost of what changes; 'vita-ckpt undo' "
            "restores the old state.",
        ),
        click.option(
            "--push",
            metavar="ORG/NAME[@BRANCH]",
            help="Push the result instead of writing it here, for a base on the hub: unchanged "
            "weight files are copied there.",
        ),
        click.option("--private", is_flag=True, help="With --push: create it private."),
        click.option("--create-pr", is_flag=True, help="With --push: open a pull request instead."),
        click.option(
            "--link",
            type=click.Choice(LINKS),
            default="auto",
            show_default=True,
            help="How to make weight files that stay unchanged. With reflink they share blocks "
            "until one side is written to. With copy they have bytes of their own. With auto it is "
            "reflink where the file system can, else copy. A hardlink is another name of the "
            "base's file: a program that writes into one changes both, --in-place does not. A "
            "symlink shows what the base has, after --in-place too, and breaks if the base moves.",
        ),
        click.option(
            "--digest",
            is_flag=True,
            help="Add a manifest with the digest of every file, for 'vita-ckpt validate --deep'.",
        ),
        click.option(
            "--model-card",
            is_flag=True,
            help="Write the hub's metadata, and how the checkpoint was made, into README.md.",
        ),
        click.option(
            "--carry",
            multiple=True,
            metavar="GLOB",
            help="Take along pickles that match and are not weight files, as vocab.pkl. They can "
            "run code when they are loaded, so they are left out by default. Can be repeated.",
        ),
    )


def _with_options(command: _Command, *options: _Command) -> _Command:
    for option in reversed(options):
        command = option(command)
    return command


def begin(settings: Settings, base: str, run: Mapping[str, Any]) -> None:
    """Recover a checkpoint from a dead in-place surgery, before another one is planned."""
    if run["in_place"] and not run["dry_run"] and os.path.isdir(base):
        with shown_progress(settings.quiet) as on_progress:
            found = lifecycle.recover(base, on_progress=on_progress)
        if found is not None:
            settings.note(
                f"an interrupted {found.operation} ({found.time}) was taken back: {base} is "
                "restored to the state before it"
            )


def say_put_back(
    settings: Settings, checkpoint: str, found: PutBack | None, *, as_json: bool
) -> None:
    """Say what an undo or a recovery put back, and which new files are still there."""
    for name in found.kept if found is not None else ():
        settings.note(f"kept {name}: it is not the file that the surgery wrote")
    if as_json:
        fields = None if found is None else found.to_dict()
        report = {"format": "vita-ckpt-put-back", "version": 1, "restored": fields}
        console.say_done(json_text({**report, "path": os.path.abspath(checkpoint)}))
    elif found is None:
        console.say_done(printable(f"{render.path(checkpoint)} is whole: nothing to do"))
    else:
        surgery = f"{'interrupted ' if found.recovered else ''}{found.operation} ({found.time})"
        done = f"{render.path(found.path)} is restored to the state before the {surgery}"
        console.say_done(printable(done))


def run_plan(
    settings: Settings,
    plan: Plan,
    *,
    out: str | None,
    dry_run: bool,
    plan_out: str | None,
    as_json: bool,
    check: bool | None = None,
    in_place: bool = False,
    link: Link = "auto",
    digest: bool = False,
    model_card: bool = False,
    carry: tuple[str, ...] = (),
    push: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    verify_first: bool = False,
) -> int:
    """Save, show and run a plan as its options say; return the exit code.

    With ``verify_first`` its target is verified by a forward pass before anything is written.
    """
    options = Options(link, in_place if check is None else check, digest, model_card, carry)
    _check_options(options, out, plan_out, push, dry_run=dry_run, in_place=in_place)
    _check_push(options, plan, out, push, in_place=in_place, private=private, create_pr=create_pr)
    summary = api.summarize(plan, in_place=in_place, options=options, stores=settings.stores)
    earlier = _earlier_surgery(plan.base.root) if in_place else None
    written = pushed = None
    if plan_out is not None:
        api.check_plan_path(plan, plan_out)
    if out is not None and not dry_run:
        _note_leftovers(settings, api.check_output(plan, out))
    if verify_first and not _works(settings, plan):
        return 1
    flushed: Counter[str] = Counter()
    with shown_progress(settings.quiet) as on_progress:
        shared: dict[str, Any] = {
            "on_progress": on_progress,
            "flushed": _adding_to(flushed),
            "stores": settings.stores,
        }
        if dry_run or (out is None and push is None and not in_place):
            api.check_plan(plan, **shared)
        elif push is not None:
            shared["options"] = options
            pushed = _push(plan, push, private=private, create_pr=create_pr, **shared)
        else:
            shared["options"] = options
            summary, written = _write(plan, out, summary, **shared)
    if pushed is not None and pushed.url is None:
        say_refused(pushed, "write it with --out, then vita-ckpt push --force uploads it")
        return 1
    if plan_out is not None:
        api.save_plan(plan, plan_out)
    # Said last: where something fails, the error is the only line.
    notes = (*summary.notes, *_notes_on_zeros(flushed, summary.operation))
    for note in (*notes, *_notes_on_undo(summary, earlier, dry_run=dry_run)):
        settings.note(note)
    if plan_out is not None:
        settings.note(f"plan saved: vita-ckpt apply {shlex.quote(plan_out)} --out PATH")
    for note in notes_on(pushed):
        settings.note(note)
    # The work is done: what it wrote is there, whether or not stdout takes the lines about it.
    say = console.say if dry_run else console.say_done
    say(_result(summary, written, pushed, in_place=in_place, as_json=as_json))
    return 0


def _result(
    summary: Summary, written: str | None, pushed: Push | None, *, in_place: bool, as_json: bool
) -> str:
    """Render what a plan changes, and where the result is."""
    if as_json:
        told = None if pushed is None else pushed.to_dict()
        return json_text({**summary.to_dict(), "out": written, "pushed": told})
    if pushed is not None:
        return "\n".join((*_changed_files(summary), printable(pushed_line(pushed))))
    return "\n".join((_in_place_lines if in_place else _lines)(summary, written))


def _write(plan: Plan, out: str | None, summary: Summary, **options: Any) -> tuple[Summary, str]:
    """Write what a plan makes to ``out``, or in place; return what was done, and where."""
    if out is not None:
        return summary, api.apply(plan, out, **options)
    is_changed = api.change_in_place(plan, **options)
    return summary if is_changed else api.unchanged(summary), plan.base.root


def _push(plan: Plan, push: str, **options: Any) -> Push:
    """Push what a plan makes to the repository, and the branch, that ``--push`` names."""
    from vita_ckpt.api.push_plan import push_plan  # noqa: PLC0415 - validates, which imports numpy

    repository, branch = _destination(push)
    return push_plan(plan, repository, revision=branch, **options)


def _adding_to(flushed: Counter[str]) -> Callable[[str, int], None]:
    def add(name: str, count: int) -> None:
        flushed[name] += count

    return add


def _notes_on_zeros(flushed: Counter[str], operation: str) -> Iterator[str]:
    if flushed:
        name, count = flushed.most_common(1)[0]
        tensors = render.counted(len(flushed), "tensor")
        keep = "; --keep GLOB leaves a tensor as it is" if operation == "convert" else ""
        yield (
            f"{flushed.total():,} values of {tensors} are too small for the new dtype and are zero "
            f"now, {count:,} of them in {name}{keep}"
        )


def _check_push(
    options: Options,
    plan: Plan,
    out: str | None,
    push: str | None,
    *,
    in_place: bool,
    private: bool,
    create_pr: bool,
) -> None:
    """Raise UsageError for options that do not go with --push, or only with it."""
    if push is None:
        if private or create_pr:
            raise UsageError(
                "options-exclude-each-other",
                "--private" if private else "--create-pr",
                expected="--push beside it",
            )
        return
    link = options.link if options.link != "auto" else None
    given = {"--out": out, "--in-place": in_place or None, "--link": link}
    for option, value in {**given, "--check": options.check or None}.items():
        if value is not None:
            raise UsageError(
                "options-exclude-each-other",
                "--push",
                expected="either --push or an output on this machine",
                got=option,
            )
    check_destination(*_destination(push))
    check_pushable(plan)


def _destination(push: str) -> tuple[str, str | None]:
    """Return the repository and the branch that ``--push`` names."""
    repository, at, branch = push.partition("@")
    return repository, branch if at else None


def _check_options(
    options: Options,
    out: str | None,
    plan_out: str | None,
    push: str | None,
    *,
    dry_run: bool,
    in_place: bool,
) -> None:
    """Raise UsageError for options that do not go together."""
    if in_place:
        link = options.link if options.link != "auto" else None
        given = {"--out": out, "--plan-out": plan_out, "--link": link}
        for option, value in {**given, "--carry": options.carry or None}.items():
            if value is not None:
                raise UsageError(
                    "options-exclude-each-other",
                    "--in-place",
                    expected="either --in-place or another output",
                    got=option,
                )
    elif push is not None:
        return
    elif out is None and not dry_run and plan_out is None:
        raise UsageError(
            "no-output",
            "--out",
            expected="a path to write",
            hint="or use --in-place, --push, --dry-run or --plan-out, where the command has it",
        )
    elif out is None and not dry_run and options != Options():
        raise UsageError(
            "options-exclude-each-other",
            "--plan-out",
            expected="--out too, for options that say how to write it",
            got="--link, --check, --digest, --model-card or --carry without an output",
            hint="give them to vita-ckpt apply",
        )
    elif (
        out is not None
        and plan_out is not None
        and os.path.abspath(out) == (os.path.abspath(plan_out))
    ):
        raise UsageError("outputs-collide", out, expected="two paths for two outputs")


def _note_leftovers(settings: Settings, out: str) -> None:
    for leftover in lifecycle.leftovers(out):
        if leftover.fate == "dead":
            path, size = render.path(leftover.path), render.size(leftover.nbytes)
            settings.note(f"a killed run left {path} ({size}): vita-ckpt clean removes it")


def _works(settings: Settings, plan: Plan) -> bool:
    """Verify the target of a plan by a forward pass; what is wrong goes to stderr."""
    with shown_progress(settings.quiet) as on_progress:
        verification = verify(plan.target(), on_progress=on_progress, stores=settings.stores)
    _base, *said = verification_lines(verification)
    for line in ("the result, which is not written yet", *said):
        settings.note(line)
    if has_errors(verification.findings):
        console.warn("error: verification-failed: nothing was written")
        return False
    return True


def _earlier_surgery(base: str) -> str | None:
    """Return what can be undone now, for a person; None if nothing can."""
    try:
        undoable = lifecycle.last_undoable(base)
    except InputError as error:
        return f"an earlier surgery ({error.code})"
    return None if undoable is None else f"{undoable.operation} ({undoable.time})"


def _notes_on_undo(summary: Summary, earlier: str | None, *, dry_run: bool) -> Iterator[str]:
    if earlier is not None and _changes_files(summary):
        yield (
            f"{'this would replace' if dry_run else 'this replaced'} what was kept to undo "
            f"{earlier}: only the last surgery in place can be undone; the same command with --out "
            "PATH instead of --in-place keeps both"
        )


def _changes_files(summary: Summary) -> bool:
    return bool(summary.patched or summary.rewritten or summary.files)


def _in_place_lines(summary: Summary, written: str | None) -> list[str]:
    lines = _changed_files(summary)
    if not _changes_files(summary):
        return ["nothing to change"]
    size, base = render.size(summary.bytes_to_write), render.path(summary.base or os.curdir)
    if written is None:
        return [*lines, printable(f"would change {base} in place ({size})")]
    undo = f"vita-ckpt undo {shlex.quote(base)}"
    return [*lines, printable(f"changed {base} in place ({size}); {undo} undoes it")]


def _changed_files(summary: Summary) -> list[str]:
    """Render the changes of a plan, and the weight files that are written."""
    lines = summary_lines(summary)
    named = {file.name for file in summary.files}
    for what, files in (("patched", summary.patched), ("rewritten", summary.rewritten)):
        lines += [
            printable(f"{what}: {file.name} ({render.size(file.bytes)})")
            for file in files
            if file.name not in named
        ]
    return lines


def _lines(summary: Summary, written: str | None) -> list[str]:
    lines = _changed_files(summary)
    if summary.carried:
        size = render.size(sum(file.bytes for file in summary.carried))
        names = ", ".join(file.name for file in summary.carried)
        files = render.counted(len(summary.carried), "file")
        lines.append(printable(f"carried: {files} ({size}): {names}"))
    for name, reason in summary.left_out.items():
        lines.append(printable(f"not carried: {name}: {reason}"))
    size = render.size(summary.bytes_to_write)
    lines.append(
        f"wrote {printable(render.path(written))} ({size})" if written else f"would write {size}"
    )
    return lines


def summary_lines(summary: Summary) -> list[str]:
    """Render what a plan changes: tensors (by part, where they are many), config and files."""
    lines: list[str] = []
    changes = summary.tensors
    if len(changes) > _MOST_ROWS:
        groups = _grouped(changes, _ALONE.get(summary.operation))
        lines.append(render.table(groups, ("part", "change", "tensors", "dtype"), "  r "))
    elif changes:
        rows = [(c.name, c.change, _arrow(c.before, c.after)) for c in changes]
        lines.append(render.table(rows, ("tensor", "change", "dtype and shape")))
    for key in summary.config:
        lines.append(
            printable(f"config.json: {key.key} {key.before!r} → {key.after!r}: {key.reason}")
        )
    for file in summary.files:
        lines.append(printable(f"{file.change}: {file.name}: {file.reason}"))
    return lines


def _grouped(
    changes: Sequence[PlannedTensor], alone: str | None
) -> list[tuple[str, str, int, str]]:
    """Count the tensors of each part by their change; ``alone`` is the only part there is."""
    groups: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        part = parts.LABELS[alone or parts.part_of(change.name)]
        side = change.after or change.before
        groups.setdefault((part, change.change), []).append(side.dtype if side is not None else "")
    return [
        (part, change, len(dtypes), ", ".join(sorted(set(dtypes))))
        for (part, change), dtypes in sorted(groups.items())
    ]


def _arrow(before: Tensor | None, after: Tensor | None) -> str:
    old, new = (f"{side.dtype} {list(side.shape)}" if side else "" for side in (before, after))
    if old == new:
        return old
    return " → ".join(filter(None, (old, new)))
