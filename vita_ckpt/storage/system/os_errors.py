"""Turn errors of the operating system into errors that say what to do, by one table."""

from __future__ import annotations

import errno
import os
from typing import Final

from vita_ckpt.errors import InputError, OutputError

_COPY_WHAT_IT_IS: Final = (
    "what it leads to was removed, or left behind by a copy: download it again, or copy with cp -rL"
)


def unreadable(path: str, error: OSError) -> InputError:
    """Return the error for a file that cannot be opened or read."""
    gone = dangling(path)
    if gone:
        return InputError("unreadable-file", path, got=gone, hint=_COPY_WHAT_IT_IS)
    return InputError(
        "unreadable-file", path, got=os_reason(error), hint="check the path and its permissions"
    )


def dangling(path: str) -> str:
    """Return in words that ``path`` is a link to what is not there; empty if it is none."""
    try:
        is_broken = os.path.islink(path) and not os.path.exists(path)
        return f"a link to {os.readlink(path)}, where nothing is" if is_broken else ""
    except (OSError, ValueError):
        return ""


def unreadable_directory(path: str, error: OSError) -> InputError:
    """Return the error for a directory that cannot be listed."""
    return InputError(
        "unreadable-directory", path, got=os_reason(error), hint="check its permissions"
    )


def os_reason(error: OSError) -> str:
    """Return the system's reason, without the path, which the message already names."""
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
    """Return the error code for an errno from a write."""
    return CODES.get(number or 0, OTHERWISE)[0]


def io_error(error: OSError, path: str, left: str) -> OutputError:
    """Return the error for a failed write of ``path``; ``left`` says which state that leaves."""
    code, hint = CODES.get(error.errno or 0, OTHERWISE)
    return OutputError(code, path, got=os_reason(error), hint=f"{hint}; {left}")


def require_space(directory: str, size: int) -> None:
    """Raise OSError(ENOSPC) if ``size`` bytes do not fit where ``directory`` is."""
    room = os.statvfs(directory)
    if size > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, f"no space left on device for {size} bytes")
