"""The key that signs the journals of this user: it lies outside every checkpoint.

A checkpoint comes with whatever its author put into it, a journal included. What was signed with
this key was written here.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

from vita_ckpt.errors import OutputError
from vita_ckpt.storage.system.os_errors import os_reason
from vita_ckpt.storage.system.syscalls import rename_new, sync, sync_directory

_KEY: Final = "journal-key"
_BYTES: Final = 32


def state_directory() -> str:
    """Return ``$XDG_STATE_HOME/vita-ckpt``, by default below ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(home):  # as the XDG specification says of a relative path
        home = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(home, "vita-ckpt")


def known_key() -> bytes | None:
    """Return the key of this user; None if there is none that can be trusted."""
    try:
        return _read()
    except (OSError, ValueError):
        return None


def signing_key() -> bytes:
    """Return the key of this user, which is made on first use and then is on the disk to stay.

    Of several processes that make it at once one succeeds, and the others take its key. Raises
    OutputError where there is no directory for it, or what is there is no key.
    """
    folder = state_directory()
    try:
        if not os.path.lexists(os.path.join(folder, _KEY)):
            _make(folder)
        key = _read()
        # Whoever made it may not have come to this.
        sync_directory(folder)
        sync_directory(os.path.dirname(folder))
    except (OSError, ValueError) as error:
        raise OutputError(
            "no-state-directory",
            folder,
            expected="a directory for the key that signs journals",
            got=os_reason(error) if isinstance(error, OSError) else str(error),
            hint="let XDG_STATE_HOME name a directory of yours, or write to a new path with --out",
        ) from error
    return key


def _read() -> bytes:
    """Return the key. Raises ValueError for one that others may know or may have put there."""
    path = os.path.join(state_directory(), _KEY)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != _BYTES:
            raise ValueError(f"a {_KEY} that is none")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ValueError(f"a {_KEY} that is not yours alone")
        key = os.read(descriptor, _BYTES)
    finally:
        os.close(descriptor)
    if len(key) != _BYTES:
        raise ValueError(f"a {_KEY} that is none")
    return key


def _make(folder: str) -> None:
    _make_directories(folder)
    stage = os.path.join(folder, f".{_KEY}-{os.urandom(6).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(stage, flags, 0o600)
    try:
        try:
            if os.write(descriptor, os.urandom(_BYTES)) != _BYTES:
                raise ValueError("a disk that takes no key")
            sync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileExistsError):
            rename_new(stage, os.path.join(folder, _KEY))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(stage)


def _make_directories(folder: str) -> None:
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        _make_directories(parent)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    with suppress(PermissionError):  # a parent that may be passed but not be read
        sync_directory(parent)
