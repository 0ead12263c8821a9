"""Whose a temporary file or directory is: a process of this machine, alive or dead, or another's.

The owner stands in the name, so that it is known whatever became of the content, and a claim is
one atomic rename.
"""

from __future__ import annotations

import functools
import os
import re
from typing import Final, Literal

from vita_ckpt.core.dataclass import dataclass

Fate = Literal["alive", "dead", "elsewhere"]

_TAG: Final = (
    r"(?P<pid>[0-9]{1,20})-(?P<started>[0-9]{1,20})-(?P<boot>[0-9a-f]{0,8})-"
    r"(?P<namespace>[0-9]{1,20})-(?P<machine>[0-9a-f]{0,8})-(?P<host>[A-Za-z0-9._-]{1,64})"
)
_HIDDEN: Final = -1
_STAGE: Final = re.compile(r"\.vita-ckpt-(?P<token>[0-9a-f]{12})(-(?P<tag>.+))?\.tmp", re.ASCII)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its number and start in clock ticks, its boot, its process namespace, its host.

    ``started``, ``boot``, ``namespace`` and ``machine`` are 0 or empty on systems that do not tell.
    """

    pid: int
    started: int
    boot: str
    namespace: int
    machine: str
    host: str

    @property
    def tag(self) -> str:
        """The owner as a part of a file name."""
        return f"{self.pid}-{self.started}-{self.boot}-{self.namespace}-{self.machine}-{self.host}"

    def fate(self) -> Fate:
        """What has become of it; ``elsewhere`` where that cannot be known from here."""
        here = current()
        # A machine may be given another name while it runs.
        same_run = self.machine and (self.machine, self.boot) == (here.machine, here.boot)
        if not same_run and (self.machine, self.host) != (here.machine, here.host):
            return "elsewhere"
        if self.boot != here.boot:
            # Hosts may share a name: only a machine's own id says that it was started anew.
            return "dead" if self.machine and self.boot and here.boot else "elsewhere"
        if self.namespace != here.namespace:
            return "elsewhere"
        started = _started(self.pid)
        if started == _HIDDEN:
            return "elsewhere"
        return "alive" if started == self.started else "dead"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def current() -> Owner:
    """This process."""
    pid = os.getpid()
    return Owner(pid, _started(pid) or 0, *_machine())


def parse(tag: str) -> Owner | None:
    """The owner that a tag names; None if it is none."""
    found = re.fullmatch(_TAG, tag, re.ASCII)
    if found is None:
        return None
    return Owner(
        int(found["pid"]),
        int(found["started"]),
        found["boot"],
        int(found["namespace"]),
        found["machine"],
        found["host"],
    )


def stage_name() -> str:
    """A new name for what is being written, beside its place: it says that it is ours."""
    return f".vita-ckpt-{os.urandom(6).hex()}-{current().tag}.tmp"


def is_stage(name: str) -> bool:
    """Whether a name is one of :func:`stage_name`, of this version or an earlier one."""
    return _STAGE.fullmatch(name) is not None


def fate_of_stage(name: str) -> Fate:
    """What has become of the process that staged something under ``name``."""
    found = _STAGE.fullmatch(name)
    owner = parse(found["tag"]) if found is not None and found["tag"] else None
    return owner.fate() if owner is not None else "elsewhere"


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is none.

    0 where the system does not tell and the process is there, ``_HIDDEN`` where it does not tell
    of processes of other people.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of a program may hold anything, parentheses and spaces included.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        tells = os.path.exists("/proc/self/stat")
        try:
            os.kill(pid, 0)
        except PermissionError:
            return _HIDDEN if tells else 0
        except (OSError, OverflowError):
            return None
        return None if tells else 0
    if fields[0] in (b"Z", b"X"):  # it has ended, and nobody has asked for its exit code
        return None
    return int(fields[19])


@functools.cache
def _machine() -> tuple[str, int, str, str]:
    """Boot, process namespace, machine id, host name: what does not change while this runs."""
    try:
        namespace = int(re.sub(r"\D", "", os.readlink("/proc/self/ns/pid")) or 0)
    except OSError:
        namespace = 0
    host = re.sub(r"[^A-Za-z0-9._-]", "_", os.uname().nodename)[:64] or "localhost"
    return (
        _short_id("/proc/sys/kernel/random/boot_id"),
        namespace,
        _short_id("/etc/machine-id"),
        host,
    )


def _short_id(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return re.sub(r"[^0-9a-f]", "", file.read(64))[:8]
    except (OSError, ValueError):
        return ""
