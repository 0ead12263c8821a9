"""``vita-ckpt recover``: a checkpoint whole again after an in-place surgery died."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.plan_options import say_put_back
from vita_ckpt.cli.progress import shown_progress


@click.command("recover")
@click.argument("checkpoint", type=LOCAL)
@click.option(
    "--force",
    is_flag=True,
    help="Trust a journal that you did not sign for this directory, as in a checkpoint of yours "
    "that was moved or restored. Take over from a process of another host, which must be dead. Put "
    "back what is damaged.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema put-back-v1).")
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, force: bool, as_json: bool) -> None:
    """Restore a checkpoint whose surgery was interrupted.

    A surgery in place is rolled back. An interrupted undo is finished. A complete checkpoint stays
    as it is. A journal that this machine did not write is followed only with --force;
    'vita-ckpt clean --foreign-journal' removes it.
    """
    with shown_progress(settings.quiet) as on_progress:
        found = lifecycle.recover(checkpoint, force=force, on_progress=on_progress)
    say_put_back(settings, checkpoint, found, as_json=as_json)
