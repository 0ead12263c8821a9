"""Measure how far values are apart, by sums that add up over pieces, tensors and parts."""

from __future__ import annotations

from math import isfinite, sqrt

from vita_ckpt.core.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Distance:
    """Statistics of pairs of elements, before and after.

    ``changed`` counts the elements whose value differs; a NaN equals a NaN, -0 equals 0.
    ``nonfinite_before`` and ``nonfinite_after`` count NaN and infinities. Pairs with a non-finite
    element are excluded from the following figures, which are in float64. ``max_abs`` is the
    largest |after - before|. ``delta``, ``before`` and ``after`` are sums of squares: of the
    difference and of the two sides. ``dot`` is the sum of the products of the two sides. ``+``
    combines the statistics of disjoint sets of pairs.
    """

    elements: int = 0
    changed: int = 0
    nonfinite_before: int = 0
    nonfinite_after: int = 0
    max_abs: float = 0.0
    delta: float = 0.0
    before: float = 0.0
    after: float = 0.0
    dot: float = 0.0

    def __add__(self, other: Distance) -> Distance:
        return Distance(
            self.elements + other.elements,
            self.changed + other.changed,
            self.nonfinite_before + other.nonfinite_before,
            self.nonfinite_after + other.nonfinite_after,
            max(self.max_abs, other.max_abs),
            self.delta + other.delta,
            self.before + other.before,
            self.after + other.after,
            self.dot + other.dot,
        )

    def times(self, count: int) -> Distance:
        """Return the distance of the same elements repeated ``count`` times."""
        return Distance(
            self.elements * count,
            self.changed * count,
            self.nonfinite_before * count,
            self.nonfinite_after * count,
            self.max_abs,
            self.delta * count,
            self.before * count,
            self.after * count,
            self.dot * count,
        )

    @property
    def relative_l2(self) -> float | None:
        """‖after - before‖ / ‖before‖; None where ``before`` is all zero or float64 overflows."""
        if not self.max_abs:
            return 0.0
        return _finite(sqrt(self.delta / self.before)) if self.before else None

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two sides; None where one of them is all zero."""
        if not self.max_abs:
            return 1.0
        length = sqrt(self.before) * sqrt(self.after)
        cosine = _finite(self.dot / length) if length else None
        return None if cosine is None else min(1.0, max(-1.0, cosine))


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
