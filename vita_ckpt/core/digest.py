"""Compute digests of bytes."""

from __future__ import annotations


def digest(data: bytes) -> str:
    """Return the SHA-256 of ``data``, in hex."""
    import hashlib  # noqa: PLC0415 - start-up: OpenSSL is loaded with it

    return hashlib.sha256(data).hexdigest()
