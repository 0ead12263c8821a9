"""``vita-ckpt extract-audio-encoder``: the audio encoder of a checkpoint as a directory."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.audio import plan_extract_audio_encoder
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import plan_options, run_plan


@click.command("extract-audio-encoder")
@click.option(
    "--from", "source", required=True, type=ANYWHERE, metavar="CKPT", help="A VITA checkpoint."
)
@click.option(
    "--audio-encoder",
    type=ANYWHERE,
    metavar="DIR",
    help="The directory that it was made with.  [default: what the checkpoint leads to]",
)
@plan_options
@click.pass_obj
def command(settings: Settings, /, source: str, audio_encoder: str | None, **run: Any) -> None:
    """Write the audio encoder to a directory of its own.

    Upstream loads it as mm_audio_encoder. train.yaml and global_cmvn are those of the directory
    that it was made with. final.pt holds the checkpoint's own tensors, the adapter among them.
    """
    plan = plan_extract_audio_encoder(source, audio_encoder=audio_encoder, stores=settings.stores)
    run_plan(settings, plan, **run)
