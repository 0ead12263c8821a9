"""Say what a long operation is doing, and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

# Called with what is done at the moment, such as "reading", the bytes of it that are done, and all
# bytes of it; 0 if they are not known. It is called from several threads, one at a time.
OnProgress = Callable[[str, int, int], None]


def unwatched(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


class Tally:
    """The bytes of one activity that are done, counted from any thread.

    ``what`` may be changed while it goes on.
    """

    def __init__(self, on_progress: OnProgress, what: str, total: int) -> None:
        self.what = what
        self._on_progress = on_progress
        self._done = 0
        self._total = total
        self._lock = Lock()
        on_progress(what, 0, total)

    def __call__(self, nbytes: int) -> None:
        """Add bytes that are done."""
        with self._lock:
            self._done += nbytes
            self._on_progress(self.what, self._done, self._total)
