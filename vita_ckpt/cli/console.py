"""Print to stdout and stderr: no name starts a command of a pipeline, no character stops a command.

Everything that the command line prints goes through here.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from typing import Final, TextIO

# GitHub and Azure look for ``::`` at the beginning of a line; for ``##[`` errors.escaped looks.
_COMMAND: Final = re.compile(r"(?m)^([^\S\n]*):(?=:)")
# What we draw with, for terminals that have ASCII or Latin-1 only.
_ASCII: Final = {
    "…": "...",
    "·": "-",
    "→": "->",
    "–": "-",
    "×": "x",
    "Δ": "delta",
    "’": "'",
    "“": '"',
    "”": '"',
}
_FALLBACK: Final = "vita-ckpt-fallback"


def prepare() -> None:
    """Make stdout and stderr take every character, whatever the locale."""
    codecs.register_error(_FALLBACK, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_FALLBACK)


def write(text: str) -> None:
    """Write a whole report to stdout as it is, for formats that have escaped what they contain."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Print lines on stdout. Raises OSError if they cannot be written."""
    write(f"{harmless(text)}\n")


def say_done(text: str) -> None:
    """Print lines on stdout about work that is complete: a full disk changes nothing in that."""
    try:
        say(text)
    except BrokenPipeError:
        forget_stdout()
    except OSError as error:
        forget_stdout()
        warn(f"note: done, but stdout could not be written: {(error.strerror or '').lower()}")


def warn(text: str) -> None:
    """Print lines on stderr; ignore a stderr that is closed."""
    with contextlib.suppress(OSError, ValueError):
        _print(f"{harmless(text)}\n", sys.stderr)


def harmless(text: str) -> str:
    """Return ``text`` with no line that begins like a workflow command."""
    return _COMMAND.sub(r"\1\\x3a", text)


def forget_stdout() -> None:
    """Discard what is left for stdout, so that flushing it at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str, stream: TextIO) -> None:
    stream.write(text)
    stream.flush()


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Spell what an encoding has no character for: ours in ASCII, others as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    spelt = (_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in characters)
    return "".join(spelt), error.end
