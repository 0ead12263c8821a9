"""Encode JSON files that carry their own digest, so that any changed bit is found."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """``body`` as a file of this kind, with a digest of itself."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()
    content = {"format": kind, "version": 1, "digest": f"sha256:{digest}", "body": body}
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """The body of ``data``; ValueError unless every byte is as :func:`seal` wrote it."""
    try:
        value = json.loads(data.decode("ascii"))
        body = value.get("body") if isinstance(value, dict) else None
        if not isinstance(body, dict) or seal(kind, body) != data:
            raise ValueError("not, byte for byte, what was written")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return body
