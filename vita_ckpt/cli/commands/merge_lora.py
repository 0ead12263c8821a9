"""``vita-ckpt merge-lora``: a LoRA run into the checkpoint that it was trained on."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.lora import plan_merge_lora
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import (
    bad_values_option,
    begin,
    run_plan,
    surgery_options,
    verify_option,
)


@click.command("merge-lora")
@click.option(
    "--base",
    type=ANYWHERE,
    metavar="CKPT",
    help="The checkpoint that the run was trained on; without --adapter, one that was saved with "
    "its deltas unmerged.  [default: what the run names, if it is here or in the hub's cache]",
)
@click.option(
    "--adapter",
    type=ANYWHERE,
    metavar="RUN",
    help="The LoRA run: adapter_config.json, adapter_model, non_lora_trainables.bin; or a training "
    "state of one, below the run.",
)
@click.option(
    "--dtype",
    shell_complete=completion.dtypes,
    metavar="DTYPE",
    help="Merge in f32, bf16 or f16, and write everything in it; f16 gives what upstream's loader "
    "holds.  [default: the base's]",
)
@click.option(
    "--tower",
    type=ANYWHERE,
    metavar="DIR",
    help="The vision tower, where the base is a plain language model.  [default: what the run's "
    "config.json names]",
)
@click.option(
    "--adapter-config",
    type=ANYWHERE,
    metavar="FILE",
    help="Without --adapter: the adapter_config.json of the run.  [default: the one beside it]",
)
@click.option(
    "--lora-alpha",
    type=float,
    metavar="N",
    help="Without --adapter and any adapter_config.json: the run's alpha.",
)
@click.option("--rslora", is_flag=True, help="Beside --lora-alpha: the run was one with rslora.")
@verify_option("merged")
@bad_values_option
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    base: str | None,
    adapter: str | None,
    dtype: str | None,
    tower: str | None,
    adapter_config: str | None,
    lora_alpha: float | None,
    rslora: bool,
    verify: bool,
    allow_bad_values: bool,
    **run: Any,
) -> int:
    """Merge a LoRA run into the model it was trained on.

    The result equals what peft computes, bit for bit. Everything else that was trained is merged
    too: projector, tower, biases, embeddings and head. Every setting of the run is followed, or
    refused by name. The model is never loaded: memory is bounded by the largest weight. The output
    is a new directory, which is complete or does not exist, or the checkpoint itself (--in-place).
    """
    if base is not None:
        begin(settings, base, run)
    plan = plan_merge_lora(
        base,
        adapter,
        dtype=dtype,
        tower=tower,
        adapter_config=adapter_config,
        lora_alpha=lora_alpha,
        use_rslora=rslora,
        allow_bad_values=allow_bad_values,
        stores=settings.stores,
    )
    return run_plan(settings, plan, verify_first=verify, **run)
