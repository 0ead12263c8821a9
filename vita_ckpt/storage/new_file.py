"""Small files of our own: plans and goldens, written to names that do not exist yet."""

from __future__ import annotations

from vita_ckpt.errors import OutputError, UsageError
from vita_ckpt.storage.source import os_reason


def write_new(path: str, text: str) -> None:
    """Write ``text`` to a new file; UsageError if it exists, OutputError if the disk refuses."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise UsageError(
            "output-exists",
            path,
            expected="a path that does not exist yet",
            hint="remove it, or name another file",
        ) from error
    except OSError as error:
        raise OutputError("write-failed", path, got=os_reason(error)) from error
