"""``vita-ckpt explain``: what each loader would do with a checkpoint, file by file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import click

from vita_ckpt.api.explain import explain
from vita_ckpt.checks.explain.disagreements import Divergence
from vita_ckpt.checks.explain.explanation import Explanation
from vita_ckpt.checks.explain.loaders import LOADERS
from vita_ckpt.checks.explain.trace import LoaderTrace, some_files
from vita_ckpt.cli import console, render
from vita_ckpt.cli.fitting import terminal_width, wrapped
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.errors import printable


@click.command("explain")
@click.argument("checkpoint", type=ANYWHERE)
@click.option(
    "--loader",
    "loaders",
    type=click.Choice(list(LOADERS)),
    metavar="LOADER",
    multiple=True,
    help=f"Show this loader only: {', '.join(LOADERS)}. Can be repeated.",
)
@click.option("--all", "every", is_flag=True, help="Name every tensor that is missing or left out.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema explain-v1).")
@click.pass_obj
def command(
    settings: Settings, /, checkpoint: str, loaders: tuple[str, ...], every: bool, as_json: bool
) -> None:
    """Show what each loader would build from a checkpoint.

    The loaders are VITA-1.5's and VITA-1.0's, plain transformers before and after 5.6, and
    huggingface_hub. For each you see the class it builds, the files it reads and their order, where
    tower and projector come from, what is missing, ignored or random, the final dtype, and where
    the loaders diverge. A broken checkpoint is explained up to the point where a loader stops.
    """
    explanation = explain(checkpoint, stores=settings.stores)
    if loaders:
        explanation = replace(
            explanation,
            traces=tuple(trace for trace in explanation.traces if trace.loader in loaders),
            divergences=(),
        )
    if as_json:
        render.echo_json(explanation.to_dict())
    else:
        console.say("\n".join(printable(line) for line in _lines(explanation, every=every)))


def _lines(explanation: Explanation, *, every: bool) -> Iterator[str]:
    yield render.path(explanation.path)
    yield from (f"  {remark}" for remark in explanation.remarks)
    for trace in explanation.traces:
        yield ""
        yield from _trace(trace)
        if every:
            yield from (f"  missing: {name}" for name in trace.missing)
            yield from (f"  left out: {name}" for name in trace.ignored)
    if explanation.divergences:
        yield ""
        yield "where they diverge"
        for divergence in explanation.divergences:
            yield from _divergence(divergence)


def _trace(trace: LoaderTrace) -> Iterator[str]:
    outcome = f"stops: {trace.stopped_by}" if trace.stopped_by else trace.outcome
    words = [outcome, *filter(None, (trace.model_class, trace.dtype))]
    yield f"{trace.loader} · {' · '.join(words)}"
    rows = [(step.action, step.detail) for step in trace.steps]
    if trace.stopped_by and trace.files_read:
        rows.insert(-1, ("reads", f"{some_files(trace.files_read)}, then"))
    if trace.tower is not None:
        rows.append(("ends with", f"tower: {trace.tower}; projector: {trace.projector or 'none'}"))
    if trace.lm_head is not None:
        rows.append(("", f"lm_head: {trace.lm_head}"))
    width = max((len(action) for action, _ in rows), default=0)
    columns = terminal_width()
    for action, detail in rows:
        line = printable(f"  {action.ljust(width)}  {detail}")
        yield from wrapped(line, width + 4, columns) if columns else [line]


def _divergence(divergence: Divergence) -> Iterator[str]:
    yield f"  {divergence.question}"
    for answer, loaders in divergence.answers:
        yield f"    {answer}: {', '.join(loaders)}"
