"""Print to stdout and stderr: no name starts a command of a pipeline, no character stops a command.

Everything that the command line prints goes through here.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from itertools import islice
from threading import Lock
from typing import Final, TextIO

from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import VitaCkptError

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
# Whether a line of :func:`status` is on the terminal, and who may write there.
_shown = False
_terminal: Final = Lock()
_MOST_NAMES: Final = 1000  # of a directory in which a mistyped path is looked for
_FALLBACK: Final = "vita-ckpt-fallback"
_SAMPLE: Final = f"{''.join(map(chr, range(32, 127))):→<200}\n"  # what an encoding for text takes
# What is coloured, with the number of its colour: verdicts at the beginning and the end of a line.
_COLOURS: Final = (
    (re.compile(r"(?m)^error\b"), 31),
    (re.compile(r"(?m)^warning\b"), 33),
    (re.compile(r"(?m)(?<=  )yes$"), 32),
    (re.compile(r"(?m)(?<=  )NO$"), 31),
    (re.compile(r"(?m)^it works$"), 32),
    (re.compile(r"(?m)^it does not work$"), 31),
)


def prepare() -> None:
    """Make stdout and stderr take every character, whatever the locale."""
    codecs.register_error(_FALLBACK, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors=_FALLBACK)
            try:
                _SAMPLE.encode(stream.encoding, _FALLBACK)
            except UnicodeError:  # idna, say: one for names alone
                reconfigure(encoding="utf-8", errors=_FALLBACK)


def choose_colour(choice: str) -> None:
    """Use colours ``always``, ``never``, or (``auto``) as the environment and the terminal say."""
    if choice == "always":
        os.environ.pop("NO_COLOR", None)
        os.environ["FORCE_COLOR"] = "1"
    elif choice == "never":
        os.environ["NO_COLOR"] = "1"


def coloured(text: str, stream: TextIO) -> str:
    """Return ``text`` with its verdicts in colour, if ``stream`` takes colours."""
    if _takes_colour(stream):
        for pattern, number in _COLOURS:
            text = pattern.sub(f"\x1b[{number}m\\g<0>\x1b[0m", text)
    return text


def _takes_colour(stream: TextIO) -> bool:
    """Follow NO_COLOR (no-color.org), then FORCE_COLOR, then the terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def status(text: str) -> None:
    """Show one line on stderr, a terminal, in place of the last one; empty to remove it.

    Whatever else is printed removes it first.
    """
    global _shown  # noqa: PLW0603 - there is one terminal
    with _terminal, contextlib.suppress(OSError, ValueError):
        if _shown or text:
            _shown = bool(text)
            _print(f"\r{text}\x1b[K", sys.stderr)


def write(text: str) -> None:
    """Write a whole report to stdout as it is, for formats that have escaped what they contain."""
    status("")
    sys.stdout.write(text)
    sys.stdout.flush()


def say(text: str) -> None:
    """Print lines on stdout. Raises OSError if they cannot be written."""
    write(coloured(f"{harmless(text)}\n", sys.stdout))


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
    status("")
    with contextlib.suppress(OSError, ValueError):
        _print(coloured(f"{harmless(text)}\n", sys.stderr), sys.stderr)


def warn_of(error: VitaCkptError) -> None:
    """Print an error on stderr; for a path that does not exist, with a guess at its name."""
    warn(f"error: {_with_nearest_path(error)}")


def harmless(text: str) -> str:
    """Return ``text`` with no line that begins like a workflow command."""
    return _COMMAND.sub(r"\1\\x3a", text)


def forget_stdout() -> None:
    """Discard what is left for stdout, so that flushing it at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_nearest_path(error: VitaCkptError) -> VitaCkptError:
    """Return the error; for a path that does not exist, with a guess at its last component."""
    folder, name = os.path.split(error.subject)
    if error.code != "not-found" or not name:
        return error
    with contextlib.suppress(OSError, ValueError):
        entries = islice(os.scandir(folder or os.curdir), _MOST_NAMES)
        # The name itself is there if it is a link that leads nowhere.
        there = [entry.name for entry in entries if entry.name != name]
        return error.replaced(hint=did_you_mean(name, there, error.hint))
    return error


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
