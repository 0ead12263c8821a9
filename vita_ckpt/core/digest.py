"""Compute digests of bytes."""

from __future__ import annotations

import hashlib


def digest(data: bytes) -> str:
    """Return the SHA-256 of ``data``, in hex."""
    return hashlib.sha256(data).hexdigest()
