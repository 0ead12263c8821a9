"""Compute digests of bytes."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any, Final

# hashlib loads OpenSSL, which takes longer than to read a checkpoint's headers, and is faster only
# for more bytes than these. As random does, small files use Python's own module, where it has one.
_SMALL: Final = 1 << 16
_MODULES: Final = ("_sha2", "_sha256", "hashlib")  # from 3.12 on, before, and where neither is


def digest(data: bytes) -> str:
    """Return the SHA-256 of ``data``, in hex."""
    names = _MODULES if len(data) <= _SMALL else _MODULES[-1:]
    return str(_module(names).sha256(data).hexdigest())


@lru_cache  # to look for what is not there takes longer than to digest
def _module(names: tuple[str, ...]) -> Any:
    *others, last = names
    for name in others:
        try:
            return import_module(name)
        except ImportError:
            continue
    return import_module(last)
