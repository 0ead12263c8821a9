"""Encode reports as JSON that every parser takes: no NaN, no lone surrogates."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any


def json_text(value: Any) -> str:
    """``value`` as indented JSON; numbers that JSON has no word for (1e999, NaN) stand as texts."""
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        return json.dumps(_spelt(value), indent=2, allow_nan=False)


def _spelt(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _spelt(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
