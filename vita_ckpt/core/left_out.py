"""What lies in a directory beside a checkpoint, as reports say it."""

from __future__ import annotations

from collections.abc import Mapping


def left_out_to_json(left_out: Mapping[str, str]) -> list[dict[str, str]]:
    """Return each name with the reason why it is not part of the checkpoint, as JSON values."""
    return [{"name": name, "reason": reason} for name, reason in left_out.items()]
