"""``vita-ckpt push``: a checkpoint to the hub, once it is known to be sound."""

from __future__ import annotations

import click

from vita_ckpt.api.push import push
from vita_ckpt.cli import console
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.pushed import notes_on, pushed_line, say_refused
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.errors import escaped


@click.command("push")
@click.argument("directory", metavar="DIR", type=LOCAL)
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Create the repository private.")
@click.option("--revision", metavar="BRANCH", help="The branch, created from main if it is new.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--force", is_flag=True, help="Upload it although validate finds errors.")
@click.option("--message", metavar="TEXT", help="The commit's message.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema push-v1).")
@click.pass_obj
def command(
    settings: Settings,
    directory: str,
    repository: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    force: bool,
    message: str | None,
    as_json: bool,
) -> int:
    """Upload a checkpoint to the Hugging Face hub.

    DIR is uploaded to the model repository ORG/NAME. It is validated first. With errors nothing is
    uploaded (exit 1). Stale weights, training state, other checkpoints, partial downloads, hidden
    files and links out of the directory are left out, and each is listed. One commit holds
    everything and removes the weights of an earlier push. After an interruption, run the same
    command again to continue. The model card says where the checkpoint comes from. Log in first:
    hf auth login, or HF_TOKEN.
    """
    done = push(
        directory,
        repository,
        private=private,
        revision=revision,
        create_pr=create_pr,
        force=force,
        message=message,
        stores=settings.stores,
    )
    if as_json:
        report = {"format": "vita-ckpt-push", "version": 1, **done.to_dict()}
        console.say_done(json_text(report))
    if done.url is None:
        say_refused(done, "--force uploads it", in_json=as_json)
        return 1
    for note in notes_on(done):
        settings.note(note)
    if not as_json:
        console.say_done(escaped(pushed_line(done)))
    return 0
