"""``vita-ckpt extract-projector``: the projector of a checkpoint as a file."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.projector import plan_extract_projector
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE, key_option
from vita_ckpt.cli.plan_options import plan_options, run_plan


@click.command("extract-projector")
@click.option(
    "--from",
    "source",
    required=True,
    type=ANYWHERE,
    metavar="CKPT",
    help="A checkpoint, a projector or LoRA run, or a weight file.",
)
@click.option(
    "--bare", is_flag=True, help="Name tensors 0.weight, not model.mm_projector.0.weight."
)
@click.option(
    "--with",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Take other tensors along, by a component of their name; image_newline comes by itself "
    "where the model needs it.",
)
@key_option
@plan_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    source: str,
    bare: bool,
    extras: tuple[str, ...],
    key: str | None,
    **run: Any,
) -> None:
    """Write the mm_projector of a checkpoint to a file.

    The suffix decides the format: .safetensors or .bin. The .bin has the trainer's format: it loads
    with torch.load(weights_only=True) and as upstream's pretrain_mm_mlp_adapter. Only the projector
    is read.
    """
    plan = plan_extract_projector(source, bare=bare, extras=extras, key=key, stores=settings.stores)
    run_plan(settings, plan, **run)
