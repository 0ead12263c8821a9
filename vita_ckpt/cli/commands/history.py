"""``vita-ckpt history``: how a checkpoint was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from vita_ckpt.api.lifecycle import history
from vita_ckpt.cli import console, render
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.core.outcomes import History
from vita_ckpt.errors import printable


@click.command("history")
@click.argument("checkpoint", type=ANYWHERE)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON (schema history-v1).")
@click.pass_obj
def command(settings: Settings, /, checkpoint: str, as_json: bool) -> None:
    """Show which surgeries a checkpoint has had.

    They are read from vita_ckpt.json: each operation with its inputs (names and digests), its
    options, the number of tensors and files it wrote, and whether it can be undone.
    """
    found = history(checkpoint, stores=settings.stores)
    if as_json:
        render.echo_json(found.to_dict())
    else:
        console.say("\n".join(_lines(found)))


def _lines(found: History) -> Iterator[str]:
    yield printable(render.path(found.path))
    if not found.operations:
        yield "  no surgery is known"
    else:
        yield ""
        headers = ("time", "operation", "inputs", "asked for", "wrote")
        yield render.table([_row(entry) for entry in found.operations], headers)
        yield ""
    if found.needs_alignment:
        yield "! the projector was drawn at random: it needs alignment training"
    if found.has_manifest:
        yield "· digests of all files: vita-ckpt validate --deep checks them"
    undoable = found.undoable
    if undoable is not None and undoable.foreign:
        yield printable(
            f"! the undo data of {undoable.operation} ({undoable.time}) is not signed by you for "
            "this directory: vita-ckpt clean --foreign-journal removes it"
        )
    elif undoable is not None:
        size = render.size(undoable.nbytes)
        yield printable(
            f"· {undoable.operation} of {undoable.time} can be undone (vita-ckpt undo); that keeps "
            f"{size} (vita-ckpt clean --undo)"
        )


def _row(entry: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    return (
        str(entry.get("time", "")),
        str(entry.get("operation", "")),
        ", ".join(
            f"{role}: {given.get('name', '')}" if isinstance(given, Mapping) else str(role)
            for role, given in _pairs(entry.get("inputs"))
        ),
        ", ".join(
            f"{key}={value}" for key, value in (*_pairs(entry.get("arguments")), *_seed(entry))
        ),
        ", ".join(
            render.counted(len(_pairs(written)), what.removesuffix("s"))
            for what, written in _pairs(entry.get("written"))
            if _pairs(written)
        ),
    )


def _seed(entry: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [("seed", entry["seed"])] if "seed" in entry else []


def _pairs(value: Any) -> list[tuple[str, Any]]:
    """Return the items of an object, and none of anything else."""
    return list(value.items()) if isinstance(value, Mapping) else []
