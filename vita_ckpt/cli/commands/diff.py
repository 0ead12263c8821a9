"""``vita-ckpt diff``: what distinguishes two checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from vita_ckpt.api.diff import diff
from vita_ckpt.checks.diff import (
    ConfigDifference,
    Difference,
    FileDifference,
    PartDifference,
    TensorDifference,
    difference_report,
    figures,
)
from vita_ckpt.checks.rules import RULES
from vita_ckpt.cli import completion, render
from vita_ckpt.cli.launched import rank_options, run_in_ranks, speaks
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.outputs import Output, check_outputs, deliver, html_option, report_options
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.progress import shown_progress
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.strict_json import json_text
from vita_ckpt.errors import UsageError, printable

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

_FIGURES = ("max |Δ|", "relative L2", "cosine")


@click.command("diff")
@click.argument("a", type=ANYWHERE)
@click.argument("b", type=ANYWHERE)
@click.option("--values", is_flag=True, help="Say how far the values of tensors are apart.")
@click.option(
    "--only",
    shell_complete=completion.tensors,
    multiple=True,
    metavar="GLOB",
    help="A contract: exit 1 if anything else changed, or none of it did. A glob of tensor names, "
    "config:KEY or file:PATH. Can be repeated.",
)
@click.option(
    "--fetch",
    is_flag=True,
    help="Fetch what headers and digests of the hub leave open; --values and --only imply it.",
)
@click.option("--exit-code", is_flag=True, help="Exit 1 if there is a difference.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="N",
    help="Show at most N lines of each kind.",
)
@rank_options
@click.option("--json", "as_json", is_flag=True, help="The same as --format json (schema diff-v1).")
@html_option
@report_options
@click.pass_obj
def command(
    settings: Settings,
    a: str,
    b: str,
    values: bool,
    only: tuple[str, ...],
    fetch: bool,
    exit_code: bool,
    limit: int,
    single: bool,
    rank_timeout: float,
    as_json: bool,
    page: Output | None,
    report_format: str,
    outputs: tuple[Output, ...],
) -> int:
    """Compare two checkpoints, byte by byte.

    A and B are anything that inspect takes. Tensors are compared by name. It does not matter which
    file holds a tensor, in which order, or in which format. On the hub, headers, configs and
    digests are compared, and the report says what they leave open. The exit code is 0 with or
    without differences, unless you give --exit-code or --only.

    Under torchrun, or srun with torch's variables, each process reads its share of the bytes, and
    the first one reports: torchrun --nproc-per-node 8 -m vita_ckpt diff A B --values.
    """
    if only and exit_code:
        raise UsageError(
            "options-exclude-each-other",
            "--only",
            expected="either --only, which requires a change, or --exit-code, which requires none",
            got="both",
        )
    outputs = outputs if page is None else (*outputs, page)

    def run(ranks: Ranks | None) -> int:
        with shown_progress(settings.quiet or not speaks(ranks)) as on_progress:
            found = diff(
                a,
                b,
                values=values,
                only=only,
                fetch=fetch,
                on_progress=on_progress,
                stores=settings.stores,
                ranks=ranks,
            )
        if speaks(ranks):
            _report(found, limit, settings, "json" if as_json else report_format, outputs)
        return 1 if found.breaches or (exit_code and not found.identical) else 0

    check_outputs(outputs, (a, b))
    return run_in_ranks(run, single=single, rank_timeout=rank_timeout)


def _report(
    found: Difference,
    limit: int,
    settings: Settings,
    report_format: str,
    outputs: tuple[Output, ...],
) -> None:
    if found.tensors_only:
        settings.note("config and files are not compared: one side is a lone weight file")
    if found.left_out:
        names = ", ".join(found.left_out)
        settings.note(f"not compared, as no part of a checkpoint: {names}")
    deliver(
        (difference_report(found),),
        RULES,
        report_format,
        outputs,
        {
            "text": lambda: "".join(f"{line}\n" for line in _screen(found, limit)),
            "json": lambda: json_text(found.to_dict()) + "\n",
            "html": lambda: _page(found),
        },
    )


def _page(found: Difference) -> str:
    from vita_ckpt.cli.html.difference import difference_page  # noqa: PLC0415 - start-up

    return difference_page(found)


def _screen(found: Difference, limit: int) -> Iterator[str]:
    yield printable(f"A {render.path(found.a)}")
    yield printable(f"B {render.path(found.b)}")
    yield ""
    headers = ("part", "unchanged", "changed", "added", "removed", "bytes changed")
    rows = [_part_row(part, found.values) for part in found.parts]
    yield render.table(rows, (*headers, *(_FIGURES if found.values else ())), " rrrrrrrr")
    if found.tensors:
        # What both have comes first: of the others, the counts above say most.
        tensors = sorted(found.tensors, key=lambda tensor: not tensor.what)
        more = ("elements changed", *_FIGURES, "not finite") if found.values else ()
        rows = [_tensor_row(tensor, found.values) for tensor in tensors[:limit]]
        if rows:
            yield ""
            yield render.table(rows, ("tensor", "change", "dtype and shape", *more), "   rrrrr")
        yield from _rest(tensors, limit)
    beside = [f"config.json: {_config_line(key)}" for key in found.config]
    beside += [f"{file.change}: {file.name} ({_sizes(file)})" for file in found.files]
    broken = [f"error {one.rule}: {one.subject}: {one.message}" for one in found.breaches]
    for lines in (beside, broken):
        if lines:
            yield ""
            yield from _most(lines, limit)
    yield ""
    yield printable("; ".join((_verdict(found), *(f"--only {miss}" for miss in found.misses))))


def _part_row(part: PartDifference, values: bool) -> list[object]:
    counts = (part.unchanged, part.changed, part.added, part.removed, render.size(part.nbytes))
    return [parts.LABELS[part.name], *counts, *(_figures(part.distance) if values else ())]


def _tensor_row(tensor: TensorDifference, values: bool) -> list[object]:
    sides = dict.fromkeys(
        f"{side.dtype} {list(side.shape)}" for side in (tensor.before, tensor.after) if side
    )
    row = [tensor.name, ", ".join(tensor.what) or tensor.change, " → ".join(sides)]
    if not values:
        return [*row]
    distance = tensor.distance
    if distance is None:
        return [*row, "", *_figures(None), ""]
    bad = distance.nonfinite_before, distance.nonfinite_after
    return [
        *row,
        f"{distance.changed:,} of {distance.elements:,}",
        *_figures(distance),
        f"{bad[0]:,} → {bad[1]:,}" if any(bad) else "",
    ]


def _figures(distance: Distance | None) -> Sequence[str]:
    return ("", "", "") if distance is None else figures(distance)


def _config_line(key: ConfigDifference) -> str:
    if key.change == "changed":
        return f"{key.key} {key.before!r} → {key.after!r}"
    value = key.after if key.change == "added" else key.before
    return f"{key.key} {key.change}: {value!r}"


def _sizes(file: FileDifference) -> str:
    sizes = [render.size(size) for size in (file.before, file.after) if size is not None]
    return " → ".join(dict.fromkeys(sizes))


def _verdict(found: Difference) -> str:
    unread = f"{len(found.unread)} tensors and files of one size were not compared (--fetch)"
    if not (found.tensors or found.config or found.files):
        return f"no difference known; {unread}" if found.unread else "no difference"
    counts = (
        (len(found.tensors), "tensor"),
        (len(found.config), "config key"),
        (len(found.files), "file"),
    )
    changes = [f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts if count]
    verdict = f"changed: {', '.join(changes)}"
    if found.only:
        verdict += "; --only does not hold" if found.breaches else "; --only holds"
    if found.unread:
        verdict += f"; {unread}"
    return verdict


def _most(lines: list[str], limit: int) -> Iterator[str]:
    yield from (printable(line) for line in lines[:limit])
    yield from _rest(lines, limit)


def _rest(lines: Sequence[object], limit: int) -> Iterator[str]:
    if len(lines) > limit:
        yield f"… and {len(lines) - limit} more (--limit, --json)"
