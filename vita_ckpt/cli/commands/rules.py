"""``vita-ckpt rules``: what validate, verify and diff look at."""

from __future__ import annotations

from dataclasses import asdict

import click

from vita_ckpt.checks.rules import GROUPS, RULES
from vita_ckpt.cli import console, render
from vita_ckpt.errors import UsageError


@click.command("rules")
@click.argument("rule", required=False)
@click.option("--json", "as_json", is_flag=True, help="The table as JSON.")
def command(rule: str | None, as_json: bool) -> None:
    """List the rules, or explain one."""
    if rule is not None and rule not in RULES:
        raise UsageError("unknown-rule", rule, expected="a rule", hint="vita-ckpt rules lists them")
    if as_json:
        chosen = RULES.values() if rule is None else [RULES[rule]]
        render.echo_json([asdict(one) for one in chosen])
    elif rule is not None:
        one = RULES[rule]
        console.say(f"{one.id} ({one.severity}): {one.title}\n{one.why}")
    else:
        blocks = []
        for group, rules in GROUPS.items():
            rows = [(one.id, one.severity, one.title) for one in rules]
            blocks.append(render.table(rows, (group, "severity", "")))
        console.say("\n\n".join(blocks))
