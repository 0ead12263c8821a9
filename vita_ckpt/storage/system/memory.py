"""Ask how much memory is free on this machine, or in the container that limits this process."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

_LIMIT: Final = "/sys/fs/cgroup/memory.max"
_USED: Final = "/sys/fs/cgroup/memory.current"
_STATISTICS: Final = "/sys/fs/cgroup/memory.stat"


def free_memory() -> int:
    """Return the bytes that can be taken without others losing theirs; 0 where it is not known.

    Pages that only cache files count as free.
    """
    available = _entry("/proc/meminfo", "MemAvailable:") << 10
    limit = _number(_LIMIT)
    if limit is None:  # no limit, or not version 2 of control groups
        return available
    used = (_number(_USED) or 0) - _entry(_STATISTICS, "inactive_file")
    return max(0, min(available, limit - used))


def _entry(path: str, name: str) -> int:
    """Return the number behind ``name`` in a file of names and numbers; 0 if there is none."""
    with suppress(OSError, ValueError), open(path, encoding="ascii") as lines:
        for line in lines:
            words = line.split()
            if words[:1] == [name]:
                return int(words[1])
    return 0


def _number(path: str) -> int | None:
    with suppress(OSError, ValueError), open(path, encoding="ascii") as text:
        return int(text.read())
    return None
