"""Turn what the operating system refuses into errors that say what to do: one table."""

from __future__ import annotations

import errno
import os
from typing import Final

from vita_ckpt.errors import InputError, OutputError


def unreadable(path: str, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened or read."""
    return InputError(
        "unreadable-file", path, got=os_reason(error), hint="check the path and its permissions"
    )


def unreadable_directory(path: str, error: OSError) -> InputError:
    """What the system said of a directory that cannot be listed."""
    return InputError(
        "unreadable-directory", path, got=os_reason(error), hint="check its permissions"
    )


def os_reason(error: OSError) -> str:
    """What the system says, without the path that the message names already."""
    return (error.strerror or type(error).__name__).lower()


CODES: Final = {
    errno.ENOSPC: ("no-space", "free some space, or write to another disk"),
    errno.EDQUOT: ("no-space", "the quota is used up: write elsewhere"),
    errno.EROFS: ("read-only-output", "write to another directory"),
    errno.EACCES: ("output-not-allowed", "check the permissions of the directory"),
    errno.EPERM: ("output-not-allowed", "check the permissions of the directory"),
}

OTHERWISE: Final = ("write-failed", "check the disk")


def code_of(number: int | None) -> str:
    """Return the code of the error for what the disk refused with this errno."""
    return CODES.get(number or 0, OTHERWISE)[0]


def io_error(error: OSError, path: str, left: str) -> OutputError:
    """What the system said while ``path`` was written, and in which state that leaves it."""
    code, hint = CODES.get(error.errno or 0, OTHERWISE)
    return OutputError(code, path, got=os_reason(error), hint=f"{hint}; {left}")


def require_space(directory: str, size: int) -> None:
    """Raise OSError(ENOSPC) if ``size`` bytes do not fit where ``directory`` is."""
    room = os.statvfs(directory)
    if size > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, f"no space left on device for {size} bytes")
