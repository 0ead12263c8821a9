"""``vita-ckpt recover``: a checkpoint whole again after an in-place surgery died."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli import console, render
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.errors import printable


@click.command("recover")
@click.argument("checkpoint", type=LOCAL)
@click.option(
    "--force", is_flag=True, help="Take over from a process of another host, which must be dead."
)
def command(checkpoint: str, force: bool) -> None:
    """Make CHECKPOINT whole that a surgery in place left in the middle: as it was before.

    An undo that died is brought to its end. A checkpoint that is whole stays as it is.
    """
    found = lifecycle.recover(checkpoint, force=force)
    if found is None:
        console.say_done(printable(f"{render.path(checkpoint)} is whole: nothing to do"))
        return
    path = render.path(found.path)
    console.say_done(printable(f"{path} is as it was before {found.operation} ({found.time})"))
