"""``vita-ckpt rules``: what validate, verify and diff look at, and what each code means."""

from __future__ import annotations

from dataclasses import asdict

import click

from vita_ckpt.checks.rules import GROUPS, RULES
from vita_ckpt.cli import completion, console, render
from vita_ckpt.core.error_codes import ERRORS, explain_error
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import UsageError


@click.command("rules")
@click.argument("rule", required=False, shell_complete=completion.one_of(RULES))
@click.option("--json", "as_json", is_flag=True, help="The table as JSON.")
def command(rule: str | None, as_json: bool) -> None:
    """List the rules, or explain one."""
    if rule is not None and rule not in RULES:
        _explain_error(rule, as_json=as_json)
        return
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


def _explain_error(code: str, *, as_json: bool) -> None:
    """Explain a code that an error has, and no rule."""
    explained = explain_error(code)
    if explained is None:
        raise UsageError(
            "unknown-rule",
            code,
            expected="a rule, or the code of an error",
            hint=did_you_mean(
                code,
                {*RULES, *ERRORS},
                "vita-ckpt rules lists the rules, docs/errors.md the errors",
            ),
        )
    kind, meaning = explained
    if as_json:
        render.echo_json([{"id": code, "severity": "error", "title": kind, "why": meaning}])
    else:
        console.say(f"{code} (error): {kind}\n{meaning}")
