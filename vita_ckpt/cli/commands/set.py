"""``vita-ckpt set``: keys of the vision and audio config, the weights untouched."""

from __future__ import annotations

import os
from typing import Any

import click

from vita_ckpt.api.plans.config import parse_value, plan_set
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options
from vita_ckpt.core.anatomy.config_keys import LANGUAGE_KEYS, VISION_KEYS
from vita_ckpt.errors import UsageError


@click.command("set")
@click.argument("checkpoint", type=ANYWHERE)
@click.argument(
    "pairs",
    metavar="KEY=VALUE...",
    nargs=-1,
    required=True,
    shell_complete=completion.one_of((*VISION_KEYS, *LANGUAGE_KEYS), end="="),
)
@surgery_options
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, pairs: tuple[str, ...], **run: Any) -> int:
    """Set keys of the vision and audio config.

    For example, mm_vision_tower=PATH. Values are checked by the key's type: true, false and null
    are JSON's, and text is taken as it is. The weights are not changed. Keys that then disagree
    with them are reported.
    """
    begin(settings, checkpoint, run)
    return run_plan(settings, plan_set(checkpoint, _values(pairs), stores=settings.stores), **run)


def _values(pairs: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or key in values:
            raise UsageError(
                "invalid-setting",
                pair,
                expected="KEY=VALUE, each key once",
                got="a path" if os.path.exists(pair) else "",
                hint="CHECKPOINT comes first: vita-ckpt set CHECKPOINT KEY=VALUE --out DIR"
                if os.path.exists(pair)
                else "write it without spaces, such as mm_vision_tower=path/to/tower",
            )
        values[key] = parse_value(key, text)
    return values
