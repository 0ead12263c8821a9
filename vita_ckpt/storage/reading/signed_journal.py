"""Read the journal of a surgery in place, and tell the user's own from another's.

A journal may come with a checkpoint. Whoever made it up, it can name only files that a surgery
changes, and it counts only if it was signed here for the directory it lies in.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from vita_ckpt.core.filenames import HOME, may_change_in_place
from vita_ckpt.core.journal import Journal, decode
from vita_ckpt.errors import InputError, MalformedFileError
from vita_ckpt.storage.stores.local import opened, read_at
from vita_ckpt.storage.system.state import known_key

JOURNAL: Final = "journal.json"
RANGES: Final = "ranges"
OLD: Final = "old"
NEW: Final = "new"

_LARGEST: Final = 64 << 20
_MOST_NAMED: Final = 4


def read_journal(directory: str, root: str) -> Journal:
    """Return the journal in a directory of ours, whoever wrote it.

    Raises MalformedFileError if it is not, byte for byte, what was written, if something of it is
    a link, or if it names a file that no surgery changes.
    """
    path = os.path.join(directory, JOURNAL)
    for name in (".", JOURNAL, RANGES, OLD, NEW):
        part = os.path.normpath(os.path.join(directory, name))
        if os.path.islink(part):
            raise damaged_journal(part, root, "a link")
    with opened(path) as (descriptor, file):
        data = read_at(descriptor, min(file.size, _LARGEST), 0, path)
    try:
        journal = decode(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged_journal(path, root, str(error)) from error
    check_names(journal, root)
    return journal


def check_names(journal: Journal, root: str) -> None:
    """Raise MalformedFileError for a file that no surgery in place changes."""
    patched = {file.name for file in journal.patched}
    for name in journal.names:
        is_weights = name.endswith(".safetensors")
        if not may_change_in_place(name) or (name in patched and not is_weights):
            raise MalformedFileError(
                "path-outside-checkpoint",
                f"{os.path.join(root, HOME, JOURNAL)}: {name!r}",
                expected="a file of the checkpoint that a surgery changes",
                got=f"a foreign journal that would write {what_it_writes(journal)}",
                hint="the journal is hostile: vita-ckpt clean --foreign-journal removes it",
            )


def is_own(journal: Journal, root: str) -> bool:
    """Return whether this user signed a journal for this directory."""
    key = known_key()
    return key is not None and journal.is_signed(key, directory_number(root))


def directory_number(root: str) -> int:
    """Return the inode of a checkpoint directory."""
    return os.stat(root).st_ino


def check_own(journal: Journal, root: str) -> None:
    """Raise InputError for a journal that came with the checkpoint, or with a copy of it."""
    if not is_own(journal, root):
        raise InputError(
            "foreign-journal",
            root,
            expected="a journal that you signed for this directory",
            got=f"a foreign one that would write {what_it_writes(journal)}",
            hint=WHAT_TO_DO,
        )


WHAT_TO_DO: Final = (
    "vita-ckpt clean --foreign-journal removes it; only if the checkpoint is your own, moved or "
    "restored: vita-ckpt recover --force, or undo --force"
)


def what_it_writes(journal: Journal) -> str:
    """Return the first files that putting back would write, for a person."""
    names = list(dict.fromkeys(journal.names))
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def damaged_journal(path: str, root: str, got: str) -> MalformedFileError:
    """Return the error for a journal that is not what was written."""
    return MalformedFileError(
        "damaged-journal",
        path,
        expected="the journal as it was written",
        got=got,
        hint=f"nothing was put back; to take {root} as it is, remove its {HOME} directory",
    )


def is_directory(path: str) -> bool:
    """Return whether there is a directory, which is not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def is_plain_file(path: str) -> bool:
    """Return whether a saved file is one that can be put back: a regular file or a link."""
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)
