"""``vita-ckpt swap-audio-encoder``: another audio encoder in a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.audio import plan_swap_audio_encoder
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, seed_option, surgery_options, verify_option


@click.command("swap-audio-encoder")
@click.option(
    "--base", required=True, type=ANYWHERE, metavar="CKPT", help="The checkpoint to put it into."
)
@click.option(
    "--audio-encoder",
    required=True,
    type=ANYWHERE,
    metavar="DIR",
    help="A directory with train.yaml, global_cmvn and final.pt.",
)
@click.option(
    "--audio-path",
    metavar="STR",
    help="What config.json will name as mm_audio_encoder.  [default: DIR as given]",
)
@click.option(
    "--adapter",
    type=ANYWHERE,
    metavar="keep|reinit|FILE",
    help="Keep it, draw it anew, or take a trained one.  [default: keep, if it still fits, else "
    "that of final.pt]",
)
@seed_option
@verify_option("swapped")
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    base: str,
    audio_encoder: str,
    audio_path: str | None,
    adapter: str | None,
    seed: int,
    verify: bool,
    **run: Any,
) -> int:
    """Give a checkpoint another audio encoder.

    The old encoder's tensors go. Those of final.pt come under upstream's names in the base's dtype,
    and mm_audio_encoder follows. All other parts stay as they are. A checkpoint without audio gets
    an encoder. An adapter that fits neither needs a decision: --adapter FILE or --adapter reinit.
    """
    begin(settings, base, run)
    plan = plan_swap_audio_encoder(
        base,
        audio_encoder,
        audio_path=audio_path,
        adapter=adapter,
        seed=seed,
        stores=settings.stores,
    )
    return run_plan(settings, plan, verify_first=verify, **run)
