"""Write small files of our own whole: plans and goldens, and reports over old ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from vita_ckpt.errors import UsageError
from vita_ckpt.storage.system.os_errors import io_error
from vita_ckpt.storage.system.owner import stage_name
from vita_ckpt.storage.system.syscalls import rename_new, sync, sync_directory


def check_new(path: str) -> None:
    """Raise UsageError if there is something at ``path``: asked before long work for a new file."""
    if os.path.lexists(path):
        raise _exists(path)


def write_new(path: str, text: str) -> None:
    """Write ``text`` to a new file; UsageError if it exists, OutputError if the disk refuses."""
    try:
        _write(path, text, rename_new)
    except FileExistsError as error:
        raise _exists(path) from error


def write_over(path: str, text: str) -> None:
    """Write ``text`` to a file, in place of what it was; OutputError if the disk refuses.

    A reader finds the old file or the new one, whole.
    """
    _write(path, text, os.replace)


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


def _write(path: str, text: str, move: Callable[[str, str], None]) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    stage = os.path.join(folder, stage_name())
    try:
        with open(stage, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
        move(stage, path)
        sync_directory(folder)
    except FileExistsError:
        raise
    except OSError as error:
        raise io_error(error, path, "nothing was written there") from error
    finally:
        with suppress(OSError):
            os.unlink(stage)
