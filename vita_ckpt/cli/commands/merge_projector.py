"""``vita-ckpt merge-projector``: a trained projector into a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api import plans
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options


@click.command("merge-projector")
@click.option(
    "--base",
    required=True,
    type=ANYWHERE,
    metavar="CKPT",
    help="The checkpoint to put it into.",
)
@click.option(
    "--adapter",
    required=True,
    type=ANYWHERE,
    metavar="FILE|DIR",
    help="mm_projector.bin, its run, a LoRA run, or another checkpoint.",
)
@click.option(
    "--dtype",
    metavar="DTYPE",
    help="Write the projector as f32, bf16 or f16.  [default: the base's]",
)
@click.option(
    "--with",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Take along other tensors of the adapter, such as embed_tokens.",
)
@click.option(
    "--tower",
    type=ANYWHERE,
    metavar="PATH",
    help="The vision tower, for a base without one.  [default: what the run's config names]",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Run the merged model once before a byte is written; a failure leaves no output.",
)
@click.option(
    "--key",
    metavar="PATH",
    help="The state dict to read in a file of torch.save with several, as model or ema.0.",
)
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    base: str,
    adapter: str,
    dtype: str | None,
    extras: tuple[str, ...],
    tower: str | None,
    verify: bool,
    key: str | None,
    **run: Any,
) -> int:
    """Put the mm_projector of an adapter into a checkpoint; every other tensor stays as it is.

    Names and shapes are checked against the projector type and the model's widths first. The output
    is a new directory, complete or not there at all, or the checkpoint itself (--in-place). A base
    that is a plain language model becomes a VITA checkpoint: the run's config.json and its vision
    tower are needed then.
    """
    begin(settings, base, run)
    plan = plans.plan_merge_projector(
        base, adapter, dtype=dtype, extras=extras, tower=tower, key=key, stores=settings.stores
    )
    return run_plan(settings, plan, verify_first=verify, **run)
