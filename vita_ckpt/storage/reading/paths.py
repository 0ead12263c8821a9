"""Where files lie, the disk or a repository on the hub: both are asked the same questions."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from vita_ckpt.core.address import is_inside, is_remote, parse_address
from vita_ckpt.core.checkpoint import LocalFile
from vita_ckpt.errors import InputError
from vita_ckpt.storage.stores.base import Entry, Kind, Source
from vita_ckpt.storage.stores.local import _OpenFile, opened
from vita_ckpt.storage.system.os_errors import os_reason, unreadable_directory


def look(path: str) -> Entry | None:
    """What lies at ``path``; None if nothing does that can be reached."""
    if is_remote(path):
        from vita_ckpt.storage.hub.store import look as look_on_the_hub  # noqa: PLC0415

        return look_on_the_hub(path)
    try:
        is_link = os.path.islink(path)
        status = os.stat(path)
    except (OSError, ValueError):
        return Entry(Kind.BROKEN_LINK) if os.path.islink(path) else None
    if stat.S_ISREG(status.st_mode):
        return Entry(Kind.FILE, LocalFile(path, status.st_size, status.st_mtime_ns))
    if not stat.S_ISDIR(status.st_mode):
        return Entry(Kind.OTHER)
    return Entry(Kind.DIRECTORY_LINK if is_link else Kind.DIRECTORY)


def find(path: str | os.PathLike[str]) -> tuple[str, Entry]:
    """The absolute path (an address on the hub as it is) and what lies there.

    Raises InputError if nothing does.
    """
    text = os.fspath(path)
    reason = "nothing there"
    try:
        root = text if is_remote(text) else os.path.abspath(text)
        entry = look(root)
        if entry is not None and entry.kind is not Kind.BROKEN_LINK:
            return root, entry
        check_known(root)
        if not is_remote(text):
            os.stat(text)
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
    raise InputError(
        "not-found",
        text,
        expected="a checkpoint directory or file",
        got=reason,
        hint="check the path",
    )


def exists(path: str) -> bool:
    """Whether something lies at ``path``, at the end of a link too."""
    found = look(path)
    return found is not None and found.kind is not Kind.BROKEN_LINK


def is_file(path: str) -> bool:
    """Whether a regular file lies at ``path``, or at the end of a link there."""
    found = look(path)
    return found is not None and found.kind is Kind.FILE


def is_directory(path: str) -> bool:
    """Whether a directory lies at ``path``, or at the end of a link there."""
    found = look(path)
    return found is not None and found.is_directory


def reached_from(root: str, path: str) -> str | None:
    """Where a path that a config in ``root``, or beside that file, leads; None if nothing is there.

    It is looked for from here, beside the checkpoint's directory, and in it. What a config on the
    hub names is looked for in its own commit alone: it reaches no other repository, and not this
    machine.
    """
    if is_remote(root):
        return _reached_in_repository(root, path)
    if "\0" in path:
        return None
    folder = os.path.dirname(root) if os.path.isfile(root) else root
    for place in ("", os.path.dirname(folder), folder):
        found = os.path.abspath(os.path.join(place, path))
        if os.path.exists(found):
            return found
    return None


def _reached_in_repository(root: str, path: str) -> str | None:
    address = parse_address(root)
    folder = posixpath.dirname(address.below) if is_file(root) else address.below
    for place in (posixpath.dirname(folder), folder):
        below = posixpath.normpath(posixpath.join(place, path))
        below = "" if below == "." else below
        # An absolute path, and one that has more steps up than there are, is none in a repository.
        if is_inside(below):
            found = str(replace(address, below=below))
            if exists(found):
                return found
    return None


def listing(root: str) -> list[str]:
    """The names in a directory, sorted."""
    if is_remote(root):
        from vita_ckpt.storage.hub.store import listing as listing_on_the_hub  # noqa: PLC0415

        return listing_on_the_hub(root)
    try:
        return sorted(os.listdir(root))
    except OSError as error:
        raise unreadable_directory(root, error) from error


def stays_below(root: str, name: str) -> bool:
    """Whether ``name`` is that of a file below ``root``: links to directories may lead out."""
    if not name or not is_inside(name):
        return False
    if is_remote(root):
        return True
    top = os.path.realpath(root)
    folder = os.path.realpath(os.path.join(root, *name.split("/")[:-1]))
    return os.path.commonpath([top, folder]) == top


def folder_of(path: str) -> str:
    """The directory that a file lies in, by whatever links it was reached."""
    return posixpath.dirname(path) if is_remote(path) else os.path.dirname(os.path.realpath(path))


def check_known(path: str) -> None:
    """Raise HubError if ``path``, where nothing lies, may be on the hub all the same: offline."""
    if is_remote(path):
        from vita_ckpt.storage.hub.store import check_known as check  # noqa: PLC0415

        check(path)


def expect_headers(root: str, names: list[str]) -> None:
    """Say that the weight files ``names`` will be opened: far away ones are asked all at once."""
    if is_remote(root):
        from vita_ckpt.storage.hub.store import expect_headers as expect  # noqa: PLC0415

        expect(root, names)


@contextmanager
def reading(path: str) -> Iterator[Source]:
    """The file at ``path``, or at an address pinned to a commit, for reading."""
    if is_remote(path):
        from vita_ckpt.storage.hub.store import open_remote  # noqa: PLC0415 - seldom needed

        yield open_remote(path)
    else:
        with opened(path) as (descriptor, file):
            yield _OpenFile(descriptor, file)
