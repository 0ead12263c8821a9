"""What a pickle would call if it were executed: each leaves a mark that tests look for."""

from __future__ import annotations

import copyreg
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPRUNG: list[object] = []

_EXECUTES = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
_watched: list[str] | None = None


def _audit(event: str, _arguments: tuple[object, ...]) -> None:
    if _watched is not None and event in _EXECUTES:
        _watched.append(event)


sys.addaudithook(_audit)

# Codes 128 and up of the extension registry are free; opcodes of one, two and four bytes name them.
CODES = (200, 300, 70000)


def spring(*arguments: object) -> object:
    """Leave a mark."""
    SPRUNG.append(arguments)
    return spring


class Trap:
    """Leaves a mark however it is made or filled."""

    def __new__(cls, *arguments: object, **named: object) -> Trap:
        SPRUNG.append((cls, arguments, named))
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        SPRUNG.append(state)

    def extend(self, items: object) -> None:
        """A list that is none: what APPENDS would call."""
        SPRUNG.append(items)

    def __setitem__(self, key: object, value: object) -> None:
        SPRUNG.append(key)


@contextmanager
def registered() -> Iterator[None]:
    """The trap in the extension registry."""
    for code in CODES:
        copyreg.add_extension(__name__, ("spring", "Trap", "SPRUNG")[CODES.index(code)], code)
    try:
        yield
    finally:
        for code in CODES:
            copyreg.remove_extension(
                __name__, ("spring", "Trap", "SPRUNG")[CODES.index(code)], code
            )


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fail if a canary sings, or if the interpreter looks up a global of a pickle."""
    global _watched  # noqa: PLW0603 - an audit hook is never taken off
    _watched = []
    try:
        with registered():
            yield
        assert not _watched
        assert not SPRUNG
    finally:
        _watched = None
        SPRUNG.clear()
