"""What a path may be on the command line, and ``--key`` in it; ``LOCAL`` refuses the hub.

Whether something is there and can be read is said by those who open it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import click

from vita_ckpt.api.locate import given, local


class _Path(click.Path):
    def __init__(self, check: Callable[[str | os.PathLike[str]], str]) -> None:
        super().__init__(readable=False)
        self._check = check

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        return super().convert(self._check(value), param, ctx)


ANYWHERE: Final = _Path(given)
LOCAL: Final = _Path(local)


def key_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--key``, of every command that reads what ``torch.save`` wrote."""
    return click.option(
        "--key",
        metavar="KEY",
        help="The state dict to read in a file of torch.save with several, as model or ema.0.",
    )(command)
