"""Complete words and the names of tensors in bash, zsh and fish."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

import click

from vita_ckpt.api.locate import as_checkpoint
from vita_ckpt.errors import VitaCkptError

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

# More names than these are completed component by component.
_MOST: Final = 40
# The parameters of the commands that hold a checkpoint.
_CHECKPOINTS: Final = ("checkpoint", "a", "base", "source")


def one_of(words: Iterable[str], *, end: str = "") -> Complete:
    """Return what completes one of some words."""

    def complete(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
        return [word + end for word in words if word.startswith(incomplete)]

    return complete


# Those that weights are converted to, and those that torch computes in.
dtypes: Final = one_of(("f32", "bf16", "f16"))
torch_dtypes: Final = one_of(("float32", "bfloat16", "float16"))


def tensors(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a tensor of the checkpoint on the line, if that is on this machine.

    Only headers are read. Of many names the next component is completed.
    """
    names = [name for name in _names_in(ctx) if name.startswith(incomplete)]
    if len(names) > _MOST:
        start = len(incomplete)
        ends = ((name, name.find(".", start) + 1 or len(name)) for name in names)
        names = list(dict.fromkeys(name[:end] for name, end in ends))
    return names


def _names_in(ctx: click.Context) -> list[str]:
    # What could not be parsed, since the last option lacks its value, is left as arguments.
    given = [*(ctx.params.get(name) for name in _CHECKPOINTS), *ctx.args]
    path = next((one for one in given if isinstance(one, str) and os.path.exists(one)), None)
    if path is None:
        return []
    try:
        return sorted(as_checkpoint(path, None).tensors)
    except (VitaCkptError, OSError):  # said when the command runs
        return []
