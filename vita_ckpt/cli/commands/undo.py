"""``vita-ckpt undo``: the state before the last in-place surgery."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.plan_options import say_kept
from vita_ckpt.errors import printable


@click.command("undo")
@click.argument("checkpoint", type=LOCAL)
@click.option(
    "--force",
    is_flag=True,
    help="Undo even what has changed since, trust a journal that you did not sign for this "
    "directory, and take over from a process of another host.",
)
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, force: bool) -> None:
    """Undo the last surgery in place, bit for bit.

    If that surgery was interrupted, only it is undone. Files that have changed since are not
    overwritten without --force. An undo cannot itself be undone.
    """
    found = lifecycle.undo(checkpoint, force=force)
    say_kept(settings, found.kept)
    what = "which had died in the middle" if found.recovered else "undone"
    path = render.path(found.path)
    console.say_done(
        printable(f"{path} is as it was before {found.operation} ({found.time}), {what}")
    )
