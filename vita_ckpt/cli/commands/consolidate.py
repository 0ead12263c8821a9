"""``vita-ckpt consolidate``: what a training run leaves on disk as a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.consolidate import check_masters
from vita_ckpt.api.plans.consolidate import plan_consolidate
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import plan_options, run_plan
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.core.options import TRAINED_WEIGHTS, TrainedWeights


@click.command("consolidate")
@click.argument("state", type=ANYWHERE, metavar="STATE")
@click.option(
    "--tag",
    metavar="NAME",
    help="Which state of a run.  [default: what 'latest' names, or the only one]",
)
@click.option(
    "--base",
    type=ANYWHERE,
    metavar="CKPT",
    help="The checkpoint that was trained, for parameters that were left out of the state.",
)
@click.option(
    "--config",
    type=ANYWHERE,
    metavar="PATH",
    help="The model's config.json or its directory.  [default: the run's, or the base's]",
)
@click.option(
    "--weights",
    type=click.Choice(TRAINED_WEIGHTS),
    default="masters",
    show_default=True,
    help="Take the optimizer's float32 weights, or the copies that the model ran with.",
)
@click.option(
    "--dtype",
    shell_complete=completion.dtypes,
    metavar="DTYPE",
    help="Write floating tensors as f32, bf16 or f16.  [default: as they are]",
)
@plan_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    state: str,
    tag: str | None,
    base: str | None,
    config: str | None,
    weights: TrainedWeights,
    dtype: str | None,
    **run: Any,
) -> int:
    """Turn the state of a training run into a checkpoint.

    STATE is a directory of DeepSpeed (global_stepN, or universal), of torch.distributed.checkpoint
    (FSDP, accelerate, torchtitan), or of shards that every rank wrote; the run above one of these;
    or the file of a wrapped model. torch is not needed. --out FILE.safetensors keeps the names of
    the model's state dict. Any other --out is a checkpoint directory, or for a LoRA run one that
    merge-lora takes. Masters are compared with the copies beside them: a sample always, all of
    them with --check.
    """
    out = run["out"]
    plan = plan_consolidate(
        state,
        base=base,
        config=config,
        dtype=dtype,
        weights=weights,
        tag=tag,
        as_file=out is not None and out.endswith(".safetensors"),
        stores=settings.stores,
    )
    if run["check"]:
        with shown_progress(settings.quiet) as on_progress:
            check_masters(plan, on_progress=on_progress, stores=settings.stores)
    return run_plan(settings, plan, **run)
