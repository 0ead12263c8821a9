"""Small files of our own: plans and goldens, written whole to names that do not exist yet."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

from vita_ckpt.errors import OutputError, UsageError
from vita_ckpt.storage.source import os_reason
from vita_ckpt.storage.syscalls import rename_new


def write_new(path: str, text: str) -> None:
    """Write ``text`` to a new file; UsageError if it exists, OutputError if the disk refuses."""
    stage = os.path.join(os.path.dirname(path), f".vita-ckpt-{secrets.token_hex(6)}.tmp")
    try:
        with open(stage, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        rename_new(stage, path)
    except FileExistsError as error:
        raise UsageError(
            "output-exists",
            path,
            expected="a path that does not exist yet",
            hint="remove it, or name another file",
        ) from error
    except OSError as error:
        raise OutputError("write-failed", path, got=os_reason(error)) from error
    finally:
        with suppress(OSError):
            os.unlink(stage)
