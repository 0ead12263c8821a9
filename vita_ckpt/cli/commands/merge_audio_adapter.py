"""``vita-ckpt merge-audio-adapter``: a trained audio adapter into a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.audio import plan_merge_audio_adapter
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options, verify_option


@click.command("merge-audio-adapter")
@click.option(
    "--base", required=True, type=ANYWHERE, metavar="CKPT", help="The checkpoint to put it into."
)
@click.option(
    "--adapter",
    required=True,
    type=ANYWHERE,
    metavar="FILE|DIR",
    help="audio_adpter.bin, its run, or another checkpoint.",
)
@verify_option("merged")
@surgery_options
@click.pass_obj
def command(settings: Settings, /, base: str, adapter: str, verify: bool, **run: Any) -> int:
    """Merge a trained audio adapter into a checkpoint.

    Every other tensor stays as it is. Names and shapes are first checked against the adapter of the
    checkpoint. The trainer's file has no running statistics of batch norms. The command keeps those
    of the checkpoint, and prints a note.
    """
    begin(settings, base, run)
    plan = plan_merge_audio_adapter(base, adapter, stores=settings.stores)
    return run_plan(settings, plan, verify_first=verify, **run)
