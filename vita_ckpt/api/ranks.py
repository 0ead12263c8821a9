"""Join the processes that a launcher such as torchrun started for one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from vita_ckpt.api.verify import need_the_extra
from vita_ckpt.core.launch import launch_of
from vita_ckpt.errors import UsageError

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

# How long nothing may move on any rank, in seconds.
RANK_TIMEOUT: Final = 300.0


@contextmanager
def join_ranks(
    environment: Mapping[str, str], *, timeout: float = RANK_TIMEOUT
) -> Iterator[Ranks | None]:
    """Join the processes of a launch for as long as the context lasts; None without a launcher.

    The launcher is torchrun, or whatever sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT in ``environment``. What the context gives goes to
    :func:`~vita_ckpt.api.verify.verify` on every process. If one of them ends or fails, or nothing
    moves on any for ``timeout`` seconds once the weights are loaded, all end: one says why on
    stderr, and processes that wait for another one exit at once.

    Raises InputError ``rendezvous-failed`` unless all are there after a minute, UsageError without
    torch.
    """
    launch = launch_of(environment)
    if launch is None:
        yield None
        return
    if not timeout > 0:
        raise UsageError(
            "invalid-rank-timeout", "--rank-timeout", expected="seconds", got=f"{timeout:g}"
        )
    need_the_extra()
    # The line about a rank that is gone is ours to say. Torch reads this once, when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from vita_ckpt.model.ranks import Ranks  # noqa: PLC0415 - torch

    ranks = Ranks.join(launch, timeout)
    try:
        yield ranks
    finally:
        ranks.leave()
