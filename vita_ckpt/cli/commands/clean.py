"""``vita-ckpt clean``: what runs that were killed left behind."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
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
@click.pass_obj
def command(
    settings: Settings, paths: tuple[str, ...], undo: bool, foreign_journal: bool, dry_run: bool
) -> None:
    """Remove what interrupted runs left behind.

    PATH is a checkpoint, a directory of checkpoints, or an output that was never finished. The
    default is the working directory. Your own runs' leftovers in the directory for temporary files
    are removed too. Files of a process that is still running, or that ran on another host, are
    kept.
    """
    for path in paths or (".",):
        for leftover, gone in lifecycle.clean(path, dry_run=dry_run):
            what = f"{render.path(leftover.path)} ({render.size(leftover.nbytes)})"
            if gone:
                console.say_done(printable(f"{'would remove' if dry_run else 'removed'} {what}"))
            else:
                settings.note(f"kept {what}: {_WHY_NOT[leftover.fate]}")
        if foreign_journal:
            for journal, nbytes in lifecycle.drop_foreign(path, dry_run=dry_run):
                what = f"{render.path(journal)} ({render.size(nbytes)})"
                click.echo(printable(f"{'would remove' if dry_run else 'removed'} {what}"))
        if undo:
            _drop_undo(path, dry_run)


def _drop_undo(path: str, dry_run: bool) -> None:
    if dry_run:
        undoable = lifecycle.last_undoable(path)
        nbytes = undoable.nbytes if undoable is not None else 0
    else:
        nbytes = lifecycle.drop_undo(path)
    if nbytes:
        what = f"the undo data of {render.path(path)} ({render.size(nbytes)})"
        console.say_done(printable(f"{'would remove' if dry_run else 'removed'} {what}"))
