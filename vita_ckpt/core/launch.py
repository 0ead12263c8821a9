"""Read from the environment which process of a launched group this one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import UsageError

# How long nothing may move on any rank, in seconds.
RANK_TIMEOUT: Final = 300.0

# What torchrun sets, and what srun's jobs export for torch's ``env://``. All of them, or no launch.
_NEEDED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """One process of a launched group.

    ``rank`` is its number among ``size``, ``local_rank`` its number on this machine. The processes
    find each other at ``address``:``port``, where rank 0 listens, or the launcher does
    (``served``). ``attempt`` distinguishes the restarts of a launcher.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    served: bool
    attempt: str


def launch_of(environment: Mapping[str, str]) -> Launch | None:
    """Return the launch that an environment describes, None if it describes none.

    It describes one if RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are all set, and
    WORLD_SIZE is not 1. Raises UsageError ``invalid-launch`` for numbers that cannot be.
    """
    if not all(environment.get(name) for name in _NEEDED) or environment["WORLD_SIZE"] == "1":
        return None
    size = _number(environment, "WORLD_SIZE", range(2, 1 << 16))
    return Launch(
        rank=_number(environment, "RANK", range(size)),
        size=size,
        local_rank=_number(environment, "LOCAL_RANK", range(size)),
        address=environment["MASTER_ADDR"],
        port=_number(environment, "MASTER_PORT", range(1, 1 << 16)),
        served=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _number(environment: Mapping[str, str], name: str, allowed: range) -> int:
    text = environment[name]
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) in allowed:
        return int(text)
    raise UsageError(
        "invalid-launch",
        name,
        expected=f"a number from {allowed.start} to {allowed.stop - 1}",
        got=text,
        hint="--single ignores the launcher's variables",
    )
