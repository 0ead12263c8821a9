"""Where the long sweeps work: a disk only costs time, and a busy one stalls for seconds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 4 << 30  # more than all processes need at once


@contextmanager
def in_memory(request: pytest.FixtureRequest, otherwise: Path) -> Iterator[Path]:
    """A directory in memory for a test of the torture, if there is room; ``otherwise`` for any."""
    is_long = request.node.get_closest_marker("torture") is not None
    if is_long and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM:
        with TemporaryDirectory(prefix="torture-", dir=_MEMORY) as made:
            yield Path(made)
    else:
        yield otherwise
