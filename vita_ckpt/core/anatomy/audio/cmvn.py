"""Read ``global_cmvn``: the mean and the inverse deviation of every mel bin (AUDIO §3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError

# The least variance of a bin.
_FLOOR: Final = 1e-20
_MOST_BINS: Final = 1 << 16
_LARGEST: Final = 1e100  # of a sum; its mean is squared


@dataclass(frozen=True, slots=True)
class Cmvn:
    """``mean`` and ``istd`` (the inverse of the standard deviation) of every mel bin."""

    mean: tuple[float, ...]
    istd: tuple[float, ...]


def cmvn_of_json(content: Mapping[str, Any], path: str) -> Cmvn:
    """Return the statistics in JSON: ``mean_stat``, ``var_stat`` and ``frame_num``."""
    means, variances, count = (content.get(k) for k in ("mean_stat", "var_stat", "frame_num"))
    if not isinstance(means, list) or not isinstance(variances, list):
        raise _malformed(path, "lists mean_stat and var_stat, and frame_num")
    return _cmvn(means, variances, count, path)


def cmvn_of_text(text: str, path: str) -> Cmvn:
    """Return the statistics in Kaldi's text: ``[ sums… count squares… 0 ]``."""
    words = text.split()
    if len(words) < 4 or words[0] != "[" or words[-1] != "]" or words[-2] != "0":
        raise _malformed(path, "Kaldi's [ sums… count squares… 0 ]")
    try:
        numbers = [float(word) for word in words[1:-2]]
    except ValueError:
        raise _malformed(path, "numbers") from None
    bins, rest = divmod(len(numbers) - 1, 2)
    if rest:
        raise _malformed(path, "as many sums as squares")
    return _cmvn(numbers[:bins], numbers[bins + 1 :], numbers[bins], path)


def _cmvn(means: Sequence[Any], variances: Sequence[Any], count: Any, path: str) -> Cmvn:
    if len(means) != len(variances) or not 0 < len(means) <= _MOST_BINS:
        raise _malformed(path, "as many means as variances")
    if not all(_is_number(number) for number in (*means, *variances, count)) or count <= 0:
        raise _malformed(path, "finite numbers, and a positive count")
    mean = tuple(total / count for total in means)
    spread = [
        max(total / count - centre * centre, _FLOOR)
        for total, centre in zip(variances, mean, strict=True)
    ]
    if not all(isfinite(number) for number in (*mean, *spread)):
        raise _malformed(path, "a finite mean and variance of every bin")
    return Cmvn(mean, tuple(1 / sqrt(one) for one in spread))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -_LARGEST < value < _LARGEST


def _malformed(path: str, expected: str) -> InputError:
    return InputError("invalid-global-cmvn", path, expected=expected, got="other values")
