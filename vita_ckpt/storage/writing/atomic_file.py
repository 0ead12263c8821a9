"""Write small files of our own whole: plans and goldens, and reports over old ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from vita_ckpt.errors import UsageError
from vita_ckpt.storage.system.access import Access, access_of, keep, limit
from vita_ckpt.storage.system.os_errors import io_error
from vita_ckpt.storage.system.owner import stage_name
from vita_ckpt.storage.system.syscalls import rename_new, sync, sync_directory


def check_new(path: str) -> None:
    """Raise UsageError if there is something at ``path``: asked before long work for a new file."""
    if os.path.lexists(path):
        raise _exists(path)


def write_new(path: str, text: str, access: Access | None = None) -> None:
    """Write ``text`` to a new file, which is no more open than ``access`` and umask allow.

    Raises UsageError if it exists, OutputError if the disk refuses.
    """
    try:
        _write(path, text, rename_new, None if access is None else partial(limit, access=access))
    except FileExistsError as error:
        raise _exists(path) from error


def write_over(path: str, text: str) -> None:
    """Write ``text`` to a file, in place of what it was; OutputError if the disk refuses.

    A reader finds the old file or the new one, whole, with one owner, group and mode.
    """
    old = access_of(path) if os.path.exists(path) else None
    _write(path, text, os.replace, None if old is None else partial(keep, access=old))


def append(path: str, text: str) -> None:
    """Write ``text`` at the end of a file, which is made if it is not there; OutputError."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise io_error(error, path, "a part of the report may be there") from error


def _exists(path: str) -> UsageError:
    return UsageError(
        "output-exists",
        path,
        expected="a path that does not exist yet",
        hint="name another file",
    )


def _write(
    path: str,
    text: str,
    move: Callable[[str, str], None],
    give_access: Callable[[int], object] | None,
) -> None:
    """Write a file and move it to its place; it is its owner's alone until it is given access."""
    folder = os.path.dirname(os.path.abspath(path))
    stage = os.path.join(folder, stage_name())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(stage, flags, 0o666 if give_access is None else 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if give_access is not None:
                give_access(descriptor)
            sync(descriptor)
        move(stage, path)
        sync_directory(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise io_error(error, path, "nothing was written there") from error
    finally:
        with suppress(OSError):
            os.unlink(stage)
