"""``vita-ckpt apply``: run a saved plan."""

from __future__ import annotations

import click

from vita_ckpt.api import surgery as api
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.surgery import run_plan


@click.command("apply")
@click.argument("plan_file", metavar="FILE", type=click.Path())
@click.option("--out", type=click.Path(), metavar="PATH", help="What to write; must be new.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan's summary as JSON.")
@click.pass_obj
def command(
    settings: Settings, plan_file: str, out: str | None, dry_run: bool, as_json: bool
) -> None:
    """Run a plan that --plan-out saved; refused if one of its inputs has changed since."""
    plan = api.load_plan(plan_file)
    run_plan(settings, plan, out=out, dry_run=dry_run, plan_out=None, as_json=as_json)
