"""Keep numpy's products in the threads that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

# What OpenBLAS calls its functions depends on who built numpy.
_NAMES: Final = tuple(
    f"{front}openblas_%s_num_threads{end}" for front in ("scipy_", "") for end in ("64_", "")
)


@dataclass(frozen=True)
class _Library:
    get: Callable[[], int]
    set: Callable[[int], Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let each product of matrices run in one thread, for callers that have threads themselves.

    OpenBLAS's own threads wait for work in a loop, which takes the processors from everyone else.
    Its setting is one for the process: products elsewhere are slower meanwhile, not wrong. Another
    library is left as it is.
    """
    library = _library()
    if library is None:
        yield
        return
    before = library.get()
    library.set(1)
    try:
        yield
    finally:
        library.set(before)


def _library() -> _Library | None:
    """Return the OpenBLAS that numpy multiplies with; None if it is another library."""
    import ctypes  # noqa: PLC0415 - merges only

    from numpy.linalg import _umath_linalg  # noqa: PLC0415 - numpy

    loaded = ctypes.CDLL(_umath_linalg.__file__)
    for name in _NAMES:
        if hasattr(loaded, name % "set"):
            return _Library(getattr(loaded, name % "get"), getattr(loaded, name % "set"))
    return None
