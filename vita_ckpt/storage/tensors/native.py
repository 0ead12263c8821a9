"""Read ranges of files and look at every element, in C that was compiled at the installation.

What the loops return is what numpy computes, to the last digit. They save the import of it, passes
over memory, and turns of threads that wait for each other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_double,
    c_int,
    c_int32,
    c_size_t,
    c_uint8,
    c_uint64,
)
from functools import lru_cache
from math import sqrt
from typing import Any, ClassVar, Final, NamedTuple

from vita_ckpt.core.distance import Distance

# Elements that are measured at once: few enough for numpy's arrays to stay in a cache. The sums of
# such blocks are added in their order.
BLOCK: Final = 1 << 17
# A block's sum is that of so many: the first of every 512th element, added in their order.
LANES: Final = 512
# What native.c calls itself, to tell a library that was compiled of an earlier one.
_VERSION: Final = 2
# The numbers in native.c of dtypes whose elements are exact in float32.
_DTYPES: Final = {"BF16": 0, "F16": 1, "F32": 2}


class Range(NamedTuple):
    """Elements in a file: its descriptor, the offset of the first byte, and the dtype."""

    descriptor: int
    offset: int
    dtype: str


class _Range(Structure):
    _fields_: ClassVar[Sequence[Any]] = [
        ("offset", c_uint64),
        ("file", c_int32),
        ("dtype", c_int32),
    ]


class _Distance(Structure):
    _fields_: ClassVar[Sequence[Any]] = [
        *((name, c_double) for name in ("delta", "before", "after", "dot", "largest")),
        ("changed", c_uint64),
    ]


class _Extent(Structure):
    _fields_: ClassVar[Sequence[Any]] = [(name, c_uint64) for name in ("first", "largest", "other")]


class Native:
    """The compiled loops. Other threads run meanwhile."""

    def __init__(self, library: CDLL) -> None:
        """Take them from a library; raises AttributeError if it has others."""
        sides: list[Any] = [POINTER(_Range), POINTER(_Range)]
        self._differing = library.vita_ckpt_differing
        self._differing.argtypes = [*sides, POINTER(c_uint64), c_size_t, POINTER(c_uint8)]
        self._distance = library.vita_ckpt_distance
        self._distance.argtypes = [*sides, c_size_t, POINTER(_Distance)]
        self._extent = library.vita_ckpt_extent
        self._extent.argtypes = [c_int, c_uint64, c_size_t, c_size_t, POINTER(_Extent)]

    def differing(self, before: Range, after: Range, stops: Sequence[int]) -> list[int] | None:
        """Return the indices of the ranges of bytes that differ; None if they cannot be read.

        They follow each other in both files, from the offsets on; ``stops`` are their ends, which
        rise, counted from there. Nothing is read of a range behind the block in which it is known
        to differ.
        """
        count = len(stops)
        ends, differs = (c_uint64 * count)(*stops), (c_uint8 * count)()
        if not self._differing(_range(before), _range(after), ends, count, differs):
            return None
        return [index for index, is_other in enumerate(differs) if is_other]

    @staticmethod
    def measures(*dtypes: str) -> bool:
        """Return whether :meth:`distance` knows elements of these dtypes."""
        return all(dtype in _DTYPES for dtype in dtypes)

    def distance(self, before: Range, after: Range, count: int) -> Distance | None:
        """Return the distance of two times ``count`` elements, in C order.

        None if not all of them are finite, or if they could not be read.
        """
        found = _Distance()
        if not self._distance(_range(before), _range(after), count, found):
            return None
        return Distance(
            elements=count,
            changed=found.changed,
            max_abs=sqrt(found.largest),
            delta=found.delta,
            before=found.before,
            after=found.after,
            dot=found.dot,
        )

    def extent(
        self, descriptor: int, offset: int, nbytes: int, width: int
    ) -> tuple[int, int | None] | None:
        """Look at unsigned integers of ``width`` bytes, 1, 2, 4 or 8, in a range of a file.

        Return the largest without its highest bit, and what they are if they are all the same. None
        if they could not be read. ``nbytes`` is positive.
        """
        found = _Extent()
        if not self._extent(descriptor, offset, nbytes, width, byref(found)):
            return None
        return found.largest, None if found.other else found.first


@lru_cache
def compiled() -> Native | None:
    """Return the loops; None where they were not compiled, or not of this source or processor."""
    try:
        library = CDLL(os.path.join(os.path.dirname(__file__), "native.so.1"))
        known = sys.byteorder == "little" and library.vita_ckpt_version() == _VERSION
        return Native(library) if known else None
    except (OSError, AttributeError):
        return None


def _range(of: Range) -> _Range:
    return _Range(of.offset, of.descriptor, _DTYPES.get(of.dtype, 0))
