"""Bound what is spent on files that look harmless and may have been made to cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Effort:
    """How many bytes and opcodes of pickles may still be looked through, in all files together."""

    bytes_left: int = 1 << 30
    opcodes_left: int = 1 << 22
