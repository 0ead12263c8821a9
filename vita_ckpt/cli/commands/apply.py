"""``vita-ckpt apply``: run a saved plan."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api import apply as api
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import LOCAL
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options


@click.command("apply")
@click.argument("plan_file", metavar="FILE", type=LOCAL)
@surgery_options
@click.pass_obj
def command(settings: Settings, /, plan_file: str, **run: Any) -> int:
    """Run a plan that --plan-out saved.

    The plan is refused if one of its inputs has changed since it was saved.
    """
    begin(settings, api.base_of(plan_file), run)
    return run_plan(settings, api.load_plan(plan_file, stores=settings.stores), **run)
