"""Distinguish local paths from repositories on the hub, and open them."""

from __future__ import annotations

import os
from dataclasses import replace

from vita_ckpt.core.address import (
    Address,
    address_meant,
    is_remote,
    looks_like_repository,
    parse_address,
)
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint
from vita_ckpt.errors import HubError, InputError, StaleInputError, UsageError
from vita_ckpt.storage.reading import checkpoint as directory
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.system.os_errors import os_reason

StrPath = str | os.PathLike[str]


def open_checkpoint(
    path: StrPath,
    *,
    key: str | None = None,
    ignore_index: bool = False,
    stores: Stores | None = None,
) -> Checkpoint:
    """Open a checkpoint, adapter, run or tower; read only headers, whatever its size.

    ``path`` is a directory (single-file or sharded safetensors or ``.bin``, a projector run, a PEFT
    run, a folder of steps), a lone ``.safetensors``/``.bin``/``.pt`` file, or one of these on the
    hub: ``hf://org/name[@revision][/subfolder]``, or ``org/name`` if no such path exists.
    ``key`` is the path of the state dict to read in files of ``torch.save`` that hold several, keys
    joined by dots; by default the likeliest one. ``ignore_index`` takes the weight files of a
    directory for what they are, whatever a stale index says. ``stores`` shares a session with the
    hub between calls.

    Raises InputError (or a subclass) if the checkpoint cannot be read, breaks a rule of its format,
    or refers to files outside its directory. The error names the file, and the tensor where one is
    concerned.
    """
    stores = Stores() if stores is None else stores
    address = _address(path)
    if address is None:
        return directory.open_checkpoint(path, stores, key, ignore_index=ignore_index)
    pinned = _pinned(address, path, stores)
    opened = directory.open_checkpoint(pinned, stores, key, ignore_index=ignore_index)
    return replace(opened, revision="" if address.is_pinned else address.revision or "main")


def as_checkpoint(
    checkpoint: Checkpoint | StrPath, stores: Stores | None, key: str | None = None
) -> Checkpoint:
    """Return a checkpoint as it is; open a path, with a key for its files of ``torch.save``."""
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    return open_checkpoint(checkpoint, key=key, stores=stores)


def check_key(key: str | None, *opened: Checkpoint) -> None:
    """Raise UsageError if a key was given, and none of these has a file that it could be of."""
    if key and not any(one.key for one in opened):
        raise UsageError(
            "key-without-torch-file",
            f"--key {key}",
            expected="a file of torch.save, in which a key leads to a state dict",
            got=", ".join(one.root for one in opened),
            hint="leave it out",
        )


def locate(path: StrPath, stores: Stores) -> str:
    """Return ``path`` if it is local, or its address on the hub, pinned to a commit.

    An existing path takes precedence. ``hf://`` forces the hub; otherwise only ``org/name`` is
    looked up there. Goes online for an address that is not pinned to a commit. Raises InputError
    for ``org/name`` where ``org`` is a local directory, and HubError if the hub has no such
    repository.
    """
    address = _address(path)
    return os.fspath(path) if address is None else _pinned(address, path, stores)


def given(path: StrPath) -> str:
    """Return ``path`` as text.

    Raises UsageError for an empty path, which would otherwise mean the working directory.
    """
    text = os.fspath(path)
    if not text:
        raise UsageError(
            "empty-path",
            "''",
            expected="a path",
            got="an empty one",
            hint="is a variable not set? the working directory is .",
        )
    return text


def local(path: StrPath) -> str:
    """Return ``path`` as text if it is local. Raises UsageError for an address on the hub."""
    text = given(path)
    if is_remote(text):
        raise UsageError(
            "path-on-hub",
            text,
            expected="a path on this machine",
            got="an address on the hub",
            hint="hf download brings files here, vita-ckpt push uploads a directory",
        )
    return text


def reopen(
    root: str, revision: str, key: str, stores: Stores, *, ignore_index: bool = False
) -> Checkpoint:
    """Open an input of a saved plan from its root and the branch or tag it was resolved from.

    ``key`` is that of :func:`open_checkpoint`, empty for none.

    An empty root stands for no input. Raises StaleInputError if the branch or tag points to another
    commit now.
    """
    if not root:
        return EMPTY
    if not is_remote(root):
        return directory.open_checkpoint(root, stores, key, ignore_index=ignore_index)
    pinned = parse_address(root)
    if revision:
        now = stores.hub.pin(Address(pinned.repository, revision, pinned.below), anew=True)
        if now != pinned:
            raise StaleInputError(
                "input-changed",
                f"{pinned.repository}@{revision}",
                expected=f"the commit {pinned.revision}, that the plan was computed from",
                got=now.revision,
                hint="compute the plan again, or from the commit: hf://org/name@commit",
            )
    opened = directory.open_checkpoint(root, stores, key, ignore_index=ignore_index)
    return replace(opened, revision=revision)


def _address(path: StrPath) -> Address | None:
    """Return the address on the hub that ``path`` refers to; None for a local path."""
    text = given(path)
    if is_remote(text):
        return parse_address(text)
    if os.path.lexists(text.rstrip("/")):  # a file too, as it is opened
        return None
    # huggingface_hub reads this variable too, but it is imported only for requests.
    meant = address_meant(text, os.environ.get("HF_ENDPOINT", ""))
    if meant is None:
        return None
    got = "nothing there"
    if looks_like_repository(text):
        parent, _, name = text.partition("/")
        if not os.path.lexists(parent):
            return meant
        got = f"no {name} in the directory {parent}"
    raise InputError(
        "not-found",
        text,
        expected="a checkpoint directory or file",
        got=_refusal(text) or got,
        hint=f"check the path; {meant} looks on the hub",
    )


def _refusal(path: str) -> str:
    """Return why the system does not tell what is at ``path``; empty where nothing is."""
    try:
        os.lstat(path)
    except PermissionError as error:
        return os_reason(error)
    except (OSError, ValueError):
        pass
    return ""


def _pinned(address: Address, path: StrPath, stores: Stores) -> str:
    if not is_remote(os.fspath(path)):
        _log(f"Looking on the hub for {address.repository} …")
    try:
        return str(stores.hub.pin(address))
    except HubError as error:
        if error.code == "repository-not-found" and not is_remote(os.fspath(path)):
            wanted = "a path that exists, or a repository that can be seen from here"
            raise error.replaced(expected=wanted) from error
        raise


def _log(text: str) -> None:
    """Log a warning for the caller. It goes to stderr unless logging is configured."""
    import logging  # noqa: PLC0415 - only for what is remote

    logging.getLogger("vita_ckpt").warning(text)


def whole(path: StrPath, stores: Stores) -> str:
    """Return a path that leads to the same place wherever a saved plan is applied."""
    found = locate(path, stores)
    return stores.store_of(found).absolute(found)
