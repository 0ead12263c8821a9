"""``vita-ckpt clean``: what runs that were killed left behind."""

from __future__ import annotations

from collections.abc import Iterator

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.errors import printable

_WHY_NOT = {
    "alive": "its process is at work",
    "elsewhere": "its process ran where it cannot be looked for from here",
    "dead": "it cannot be removed",
}


@click.command("clean")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=LOCAL)
@click.option(
    "--undo", is_flag=True, help="Remove what is kept to undo the last in-place surgery of PATH."
)
@click.option(
    "--foreign-journal",
    is_flag=True,
    help="Remove journals in PATH that you did not sign for this directory, or that are damaged. "
    "Its files stay as they are.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema clean-v1).")
@click.pass_obj
def command(
    settings: Settings,
    paths: tuple[str, ...],
    undo: bool,
    foreign_journal: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove what interrupted runs left behind.

    PATH is a checkpoint, a directory of checkpoints, or an output that was never finished. The
    default is the working directory. Your own runs' leftovers in the directory for temporary files
    are removed too. Files of a process that is still running, or that ran on another host, are
    kept.
    """
    found: list[dict[str, object]] = []
    for one in _cleaned(paths or (".",), undo, foreign_journal, dry_run):
        found.append(one)
        if as_json:
            continue
        what = "the undo data of " if one["what"] == "undo-data" else ""
        text = f"{what}{render.path(str(one['path']))} ({render.size(int(str(one['bytes'])))})"
        if one["kept"] is None:
            console.say_done(printable(f"{'would remove' if dry_run else 'removed'} {text}"))
        else:
            settings.note(f"kept {text}: {one['kept']}")
    if as_json:
        report = {"format": "vita-ckpt-clean", "version": 1, "dry_run": dry_run, "found": found}
        console.say_done(json_text(report))
    elif not found:
        settings.note("nothing to remove")


def _cleaned(
    paths: tuple[str, ...], undo: bool, foreign_journal: bool, dry_run: bool
) -> Iterator[dict[str, object]]:
    """Yield what is removed, or would be, and what is kept and why."""
    for path in paths:
        for leftover, gone in lifecycle.clean(path, dry_run=dry_run):
            kept = None if gone else _WHY_NOT[leftover.fate]
            yield _entry("leftover", leftover.path, leftover.nbytes, kept)
        if foreign_journal:
            for journal, nbytes in lifecycle.drop_foreign(path, dry_run=dry_run):
                yield _entry("journal", journal, nbytes)
        if undo:
            nbytes = _drop_undo(path, dry_run)
            if nbytes:
                yield _entry("undo-data", path, nbytes)


def _entry(what: str, path: str, nbytes: int, kept: str | None = None) -> dict[str, object]:
    return {"what": what, "path": path, "bytes": nbytes, "kept": kept}


def _drop_undo(path: str, dry_run: bool) -> int:
    if not dry_run:
        return lifecycle.drop_undo(path)
    undoable = lifecycle.last_undoable(path)
    return undoable.nbytes if undoable is not None else 0
