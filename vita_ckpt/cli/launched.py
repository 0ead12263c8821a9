"""Run a command in the processes that a launcher such as torchrun started, or in this one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vita_ckpt.api.ranks import join_ranks
from vita_ckpt.cli import console
from vita_ckpt.core.launch import RANK_TIMEOUT
from vita_ckpt.errors import VitaCkptError

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks


def rank_options(command: Any) -> Any:
    """Add the options of a command that a launcher can start."""
    single = click.option(
        "--single",
        is_flag=True,
        help="Run in this process alone, even if a launcher started several.",
    )
    timeout = click.option(
        "--rank-timeout",
        type=float,
        default=RANK_TIMEOUT,
        show_default=True,
        metavar="SECONDS",
        help="Under a launcher: end if nothing moves on any rank for so long.",
    )
    return single(timeout(command))


def run_in_ranks(run: Callable[[Ranks | None], int], *, single: bool, rank_timeout: float) -> int:
    """Return the exit code of ``run``, which gets the ranks of a launch, or None without one.

    What goes wrong is said by one of them, before it parts: a launcher kills who is left.
    """
    with join_ranks({} if single else os.environ, timeout=rank_timeout) as ranks:
        if ranks is None:
            return run(None)
        _end_at_once()
        try:
            return run(ranks)
        except VitaCkptError as error:
            if speaks(ranks):
                console.warn_of(error)
            return error.exit_code


def speaks(ranks: Ranks | None) -> bool:
    """Return whether this process prints what was found: a launcher mixes what several print."""
    return ranks is None or ranks.speaks


def _end_at_once() -> None:
    """Let a signal end this process, also while it waits for another rank in torch."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
