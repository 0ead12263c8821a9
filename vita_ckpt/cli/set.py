"""``vita-ckpt set``: keys of the vision config, the weights untouched."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api import plans
from vita_ckpt.api import surgery as api
from vita_ckpt.cli import render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.surgery import plan_options, run_plan, summary_lines
from vita_ckpt.errors import UsageError
from vita_ckpt.surgery.config import parse_value


@click.command("set")
@click.argument("checkpoint", type=click.Path())
@click.argument("pairs", metavar="KEY=VALUE...", nargs=-1, required=True)
@click.option("--in-place", is_flag=True, help="Replace config.json in CHECKPOINT, in one step.")
@plan_options
@click.pass_obj
def command(
    settings: Settings,
    checkpoint: str,
    pairs: tuple[str, ...],
    in_place: bool,
    out: str | None,
    dry_run: bool,
    plan_out: str | None,
    as_json: bool,
) -> None:
    """Set keys of the vision config of CHECKPOINT, such as mm_vision_tower=PATH.

    Values are checked by the key's type: true, false and null are JSON's, text is taken as it is.
    The weights are not touched; what then disagrees with them is said.
    """
    plan = plans.plan_set(checkpoint, _values(pairs))
    if not in_place:
        run_plan(settings, plan, out=out, dry_run=dry_run, plan_out=plan_out, as_json=as_json)
        return
    if out is not None or plan_out is not None:
        raise UsageError(
            "options-exclude-each-other",
            "--in-place",
            expected="either --in-place or another output",
            got="--out" if out is not None else "--plan-out",
        )
    summary = api.summarize(plan)
    size = sum(file["bytes"] for file in summary["rewritten"])
    summary |= {"carried": [], "left_out": [], "bytes_to_write": size}
    written = None if dry_run else api.apply_in_place(plan)
    for note in plan.notes:
        settings.note(note)
    if as_json:
        render.echo_json({**summary, "out": written})
    else:
        lines = summary_lines(summary)
        click.echo("\n".join(lines) if lines else "nothing to change")


def _values(pairs: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or key in values:
            raise UsageError(
                "invalid-setting",
                pair,
                expected="KEY=VALUE, each key once",
                hint="vita-ckpt set CKPT mm_vision_tower=path/to/tower --out DIR",
            )
        values[key] = parse_value(key, text)
    return values
