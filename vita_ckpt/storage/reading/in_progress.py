"""Whether a checkpoint is whole, or in the middle of a surgery in place, and whose that is.

Every reader asks, so this imports little.
"""

from __future__ import annotations

import os
from typing import Final

from vita_ckpt.errors import InputError
from vita_ckpt.storage.stores.base import Kind, Store
from vita_ckpt.storage.system.os_errors import unreadable_directory
from vita_ckpt.storage.system.owner import parse

HOME: Final = ".vita-ckpt"
NOBODY: Final = "owner-nobody"

_ACTIVE: Final = "active"


def home(root: str) -> str:
    """The directory of the journals of a checkpoint."""
    return os.path.join(root, HOME)


def active(root: str) -> str:
    """Where the journal of a surgery under way lies."""
    return os.path.join(root, HOME, _ACTIVE)


def is_mid_surgery(store: Store, root: str) -> bool:
    """Return whether an in-place surgery of this directory is under way, or died.

    On the hub that is a directory which was uploaded in the middle of one.
    """
    entry = store.look(home(root))
    return (
        entry is not None and entry.kind is Kind.DIRECTORY and store.look(active(root)) is not None
    )


def check_whole(store: Store, root: str) -> None:
    """Raise InputError if the directory is in the middle of an in-place surgery."""
    if is_mid_surgery(store, root):
        raise InputError(
            "mid-surgery",
            root,
            expected="a checkpoint that is whole",
            got=who(root),
            hint=f"vita-ckpt recover {root}"
            if store.is_local
            else "recover it where it was uploaded from, and push it again",
        )


def owner_file(directory: str) -> str | None:
    """The name of the file in a journal that says whose it is. Raises InputError for a link."""
    if os.path.islink(directory):
        raise InputError("not-a-directory", directory, expected="a directory", got="a link")
    try:
        names = [name for name in os.listdir(directory) if name.startswith("owner-")]
    except OSError as error:
        raise unreadable_directory(directory, error) from error
    return min(names, default=None)


def who(root: str) -> str:
    """Who is or was at work on a checkpoint, for a person."""
    try:
        owner = parse((owner_file(active(root)) or NOBODY).removeprefix("owner-"))
    except InputError:
        owner = None
    if owner is None:
        return "an in-place surgery that did not end"
    done = {"alive": "is at work on it", "dead": "died", "elsewhere": "may be at work on it"}
    return f"an in-place surgery of {owner}, which {done[owner.fate()]}"
