"""Faults in system calls, by the kernel: a run is held before each call of some names.

A filter of seccomp(2) in the run holds it there until this side has said what becomes of the call:
nothing but these calls is slowed down, unlike under a tracer.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import ioctl
from signal import SIGKILL
from typing import Final

# Of x86-64: all that change a directory or make a change last.
NUMBERS: Final = {
    "write": 1,
    "ioctl": 16,
    "pwrite64": 18,
    "writev": 20,
    "sendfile": 40,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "link": 86,
    "unlink": 87,
    "symlink": 88,
    "openat": 257,
    "mkdirat": 258,
    "unlinkat": 263,
    "renameat": 264,
    "linkat": 265,
    "symlinkat": 266,
    "sync_file_range": 277,
    "fallocate": 285,
    "pwritev": 296,
    "renameat2": 316,
    "copy_file_range": 326,
    "pwritev2": 328,
}
_NAMES: Final = {number: name for name, number in NUMBERS.items()}

_SECCOMP: Final = 317
_SET_MODE_FILTER: Final = 1
_NEW_LISTENER: Final = 1 << 3
_WAIT_KILLABLE_RECV: Final = 1 << 5  # a signal that comes while a call is held waits for its end
_PR_SET_NO_NEW_PRIVS: Final = 38
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_HOLD, _ALLOW = 0x7FC00000, 0x7FFF0000
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_CONTINUE: Final = 1

# A run that ends makes tens of calls of a name in a thread.
_ENDLESS: Final = 1000


@dataclass(frozen=True)
class Injection:
    """What happens to the ``at``-th call of a name that a thread makes, from 1.

    It fails with ``error`` and does nothing, or ``signal`` comes before it. ``persistent`` means
    every later one too; ``after_failure`` counts the calls of all threads, since one failed.
    """

    name: str
    at: int
    error: int = 0
    signal: int = 0
    persistent: bool = False
    after_failure: bool = False


def hold(names: Sequence[str]) -> int:
    """Have every call of these names in this process held, and return who is told of it."""
    numbers = [NUMBERS[name] for name in names]
    steps = [(_LOAD, 0, 0, 0)]  # the number of the call
    steps += [(_JUMP_IF_EQUAL, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _HOLD)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener: int = libc.syscall(
        _SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER | _WAIT_KILLABLE_RECV, program
    )
    if listener < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return listener


@dataclass
class Held:
    """A run of which calls are held: how many of each name a thread made, how many were failed."""

    pid: int
    listener: int
    injections: Sequence[Injection]
    calls: dict[str, Counter[int]] = field(default_factory=dict)
    failed: int = 0
    is_endless: bool = False
    _since: Counter[str] = field(default_factory=Counter)

    def answer(self) -> None:
        """Say what becomes of the call that is held; its process may be dead already."""
        call = bytearray(80)
        with suppress(FileNotFoundError):
            ioctl(self.listener, _NOTIF_RECV, call)
            identity, thread, _flags, number = struct.unpack_from("<QIIi", call)
            error = self._count(_NAMES[number], thread)
            if error is not None:
                answer = struct.pack("<QqiI", identity, 0, -error, 0 if error else _CONTINUE)
                ioctl(self.listener, _NOTIF_SEND, answer)

    def _count(self, name: str, thread: int) -> int | None:
        """Count a call, and return the errno that it fails with, 0 to go on, None once killed."""
        counts = self.calls.setdefault(name, Counter())
        counts[thread] += 1
        self._since[name] += self.failed > 0
        self.is_endless = counts[thread] > _ENDLESS
        for injection in self.injections:
            count = self._since[name] if injection.after_failure else counts[thread]
            later = injection.persistent and count > injection.at
            if name == injection.name and (count == injection.at or later):
                if injection.signal:
                    _libc().tgkill(self.pid, thread, injection.signal)
                if injection.signal == SIGKILL:  # told to go on the call would happen all the same
                    return None
                if injection.error:
                    self.failed += 1
                    return injection.error
        return 0


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
