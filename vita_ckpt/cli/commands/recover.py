"""``vita-ckpt recover``: a checkpoint whole again after an in-place surgery died."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.plan_options import say_kept
from vita_ckpt.errors import printable


@click.command("recover")
@click.argument("checkpoint", type=LOCAL)
@click.option(
    "--force",
    is_flag=True,
    help="Trust a journal that you did not sign for this directory, as in a checkpoint of yours "
    "that was moved or restored; take over from a process of another host, which must be dead; "
    "and put back what is damaged.",
)
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, force: bool) -> None:
    """Restore a checkpoint whose surgery was interrupted.

    A surgery in place is rolled back. An interrupted undo is finished. A complete checkpoint stays
    as it is. A journal that this machine did not write is followed only with --force;
    'vita-ckpt clean --foreign-journal' removes it.
    """
    found = lifecycle.recover(checkpoint, force=force)
    if found is None:
        console.say_done(printable(f"{render.path(checkpoint)} is whole: nothing to do"))
        return
    say_kept(settings, found.kept)
    path = render.path(found.path)
    console.say_done(printable(f"{path} is as it was before {found.operation} ({found.time})"))
