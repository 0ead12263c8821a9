"""Encode reports as JSON that every parser accepts: no NaN, no lone surrogates."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import isfinite
from typing import Any, Final

from vita_ckpt.errors import redacted

# Only a text can hold it: as an escape it is the same text, and no command in a pipeline's log.
_LOG_COMMAND: Final = re.compile(r"##(?=\[|vso\[)", re.IGNORECASE)


def json_text(value: Any) -> str:
    """Return ``value`` as indented JSON for a reader outside.

    Numbers that JSON has no word for (1e999, NaN) stand as texts; credentials are left out.
    """
    return _LOG_COMMAND.sub(r"#\\u0023", json.dumps(_spelt(value, redacted), indent=2))


def finite(value: Any) -> Any:
    """Return ``value`` with texts for numbers that JSON has no word for."""
    return _spelt(value, str)


def _spelt(value: Any, spell: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return spell(value)
    if isinstance(value, dict):
        return {_spelt(key, spell): _spelt(item, spell) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spelt(item, spell) for item in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
