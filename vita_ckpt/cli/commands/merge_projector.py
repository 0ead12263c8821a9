"""``vita-ckpt merge-projector``: a trained projector into a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.projector import plan_merge_projector
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE, key_option
from vita_ckpt.cli.plan_options import (
    bad_values_option,
    begin,
    run_plan,
    surgery_options,
    verify_option,
)


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
    shell_complete=completion.dtypes,
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
@verify_option("merged")
@key_option
@bad_values_option
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
    allow_bad_values: bool,
    **run: Any,
) -> int:
    """Merge a trained mm_projector into a checkpoint.

    Every other tensor stays as it is. Names and shapes are first checked against the projector type
    and the model's widths. The output is a new directory, which is complete or does not exist, or
    the checkpoint itself (--in-place). A plain language model as the base becomes a VITA
    checkpoint. This needs the run's config.json and its vision tower.
    """
    begin(settings, base, run)
    plan = plan_merge_projector(
        base,
        adapter,
        dtype=dtype,
        extras=extras,
        tower=tower,
        key=key,
        allow_bad_values=allow_bad_values,
        stores=settings.stores,
    )
    return run_plan(settings, plan, verify_first=verify, **run)
