"""Find the store that a path belongs to, and what is at that path."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from vita_ckpt.core.address import is_remote
from vita_ckpt.core.checkpoint import File
from vita_ckpt.errors import InputError
from vita_ckpt.storage.formats.json_file import read_json_object
from vita_ckpt.storage.stores.base import Entry, Kind, Source, Store
from vita_ckpt.storage.stores.local import LOCAL
from vita_ckpt.storage.system.os_errors import os_reason

if TYPE_CHECKING:
    from vita_ckpt.storage.hub.store import HubStore


class Stores:
    """The stores of all paths: the local disk and, once a path refers to it, the hub.

    Calls that use the same object share a session with the hub, its listings and the count of
    bytes. ``hub`` is the store of addresses on the hub; by default it is created when needed.
    """

    def __init__(self, hub: HubStore | None = None) -> None:
        self._hub = hub

    def store_of(self, path: str) -> Store:
        """Return the store of a path or of an address ``hf://…``."""
        return self.hub if is_remote(path) else LOCAL

    @property
    def hub(self) -> HubStore:
        """The store of the hub, created on first use; all users share its session."""
        if self._hub is None:
            # Imported here so that local commands do not import the HTTP library.
            from vita_ckpt.storage.hub.store import HubStore  # noqa: PLC0415

            self._hub = HubStore()
        return self._hub

    def open(self, path: str) -> AbstractContextManager[Source]:
        """Open the regular file at a path of any store. Raises InputError for anything else."""
        return self.store_of(path).open(path)

    @property
    def bytes_downloaded(self) -> int:
        """Bytes received from the hub so far."""
        return 0 if self._hub is None else self._hub.session.bytes_downloaded

    def count_downloaded(self, nbytes: int) -> None:
        """Add bytes that another process downloaded for these stores."""
        if nbytes:
            self.hub.session.count(nbytes)


def find(store: Store, path: str | os.PathLike[str]) -> tuple[str, Entry]:
    """Return the absolute path and what is there. Raises InputError if there is nothing."""
    text = os.fspath(path)
    try:
        root = store.absolute(text)
        entry = store.look(root)
    except ValueError as error:  # an invalid file name
        raise _not_found(text, str(error)) from error
    except OSError as error:  # a relative path, and the working directory is gone
        raise _not_found(text, os_reason(error)) from error
    if entry is not None and entry.kind is not Kind.BROKEN_LINK:
        return root, entry
    store.check_known(root)
    raise _not_found(text, store.why_absent(root))


def _not_found(path: str, reason: str) -> InputError:
    return InputError(
        "not-found",
        path,
        expected="a checkpoint directory or file",
        got=reason,
        hint="check the path",
    )


def exists(store: Store, path: str) -> bool:
    """Return whether something is at ``path``; links are followed."""
    found = store.look(path)
    return found is not None and found.kind is not Kind.BROKEN_LINK


def is_file(store: Store, path: str) -> bool:
    """Return whether a regular file is at ``path``; links are followed."""
    found = store.look(path)
    return found is not None and found.kind is Kind.FILE


def is_directory(store: Store, path: str) -> bool:
    """Return whether a directory is at ``path``; links are followed."""
    found = store.look(path)
    return found is not None and found.is_directory


def read_json(store: Store | Stores, path: str) -> tuple[dict[str, Any], File]:
    """Return the JSON object in the file at ``path``, and the file's identity.

    Raises InputError if it cannot be read and MalformedFileError if it holds no JSON object.
    """
    with store.open(path) as source:
        return read_json_object(source)


def read_optional(
    store: Store, root: str, name: str
) -> tuple[dict[str, Any] | None, dict[str, File]]:
    """A JSON file that may be there, and its identity by name."""
    path = os.path.join(root, name)
    if store.look(path) is None:
        return None, {}
    value, file = read_json(store, path)
    return value, {name: file}
