"""``vita-ckpt swap-tower``: another vision tower in a checkpoint."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.tower import plan_swap_tower
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE, key_option
from vita_ckpt.cli.plan_options import (
    bad_values_option,
    begin,
    run_plan,
    seed_option,
    surgery_options,
    verify_option,
)
from vita_ckpt.core.anatomy import projectors


@click.command("swap-tower")
@click.option(
    "--base",
    required=True,
    type=ANYWHERE,
    metavar="CKPT",
    help="The checkpoint, or a plain Qwen2, Mixtral or Mistral model.",
)
@click.option(
    "--tower",
    required=True,
    type=ANYWHERE,
    metavar="PATH",
    help="A tower directory or file, a CLIP, SigLIP or InternVL checkpoint, or a VITA checkpoint.",
)
@click.option(
    "--tower-path",
    metavar="STR",
    help="What config.json will name as mm_vision_tower.  [default: PATH as given]",
)
@click.option(
    "--tower-config",
    type=ANYWHERE,
    metavar="PATH",
    help="The tower's config.json, if it is not beside its weights.",
)
@click.option(
    "--projector",
    type=ANYWHERE,
    metavar="keep|reinit|FILE",
    help="Keep it, draw it anew, or take a trained one.  [default: keep, if it still fits]",
)
@click.option(
    "--projector-type",
    metavar="TYPE",
    shell_complete=completion.one_of(projectors.spellings(layers="2")),
    help="mlp2x_gelu, linear, …  [default: the base's]",
)
@seed_option
@click.option(
    "--use-s2/--no-s2", default=None, help="Run SigLIP at several scales.  [default: as it is]"
)
@click.option("--s2-scales", metavar="LIST", help="Scales of S2 in pixels, as 384,768,1152.")
@verify_option("swapped")
@key_option
@bad_values_option
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    base: str,
    tower: str,
    tower_path: str | None,
    tower_config: str | None,
    projector: str | None,
    projector_type: str | None,
    seed: int,
    use_s2: bool | None,
    s2_scales: str | None,
    verify: bool,
    key: str | None,
    allow_bad_values: bool,
    **run: Any,
) -> int:
    """Give a checkpoint another vision tower.

    This is what upstream's initialize_vision_modules should do. The old tower's tensors are
    removed, the new tower's are added under upstream's names in the base's dtype, and the vision
    config follows. All other parts stay as they are. If the projector no longer fits, choose one:
    --projector FILE or --projector reinit.
    """
    begin(settings, base, run)
    plan = plan_swap_tower(
        base,
        tower,
        tower_path=tower_path,
        tower_config=tower_config,
        projector=projector,
        projector_type=projector_type,
        seed=seed,
        use_s2=use_s2,
        s2_scales=s2_scales,
        key=key,
        allow_bad_values=allow_bad_values,
        stores=settings.stores,
    )
    return run_plan(settings, plan, verify_first=verify, **run)
