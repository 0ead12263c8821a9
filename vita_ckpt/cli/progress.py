"""Show on one line of a terminal what a command is doing, how fast, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Final

from vita_ckpt.cli import console, render
from vita_ckpt.cli.fitting import terminal_width
from vita_ckpt.core.progress import OnProgress, unwatched

_LONG_ENOUGH: Final = 0.5  # seconds of work before anything is shown
_PAUSE: Final = 0.25  # seconds between two looks at it
_SETTLED: Final = 2.0  # seconds after which a rate says something about the rest
_WIDTH: Final = 80  # of a terminal that does not say
_MINUTE: Final = 60
_HOUR: Final = 3600


@contextmanager
def shown_progress(quiet: bool) -> Iterator[OnProgress]:
    """Show progress on stderr while the body runs, if stderr is a terminal and the body is slow.

    Yields the function to tell it to.
    """
    if quiet or not sys.stderr.isatty():
        yield unwatched
        return
    activity = _Activity()
    ended = Event()
    thread = Thread(target=_draw, args=(activity, ended), daemon=True)
    thread.start()
    try:
        yield activity.now
    finally:
        ended.set()
        thread.join()
        console.status("")


class _Activity:
    """What is being done, told by one thread and read by another."""

    def __init__(self) -> None:
        self._state = ("", 0, 0, 0.0)

    def now(self, what: str, done: int, total: int) -> None:
        """Take what is being done; it begins anew where less of it is done, or there is other."""
        _, before, size, since = self._state
        if done < before or total != size:
            since = time.monotonic()
        self._state = (what, done, total, since)

    def line(self) -> str:
        """Return it as a text for people; empty as long as nothing was told."""
        what, done, total, since = self._state
        return described(what, done, total, time.monotonic() - since)


def described(what: str, done: int, total: int, seconds: float) -> str:
    """``reading: 3.2 GB of 15.9 GB (20%), 412 MB/s, 31 s left``, as far as it is known."""
    if not done:
        return what
    done = min(done, total) if total else done
    words = [render.size(done)]
    if total:
        words = [f"{words[0]} of {render.size(total)} ({100 * done // total}%)"]
    if seconds >= _SETTLED:
        rate = done / seconds
        words.append(f"{render.size(int(rate))}/s")
        if total > done:
            words.append(f"{duration((total - done) / rate)} left")
    return f"{what}: {', '.join(words)}"


def duration(seconds: float) -> str:
    """``31 s``, ``4 min 10 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"


def _draw(activity: _Activity, ended: Event) -> None:
    if ended.wait(_LONG_ENOUGH):
        return
    while True:
        width = terminal_width(sys.stderr) or _WIDTH
        console.status(activity.line()[: width - 1])
        if ended.wait(_PAUSE):
            return
