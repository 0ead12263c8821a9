"""``vita-ckpt undo``: the state before the last in-place surgery."""

from __future__ import annotations

import click

from vita_ckpt.api import lifecycle
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.plan_options import say_put_back
from vita_ckpt.cli.progress import shown_progress


@click.command("undo")
@click.argument("checkpoint", type=LOCAL)
@click.option(
    "--force",
    is_flag=True,
    help="Undo even what has changed since, trust a journal that you did not sign for this "
    "directory, and take over from a process of another host.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema put-back-v1).")
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, force: bool, as_json: bool) -> None:
    """Undo the last surgery in place, bit for bit.

    If that surgery was interrupted, only it is undone. Files that have changed since are not
    overwritten without --force. An undo cannot itself be undone.
    """
    with shown_progress(settings.quiet) as on_progress:
        found = lifecycle.undo(checkpoint, force=force, on_progress=on_progress)
    say_put_back(settings, checkpoint, found, as_json=as_json)
