"""``vita-ckpt resize-embeddings``: more or fewer rows of the token embeddings."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.embeddings import plan_resize_embeddings
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options


@click.command("resize-embeddings")
@click.argument("checkpoint", type=ANYWHERE)
@click.option("--tokens", type=int, metavar="N", help="Make rows for so many tokens.")
@click.option(
    "--tokenizer",
    type=ANYWHERE,
    metavar="DIR",
    help="Make rows for the tokens of this tokenizer; its files replace the checkpoint's.",
)
@click.option(
    "--init",
    default="mean",
    show_default=True,
    metavar="INIT",
    shell_complete=completion.one_of(("mean", "normal", "zeros", "copy:")),
    help="How new rows begin. mean: the mean of all old rows. normal: drawn with the config's "
    "initializer_range. zeros. copy:TOKEN: the row of a token, or of a number.",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    default=0,
    show_default=True,
    help="Draw the rows of --init normal from it.",
)
@click.option(
    "--multiple-of",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="Pad the rows to a multiple of N, as 64.",
)
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    checkpoint: str,
    tokens: int | None,
    tokenizer: str | None,
    init: str,
    seed: int,
    multiple_of: int,
    **run: Any,
) -> int:
    """Add or remove rows of the token embeddings.

    embed_tokens and lm_head, tied or not, change together, and vocab_size follows. Rows that stay
    are the same bytes. Fewer rows than the tokenizer has tokens are refused.
    """
    begin(settings, checkpoint, run)
    plan = plan_resize_embeddings(
        checkpoint,
        tokens=tokens,
        tokenizer=tokenizer,
        init=init,
        seed=seed,
        multiple_of=multiple_of,
        stores=settings.stores,
    )
    return run_plan(settings, plan, **run)
