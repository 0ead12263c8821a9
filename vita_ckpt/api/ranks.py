"""Join the processes that a launcher such as torchrun started for one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vita_ckpt import __version__
from vita_ckpt.api.extra import need_the_extra
from vita_ckpt.core.digest import digest
from vita_ckpt.core.launch import RANK_TIMEOUT, launch_of
from vita_ckpt.errors import UsageError

if TYPE_CHECKING:
    from vita_ckpt.core.checkpoint import Checkpoint
    from vita_ckpt.model.ranks import Ranks


@contextmanager
def join_ranks(
    environment: Mapping[str, str], *, timeout: float = RANK_TIMEOUT
) -> Iterator[Ranks | None]:
    """Join the processes of a launch for as long as the context lasts; None without a launcher.

    The launcher is torchrun, or whatever sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
    MASTER_PORT in ``environment``. What the context gives goes, on every process, to
    :func:`~vita_ckpt.api.verify.verify`, :func:`~vita_ckpt.api.validate.validate` or
    :func:`~vita_ckpt.api.diff.diff`. If one of them ends or fails, or nothing
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


@contextmanager
def told_to_all(ranks: Ranks | None) -> Iterator[None]:
    """Let an error of the body end all ranks, and raise the one with which they end."""
    try:
        yield
    except Exception as error:
        if ranks is None:
            raise
        told = ranks.failed(error)
        if told is error:
            raise
        raise told from error


def agree_on(ranks: Ranks | None, *checkpoints: Checkpoint) -> None:
    """Raise InputError ``ranks-disagree`` unless all ranks have opened the same files."""
    if ranks is None:
        return
    for checkpoint in checkpoints:
        files = [(os.path.basename(f.path), f.size, f.digest) for f in checkpoint.fingerprint]
        tensors = [(name, t.dtype, t.shape) for name, t in checkpoint.tensors.items()]
        identity = repr((__version__, files, tensors))
        ranks.agree(digest(identity.encode()), checkpoint.root)
