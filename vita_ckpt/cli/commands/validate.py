"""``vita-ckpt validate``: every rule on checkpoints, adapters, LoRA runs and towers."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from vita_ckpt.api.validate import KINDS, holds_checkpoints
from vita_ckpt.api.validate_many import validate_all
from vita_ckpt.checks.files import finding_of_error
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli import completion, console
from vita_ckpt.cli.launched import rank_options, run_in_ranks, speaks
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.outputs import Output, check_outputs, deliver, report_options
from vita_ckpt.cli.paths import ANYWHERE, LOCAL, key_option
from vita_ckpt.cli.policy import read_policy
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.core.binding.loaders import LOADER_NAMES
from vita_ckpt.core.kinds import UNKNOWN
from vita_ckpt.core.report import Report
from vita_ckpt.errors import VitaCkptError

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks


@click.command("validate")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=ANYWHERE)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    metavar="KIND",
    help=f"Take PATH for this: {', '.join(KINDS)}.  [default: what it holds]",
)
@click.option(
    "--values", is_flag=True, help="Read every byte: NaN, infinity, float16, dead layers."
)
@click.option(
    "--deep",
    is_flag=True,
    help="Compare with digests: of what surgeries wrote, of every file if there is a manifest.",
)
@click.option(
    "--loader",
    type=click.Choice(LOADER_NAMES),
    metavar="LOADER",
    help=f"The loader that must bind every tensor: {', '.join(LOADER_NAMES)}.  [default: the one "
    "of the model's family]",
)
@click.option("--verify", is_flag=True, help="Run the model once too (extra model).")
@click.option(
    "--golden", type=LOCAL, metavar="FILE", help="Compare with a golden of verify; runs it."
)
@key_option
@click.option(
    "--select",
    multiple=True,
    shell_complete=completion.one_of(RULES),
    metavar="RULE",
    help="Look at these rules only; a glob.",
)
@click.option(
    "--ignore",
    multiple=True,
    shell_complete=completion.one_of(RULES),
    metavar="RULE",
    help="Leave these rules out; a glob.",
)
@click.option("--strict/--no-strict", default=None, help="Warnings fail too.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    default=1,
    show_default=True,
    help="Checkpoints at once.",
)
@click.option(
    "--all", "every", is_flag=True, help="Name every tensor, also where many have one fault."
)
@rank_options
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@report_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    paths: tuple[str, ...],
    kind: str | None,
    values: bool,
    deep: bool,
    loader: str | None,
    verify: bool,
    golden: str | None,
    key: str | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    strict: bool | None,
    jobs: int,
    every: bool,
    single: bool,
    rank_timeout: float,
    as_json: bool,
    report_format: str,
    outputs: tuple[Output, ...],
) -> int:
    """Prove checkpoints sound from their headers.

    PATH is a checkpoint, an adapter, a LoRA run, a tower, a directory of these, or a glob. Only
    headers, configs and the values of small parts are read, unless you give --values. Options that
    are not given come from vita-ckpt.toml, or from [tool.vita-ckpt] in pyproject.toml, in the
    working directory, unless that file is part of what is validated. Exit 0 without errors, 1 with
    errors, 3 if something could not be read at all.

    Under torchrun, or srun with torch's variables, each process reads its share of the bytes, and
    the first one reports: torchrun --nproc-per-node 8 -m vita_ckpt validate CHECKPOINT --values.
    """
    report_format = "json" if as_json else report_format
    chosen = list(_expanded(paths))
    policy = read_policy(select, ignore, strict, validated=[*_globbed(paths), *chosen])
    check_outputs(outputs, chosen)

    def run(ranks: Ranks | None) -> int:
        for sentence in policy.sentences() if policy.file or policy.disregarded else ():
            if speaks(ranks):
                settings.note(sentence)
        reports: list[Report] = []
        unread: list[VitaCkptError] = []
        with shown_progress(settings.quiet or not speaks(ranks)) as on_progress:
            results = list(
                validate_all(
                    chosen,
                    kind=kind,
                    values=values,
                    deep=deep,
                    loader=loader,
                    key=key,
                    verify=verify or golden is not None,
                    golden=golden,
                    jobs=jobs,
                    on_progress=on_progress,
                    stores=settings.stores,
                    ranks=ranks,
                )
            )
        for path, result in zip(chosen, results, strict=True):
            if isinstance(result, Report):
                reports.append(policy.applied(result))
            else:
                unread.append(result)
                # What no rule may leave out: nothing was looked at there.
                why = replace(finding_of_error(result, ""), severity="error")
                reports.append(Report(path, UNKNOWN, (why,), read=False))
        if speaks(ranks):
            for error in unread:
                console.warn_of(error)
            # For a person the lines above say it all, if there is nothing else to say.
            silent = len(unread) == len(reports) and report_format == "text"
            shown = None if silent else report_format
            deliver(reports, RULES, shown, outputs, selection=policy, every=every)
        if unread:
            return max(error.exit_code for error in unread)
        return 1 if policy.fails(reports) else 0

    return run_in_ranks(run, single=single, rank_timeout=rank_timeout)


def _globbed(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield each path; of a glob that the shell left alone, what it matches."""
    for path in paths:
        yield from [path] if os.path.lexists(path) else sorted(glob.glob(path)) or [path]


def _expanded(paths: tuple[str, ...]) -> Iterator[str]:
    """Yield each checkpoint, those in directories of checkpoints included."""
    for path in _globbed(paths):
        yield from holds_checkpoints(path) or [path]
