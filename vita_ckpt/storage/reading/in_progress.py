"""Whether a checkpoint is whole, or in the middle of a surgery in place, and whose that is.

Every reader asks, so this imports little.
"""

from __future__ import annotations

import os
from shlex import quote
from typing import Final

from vita_ckpt.core.filenames import HOME
from vita_ckpt.errors import InputError
from vita_ckpt.storage.stores.base import Kind, Store
from vita_ckpt.storage.system.os_errors import unreadable_directory
from vita_ckpt.storage.system.owner import Fate, parse

NOBODY: Final = "owner-nobody"

_ACTIVE: Final = "active"
_NOT_OWN: Final = ("foreign-journal", "path-outside-checkpoint")


def home(root: str) -> str:
    """The directory of the journals of a checkpoint."""
    return os.path.join(root, HOME)


def active(root: str) -> str:
    """Where the journal of a surgery under way lies."""
    return os.path.join(root, HOME, _ACTIVE)


def is_mid_surgery(store: Store, root: str) -> bool:
    """Return whether an in-place surgery of this directory is under way, or died.

    On the hub that is a directory which was uploaded in the middle of one. Raises InputError where
    the system does not let it be known.
    """
    entry = store.look(home(root))
    if entry is None or entry.kind is not Kind.DIRECTORY:
        return False
    if store.look(active(root)) is not None:
        return True
    if store.is_local:
        try:
            os.lstat(active(root))
        except PermissionError as error:
            raise unreadable_directory(home(root), error) from error
        except OSError:
            pass
    return False


def check_whole(store: Store, root: str) -> None:
    """Raise InputError if the directory is in the middle of an in-place surgery, or may be."""
    if not is_mid_surgery(store, root):
        return
    got, hint = who(root), "recover it where it was uploaded from, and push it again"
    if store.is_local:
        hint = f"vita-ckpt recover {quote(root)}"
        if fate_of(active(root)) != "alive":
            got, hint = _foreign(root) or (got, hint)
    raise InputError("mid-surgery", root, expected="a checkpoint that is whole", got=got, hint=hint)


def _foreign(root: str) -> tuple[str, str] | None:
    """Return what to say of a journal that somebody else wrote; None for one's own or a damaged."""
    from vita_ckpt.storage.reading import signed_journal  # noqa: PLC0415 - seldom needed

    try:
        journal = signed_journal.read_journal(active(root), root)
        signed_journal.check_own(journal, root)
    except InputError as error:
        return (error.got, error.hint) if error.code in _NOT_OWN else None
    return None


def owner_file(directory: str) -> str | None:
    """The name of the file in a journal that says whose it is. Raises InputError for a link."""
    if os.path.islink(directory):
        raise InputError("not-a-directory", directory, expected="a directory", got="a link")
    try:
        names = [name for name in os.listdir(directory) if name.startswith("owner-")]
    except OSError as error:
        raise unreadable_directory(directory, error) from error
    return min(names, default=None)


def fate_of(directory: str) -> Fate:
    """Return what has become of the process that a journal names; ``dead`` where it names none."""
    try:
        name = owner_file(directory) or NOBODY
    except InputError:
        return "elsewhere"
    owner = parse(name.removeprefix("owner-"))
    return "dead" if name == NOBODY else "elsewhere" if owner is None else owner.fate()


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
