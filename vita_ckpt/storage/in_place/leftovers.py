"""What runs that were killed left behind, and removing it: never what may still be in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.filenames import HOME
from vita_ckpt.storage.in_place import journal
from vita_ckpt.storage.system.os_errors import unreadable_directory
from vita_ckpt.storage.system.owner import Fate, fate_of_stage, is_stage


@dataclass(frozen=True, slots=True)
class Leftover:
    """A temporary file or directory, its bytes, and what has become of the process it is of."""

    path: str
    nbytes: int
    fate: Fate


def leftovers_in(directory: str, *, own: bool = False) -> list[Leftover]:
    """List what was staged in a directory and never became an output, by name.

    With ``own`` only what belongs to the user of this process: the directory is everybody's.
    Raises InputError if the directory cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if is_stage(name))
    except OSError as error:
        raise unreadable_directory(directory, error) from error
    found = [_leftover(os.path.join(directory, name), fate_of_stage(name)) for name in names]
    # One whose process ended well between the look at the names and the look at it is an output.
    return [leftover for leftover in found if _is_there(leftover.path, own)]


def leftovers_of(checkpoint: str) -> Iterator[Leftover]:
    """List what in-place surgeries of a checkpoint left beside the files that count."""
    for path, fate in journal.leftovers(checkpoint):
        yield _leftover(path, fate)


def remove(leftover: Leftover) -> bool:
    """Remove what a dead process left; whether it is gone."""
    if leftover.fate != "dead":
        return False
    if os.path.isdir(leftover.path) and not os.path.islink(leftover.path):
        shutil.rmtree(leftover.path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(leftover.path)
    home = os.path.dirname(leftover.path)
    if os.path.basename(home) == HOME:
        with suppress(OSError):
            os.rmdir(home)
    return not os.path.lexists(leftover.path)


def _is_there(path: str, own: bool) -> bool:
    try:
        return os.lstat(path).st_uid == os.geteuid() or not own
    except OSError:
        return False


def _leftover(path: str, fate: Fate) -> Leftover:
    if os.path.isdir(path) and not os.path.islink(path):
        return Leftover(path, journal.size_of(path), fate)
    with suppress(OSError):
        return Leftover(path, os.lstat(path).st_size, fate)
    return Leftover(path, 0, fate)
