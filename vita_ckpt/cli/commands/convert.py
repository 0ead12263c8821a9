"""``vita-ckpt convert``: the same model with other names, dtype or weight files."""

from __future__ import annotations

from typing import Any

import click

from vita_ckpt.api.plans.convert import plan_convert
from vita_ckpt.cli import completion
from vita_ckpt.cli.main import Settings
from vita_ckpt.cli.paths import ANYWHERE
from vita_ckpt.cli.plan_options import begin, run_plan, surgery_options
from vita_ckpt.core.anatomy.parts import LABELS
from vita_ckpt.core.options import FORMATS, NAMES, TIES, Format, Names, Tie


@click.command("convert")
@click.argument("checkpoint", type=ANYWHERE)
@click.option(
    "--names",
    type=click.Choice(NAMES),
    help="Name the tensors as the loader expects them. upstream: VITA's loader; levels of "
    "wrappers such as _orig_mod. are removed, and fused experts split. transformers: version 5.6 "
    "and newer, whatever is installed; Mixtral's experts are fused.",
)
@click.option(
    "--dtype",
    metavar="DTYPE",
    shell_complete=completion.dtypes,
    help="Convert floating tensors to f32, bf16 or f16.",
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="PART",
    type=click.Choice(tuple(LABELS)),
    help=f"Convert the dtype of this part only: {', '.join(LABELS)}. Can be repeated.",
)
@click.option(
    "--keep",
    shell_complete=completion.tensors,
    multiple=True,
    metavar="GLOB",
    help="Leave the dtype of tensors with such names, as *norm*. Can be repeated.",
)
@click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="Split the weights into files of at most this size, as 5GB; 0 for one file.  [default: "
    "every tensor stays in its file]",
)
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="safetensors",
    show_default=True,
    help="Write weight files in this format.",
)
@click.option(
    "--tie",
    type=click.Choice(TIES),
    default="auto",
    show_default=True,
    help="An lm_head beside tie_word_embeddings. auto: drop one that equals the embeddings. keep: "
    "leave it. untie: make it a tensor of its own, and say so in the config.",
)
@click.option(
    "--ignore-index",
    is_flag=True,
    help="Take the weight files for what they are, whatever a stale index says of them.",
)
@surgery_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    checkpoint: str,
    names: Names | None,
    dtype: str | None,
    parts: tuple[str, ...],
    keep: tuple[str, ...],
    max_shard_size: str | None,
    format: Format,
    tie: Tie,
    ignore_index: bool,
    **run: Any,
) -> int:
    """Write a checkpoint with other names, dtype or shards.

    Tensors are renamed, split, fused and converted while they are copied; nothing is loaded. The
    index is written anew, and .bin files become safetensors. With --names the result is checked
    against what that loader builds: nothing may be missing.
    """
    begin(settings, checkpoint, run)
    plan = plan_convert(
        checkpoint,
        names=names,
        dtype=dtype,
        parts=parts,
        keep=keep,
        max_shard_size=max_shard_size,
        format=format,
        tie=tie,
        ignore_index=ignore_index,
        stores=settings.stores,
    )
    return run_plan(settings, plan, **run)
