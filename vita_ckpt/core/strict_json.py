"""Encode reports as JSON that every parser accepts: no NaN, no lone surrogates."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON; non-finite numbers (1e999, NaN) become strings."""
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        return json.dumps(_nonfinite_as_text(value), indent=2, allow_nan=False)


def _nonfinite_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nonfinite_as_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nonfinite_as_text(item) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
