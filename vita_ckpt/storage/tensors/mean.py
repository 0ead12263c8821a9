"""Compute the mean of a table's rows, streamed and in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vita_ckpt.core.checkpoint import Mean
from vita_ckpt.core.dtype import BITS
from vita_ckpt.errors import CastError
from vita_ckpt.storage.tensors.cast import BecomesInfiniteError, convert, to_f64


def mean_bytes(mean: Mean, table: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield the rows of ``mean`` from the bytes of its table; one row is computed, once.

    The rows are summed one after the other, so the result does not depend on how the bytes are cut.
    Raises CastError where the mean is not finite.
    """
    rows, width = mean.ref.shape
    size = width * BITS[mean.ref.dtype] // 8
    total = np.zeros(width, np.float64)
    rest = b""
    for data in table:
        rest += data
        whole = len(rest) - len(rest) % size
        for values in to_f64(rest[:whole], mean.ref.dtype).reshape(-1, width):
            total += values
        rest = rest[whole:]
    found = total / rows
    try:
        if not np.isfinite(found).all():
            raise BecomesInfiniteError(int(np.flatnonzero(~np.isfinite(found))[0]), np.nan)
        row = convert(found.astype("<f8").tobytes(), "F64", mean.dtype)
    except BecomesInfiniteError as error:
        raise CastError(
            "mean-not-finite",
            f"{mean.ref.source.path}: {name}",
            expected="rows whose mean is a number",
            got=f"none in column {error.index}",
            hint="vita-ckpt validate --values names the rows; --init normal needs no mean",
        ) from error
    for _ in range(mean.shape[0]):
        yield row
