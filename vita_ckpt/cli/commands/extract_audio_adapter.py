"""``vita-ckpt extract-audio-adapter``: the audio adapter of a checkpoint as a file."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.audio import plan_extract_audio_adapter
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import plan_options, run_plan


@click.command("extract-audio-adapter")
@click.option(
    "--from",
    "source",
    required=True,
    type=ANYWHERE,
    metavar="CKPT",
    help="A checkpoint, the run of an audio adapter, or a weight file.",
)
@plan_options
@click.pass_obj
def command(settings: Settings, /, source: str, **run: Any) -> None:
    """Write the audio adapter of a checkpoint to a file.

    The .bin loads as upstream's pretrain_audio_mlp_adapter. Unlike the trainer's it has the running
    statistics of batch norms.
    """
    plan = plan_extract_audio_adapter(source, stores=settings.stores)
    run_plan(settings, plan, **run)
