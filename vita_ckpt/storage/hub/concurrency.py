"""Make several calls to the hub at once, with an end that waits for none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from vita_ckpt.storage.system.threads import run_all

_T = TypeVar("_T")

_THREADS: Final = 8
_GRACE: Final = 0.5  # seconds for what is under way when the end comes


def at_once(calls: Iterable[Callable[[], _T]]) -> list[_T]:
    """Return the results of ``calls`` in their order, several of them made at a time.

    An error or an interrupt ends them within a moment, whatever a server leaves hanging.
    """
    return run_all(calls, _THREADS, grace=_GRACE)
