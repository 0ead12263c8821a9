"""What every surgery command shares: options for the plan, its rendering, running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from vita_ckpt.api import surgery as api
from vita_ckpt.api.running import verify
from vita_ckpt.cli import render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.verify import verification_lines
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.report import has_errors
from vita_ckpt.errors import UsageError, printable

_Command = Callable[..., Any]

# More changed tensors than this are shown by part.
_MOST_ROWS: Final = 16


def plan_options(command: _Command) -> _Command:
    """``--out``, ``--dry-run``, ``--plan-out`` and ``--json``, as every surgery takes them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the plan's summary as JSON."),
        click.option(
            "--plan-out",
            type=click.Path(),
            metavar="FILE",
            help="Save the plan for 'vita-ckpt apply'; without --out nothing else is written.",
        ),
        click.option(
            "--dry-run", is_flag=True, help="Print what would be done, and write nothing."
        ),
        click.option(
            "--out", type=click.Path(), metavar="PATH", help="What to write; must be new."
        ),
    ):
        command = option(command)
    return command


def run_plan(
    settings: Settings,
    plan: Plan,
    *,
    out: str | None,
    dry_run: bool,
    plan_out: str | None,
    as_json: bool,
    verify_first: bool = False,
) -> int:
    """Save, show and run a plan as its options say; the exit code.

    With ``verify_first`` its target is verified by a forward pass before anything is written.
    """
    if out is None and not dry_run and plan_out is None:
        raise UsageError(
            "no-output", "--out", expected="a path to write", hint="or use --dry-run or --plan-out"
        )
    summary = api.summarize(plan)
    written = None
    if plan_out is not None:
        api.check_plan_path(plan, plan_out)
    if out is not None and not dry_run:
        api.check_output(plan, out)
    if verify_first and not _works(settings, plan):
        return 1
    if out is None or dry_run:
        api.check_plan(plan)
    else:
        with render.progress(summary["bytes_to_write"], settings.quiet) as step:
            written = api.apply(plan, out, progress=step)
    if plan_out is not None:
        api.save_plan(plan, plan_out)
    # Said last: where something fails, the error is the only line.
    for note in plan.notes:
        settings.note(note)
    if plan_out is not None:
        settings.note(f"plan saved: vita-ckpt apply {plan_out} --out PATH")
    if as_json:
        render.echo_json({**summary, "out": written})
    else:
        click.echo("\n".join(_lines(summary, written)))
    return 0


def _works(settings: Settings, plan: Plan) -> bool:
    """Verify the target of a plan by a forward pass; what is wrong goes to stderr."""
    verification = verify(plan.target())
    for line in verification_lines(verification):
        settings.note(line)
    if has_errors(verification.findings):
        click.echo("error: verification-failed: nothing was written", err=True)
        return False
    return True


def _lines(summary: dict[str, Any], written: str | None) -> list[str]:
    lines = summary_lines(summary)
    changed = {file["name"] for file in summary["files"]}
    for file in summary["rewritten"]:
        if file["name"] in changed:
            continue
        lines.append(printable(f"rewritten: {file['name']} ({render.size(file['bytes'])})"))
    if summary["carried"]:
        size = render.size(sum(file["bytes"] for file in summary["carried"]))
        names = ", ".join(file["name"] for file in summary["carried"])
        lines.append(printable(f"carried: {len(summary['carried'])} files ({size}): {names}"))
    for file in summary["left_out"]:
        lines.append(printable(f"not carried: {file['name']}: {file['reason']}"))
    size = render.size(summary["bytes_to_write"])
    lines.append(
        f"wrote {printable(render.path(written))} ({size})" if written else f"would write {size}"
    )
    return lines


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """What a plan changes: tensors (by part, where they are many), config and files."""
    lines: list[str] = []
    changes = summary["tensors"]
    if len(changes) > _MOST_ROWS:
        lines.append(
            render.table(_grouped(changes), ("part", "change", "tensors", "dtype"), "  r ")
        )
    elif changes:
        rows = [(c["name"], c["change"], _arrow(c["before"], c["after"])) for c in changes]
        lines.append(render.table(rows, ("tensor", "change", "dtype and shape")))
    for change in summary["config"]:
        before, after = change["before"], change["after"]
        lines.append(
            printable(f"config.json: {change['key']} {before!r} → {after!r}: {change['reason']}")
        )
    for file in summary["files"]:
        lines.append(printable(f"{file['change']}: {file['name']}: {file['reason']}"))
    return lines


def _grouped(changes: list[dict[str, Any]]) -> list[tuple[str, str, int, str]]:
    """How many tensors of each part change in which way."""
    groups: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        part = parts.LABELS[parts.part_of(change["name"])]
        side = change["after"] or change["before"]
        groups.setdefault((part, change["change"]), []).append(side["dtype"])
    return [
        (part, change, len(dtypes), ", ".join(sorted(set(dtypes))))
        for (part, change), dtypes in sorted(groups.items())
    ]


def _arrow(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    old, new = (f"{side['dtype']} {side['shape']}" if side else "" for side in (before, after))
    if old == new:
        return old
    return " → ".join(filter(None, (old, new)))
