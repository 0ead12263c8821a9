"""Find the store that a path belongs to, and what lies there."""

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
    """The stores that paths lead to: the local disk and, once a path names it, the hub.

    Calls that share one share a session with the hub, what it listed, and the count of bytes.
    ``hub`` is the store of addresses on the hub, by default one made when it is needed.
    """

    def __init__(self, hub: HubStore | None = None) -> None:
        self._hub = hub

    def store_of(self, path: str) -> Store:
        """Return the store of a path or of an address ``hf://…``."""
        return self.hub if is_remote(path) else LOCAL

    @property
    def hub(self) -> HubStore:
        """Return the hub, with one session for all who share these stores."""
        if self._hub is None:
            # Local commands do without the HTTP library and what it imports.
            from vita_ckpt.storage.hub.store import HubStore  # noqa: PLC0415

            self._hub = HubStore()
        return self._hub

    def open(self, path: str) -> AbstractContextManager[Source]:
        """Open the regular file at a path of any store. Raises InputError for anything else."""
        return self.store_of(path).open(path)

    @property
    def bytes_downloaded(self) -> int:
        """Return the bytes that came from the hub so far."""
        return 0 if self._hub is None else self._hub.session.bytes_downloaded

    def count_downloaded(self, nbytes: int) -> None:
        """Add bytes that another process downloaded for these stores."""
        if nbytes:
            self.hub.session.count(nbytes)


def find(store: Store, path: str | os.PathLike[str]) -> tuple[str, Entry]:
    """Return the absolute path and what lies there. Raises InputError if nothing does."""
    text = os.fspath(path)
    try:
        root = store.absolute(text)
        entry = store.look(root)
    except ValueError as error:  # a name that no file can have
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
    """Return whether something lies at ``path``, at the end of a link too."""
    found = store.look(path)
    return found is not None and found.kind is not Kind.BROKEN_LINK


def is_file(store: Store, path: str) -> bool:
    """Return whether a regular file lies at ``path``, or at the end of a link there."""
    found = store.look(path)
    return found is not None and found.kind is Kind.FILE


def is_directory(store: Store, path: str) -> bool:
    """Return whether a directory lies at ``path``, or at the end of a link there."""
    found = store.look(path)
    return found is not None and found.is_directory


def read_json(store: Store | Stores, path: str) -> tuple[dict[str, Any], File]:
    """Return the JSON object in the file at ``path``, and the file's identity.

    Raises InputError if it cannot be read and MalformedFileError if it holds no JSON object.
    """
    with store.open(path) as source:
        return read_json_object(source)
