"""``vita-ckpt extract-tower``: the vision tower of a checkpoint as a directory of its own."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.tower import plan_extract_tower
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import plan_options, run_plan


@click.command("extract-tower")
@click.option(
    "--from",
    "source",
    required=True,
    type=ANYWHERE,
    metavar="CKPT",
    help="A VITA checkpoint, or any checkpoint that holds a vision tower.",
)
@click.option(
    "--tower-config",
    type=ANYWHERE,
    metavar="PATH",
    help="The tower's config.json or directory.  [default: what the checkpoint leads to]",
)
@plan_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    source: str,
    tower_config: str | None,
    **run: Any,
) -> None:
    """Write the vision tower to a directory of its own.

    transformers and upstream can load that directory. Its config.json comes from the tower's
    directory, from a copy in the checkpoint, or from the tensors where they determine it. EVA-CLIP
    has no config.json: upstream opens its weights file.
    """
    plan = plan_extract_tower(source, tower_config=tower_config, stores=settings.stores)
    run_plan(settings, plan, **run)
