"""What an argument may be that takes a path: ``LOCAL`` refuses an address on the hub."""

from __future__ import annotations

import os
from typing import Any, Final

import click

from vita_ckpt.api.locating import local


class _Local(click.Path):
    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        return super().convert(local(value), param, ctx)


LOCAL: Final = _Local()
