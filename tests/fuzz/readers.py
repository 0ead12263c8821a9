"""Every way in which the package reads a path."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vita_ckpt import VitaCkptError, diff, explain, inspect, validate


def read(path: Path) -> None:
    """Read ``path`` in every way, and let it be refused."""
    for reader in (inspect, validate, explain, lambda p: diff(p, p, values=True)):
        with contextlib.suppress(VitaCkptError):
            reader(path)
