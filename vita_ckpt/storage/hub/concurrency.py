"""Make several calls to the hub at a time; stop promptly on an error or an interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from vita_ckpt.storage.system.threads import run_all

_T = TypeVar("_T")

_THREADS: Final = 8
_GRACE: Final = 0.5  # seconds to wait for calls in progress when stopping


def at_once(calls: Iterable[Callable[[], _T]]) -> list[_T]:
    """Return the results of ``calls`` in their order, making several calls at a time.

    After an error or an interrupt it returns within a moment, even if a server does not respond.
    """
    return run_all(calls, _THREADS, grace=_GRACE)
