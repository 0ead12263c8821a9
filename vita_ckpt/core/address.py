"""Parse addresses on the hub: ``hf://org/name[@revision][/subfolder]``."""

from __future__ import annotations

import re
from typing import Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import UsageError

SCHEME: Final = "hf://"
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY: Final = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
# Revisions with a slash that the hub creates itself; in other revisions a slash is written as %2F.
_REVISION_NAME: Final = "refs/pr/[0-9]+|refs/convert/[^/]+|[^/]+"
_REVISION: Final = f"@({_REVISION_NAME})"
_HUBS: Final = ("huggingface.co", "hf.co")
# Pages of a repository, of a directory or a file in it, and the download URL of a file.
_HALF_SCHEME: Final = r"\Ahf:/?(?=[^/])"
_PAGE: Final = f"({_NAME}/{_NAME})(?:/(?:tree|blob|resolve)/({_REVISION_NAME})(?:/(.+))?)?"
_LONGEST_NAME: Final = 4096  # bytes of a path on a disk
_OTHER_KINDS: Final = ("datasets", "spaces", "kernels", "buckets")
_FILES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".gguf", ".toml")


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a model repository.

    ``revision`` is a branch, a tag or a commit, empty for main. ``below`` is a directory or a file
    in the repository, empty for the whole repository.
    """

    repository: str
    revision: str = ""
    below: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, whose files never change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        from urllib.parse import quote  # noqa: PLC0415 - start-up

        special = re.fullmatch(_REVISION, f"@{self.revision}", re.ASCII) is not None
        revision = self.revision if special else quote(self.revision, safe="")
        at = f"@{revision}" if revision else ""
        return f"{SCHEME}{self.repository}{at}" + (f"/{self.below}" if self.below else "")


def is_remote(path: str) -> bool:
    """Return whether ``path`` is an address on the hub, not a path on the disk."""
    return path.startswith(SCHEME)


def parse_address(text: str) -> Address:
    """Parse the address ``text`` (``hf://…``). Raises UsageError if it is invalid."""
    rest = text.removeprefix(SCHEME).removeprefix("models/").rstrip("/")
    kind = rest.partition("/")[0]
    found = re.match(r"[^/@]+/[^/@]+", rest)
    if kind in _OTHER_KINDS or found is None or not _REPOSITORY.fullmatch(found[0]):
        got = f"one of {kind}" if kind in _OTHER_KINDS else rest or "nothing"
        raise _invalid(text, got)
    rest = rest[found.end() :]
    revision = re.match(_REVISION, rest, re.ASCII)
    if revision is not None:
        rest = rest[revision.end() :]
    below = rest.removeprefix("/")
    if (rest and not rest.startswith("/")) or not is_inside(below):
        raise _invalid(text, rest)
    name = _unquote(revision[1]) if revision is not None else ""
    if not is_inside(name):  # could change the request path, or cannot be encoded
        raise _invalid(text, f"the revision {name}")
    return Address(found[0], name, below)


def address_meant(text: str, endpoint: str = "") -> Address | None:
    """Return the address that ``text`` without ``hf://`` may refer to; None if there is none.

    ``text`` is ``org/name``, also after ``hf:``, with a trailing ``/`` or with
    ``@revision[/subfolder]``, or the URL of a page of the hub or of the server at ``endpoint``.
    """
    text = re.sub(_HALF_SCHEME, "", text)
    page = _page(text, endpoint)
    if page is not None:
        found = re.fullmatch(_PAGE, page, re.ASCII)
        if found is None:
            return None
        below = _unquote(found[3] or "")
        return _parsed(str(Address(found[1], _unquote(found[2] or ""), below)))
    address = _parsed(text)
    if address is None or looks_like_repository(text.rstrip("/")):
        return address
    is_file = text.endswith(_FILES) and not address.below
    return address if address.revision and not is_file else None


def _unquote(text: str) -> str:
    from urllib.parse import unquote  # noqa: PLC0415 - start-up

    return unquote(text)


def is_inside(name: str) -> bool:
    """Return whether a path in a repository (empty for the root) stays inside it."""
    if not name:
        return True
    try:
        is_name = "\0" not in name and len(name.encode()) <= _LONGEST_NAME
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return is_name and {"", ".", ".."}.isdisjoint(name.split("/"))


def looks_like_repository(text: str) -> bool:
    """Return whether ``text`` could be ``org/name`` and does not look like a file name."""
    return _REPOSITORY.fullmatch(text) is not None and not text.endswith(_FILES)


def _page(text: str, endpoint: str) -> str | None:
    """Return the path in a URL of the hub, with or without ``https://``; None for other URLs."""
    place = re.sub("^https?://", "", text)
    for hub in (re.sub("^https?://", "", endpoint).rstrip("/"), *_HUBS):
        if hub and place.startswith(f"{hub}/"):
            return re.split("[?#]", place.removeprefix(f"{hub}/"), maxsplit=1)[0].rstrip("/")
    return None


def _parsed(text: str) -> Address | None:
    try:
        return parse_address(SCHEME + text.removeprefix(SCHEME))
    except UsageError:
        return None


def _invalid(text: str, got: str) -> UsageError:
    return UsageError(
        "invalid-hub-address",
        text,
        expected="hf://org/name[@revision][/subfolder] of a model",
        got=got,
    )
