"""Make several calls to the hub at a time; stop promptly on an error or an interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from vita_ckpt.storage.system.threads import run_all

_T = TypeVar("_T")

# Requests of large parts of files share what the connection carries; of small ones most of the
# time is waiting, so that many are made at a time. HTTP libraries open at most 100 connections.
FEW: Final = 8
MANY: Final = 96
_GRACE: Final = 0.5  # seconds to wait for calls in progress when stopping


def at_once(calls: Iterable[Callable[[], _T]], threads: int = FEW) -> list[_T]:
    """Return the results of ``calls`` in their order, making several calls at a time.

    After an error or an interrupt it returns within a moment, even if a server does not respond.
    """
    return run_all(calls, threads, grace=_GRACE)
