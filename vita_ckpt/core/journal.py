"""The journal of an in-place surgery as a value: what was changed, signed for one directory."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.checksummed_json import seal, unseal
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.manifest import FileDigest

_KIND: Final = "vita-ckpt-journal"


@dataclass(frozen=True, slots=True)
class SavedRange:
    """Bytes of a patched file: where they were, where they are saved, what they were and became.

    ``offset`` in the file, ``at`` in the file of saved ranges, ``size`` in bytes; ``before`` and
    ``after`` are SHA-256 digests in hex.
    """

    offset: int
    size: int
    at: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PatchedFile:
    """A file that kept its size and got other bytes in some ranges."""

    name: str
    size: int
    ranges: tuple[SavedRange, ...]


@dataclass(frozen=True, slots=True)
class ReplacedFile:
    """A file that another took the place of, that came (``before`` is None) or went (``after``).

    The old one is kept as ``old/N``, the new one was staged as ``new/N``, for the N-th of these.
    """

    name: str
    before: FileDigest | None
    after: FileDigest | None


@dataclass(frozen=True, slots=True)
class Journal:
    """What an in-place surgery changed, with all that is needed to put it back.

    ``directory`` is the inode of the checkpoint directory. The device is left out: its number may
    change when a machine is started again, which is when recovery is due. ``signature`` is an
    HMAC-SHA256 of all the rest, in hex, empty in journals of earlier versions.
    """

    operation: str
    time: str
    patched: tuple[PatchedFile, ...]
    replaced: tuple[ReplacedFile, ...]
    directory: int = 0
    signature: str = ""

    @property
    def names(self) -> list[str]:
        """Every file that the surgery changed."""
        return [file.name for file in self.patched] + [file.name for file in self.replaced]

    def signed(self, key: bytes, directory: int) -> Journal:
        """Return the journal signed with ``key`` for the directory with this inode."""
        unsigned = replace(self, directory=directory, signature="")
        return replace(unsigned, signature=unsigned._mac(key))

    def is_signed(self, key: bytes, directory: int) -> bool:
        """Return whether it was signed with ``key`` for the directory with this inode."""
        mac = replace(self, signature="")._mac(key)
        return self.directory == directory and hmac.compare_digest(
            mac.encode(), self.signature.encode(errors="replace")
        )

    def encode(self) -> bytes:
        """Return the journal as a file, with a digest of itself."""
        return seal(_KIND, {**self._body(), "signature": self.signature})

    def _mac(self, key: bytes) -> str:
        text = json.dumps([_KIND, self._body()], sort_keys=True)
        return hmac.new(key, text.encode("ascii"), hashlib.sha256).hexdigest()

    def _body(self) -> dict[str, Any]:
        return {
            "operation": self.operation,
            "time": self.time,
            "directory": self.directory,
            "patched": [
                {
                    "name": file.name,
                    "size": file.size,
                    "ranges": [[r.offset, r.size, r.at, r.before, r.after] for r in file.ranges],
                }
                for file in self.patched
            ],
            "replaced": [
                {
                    "name": file.name,
                    "before": None if file.before is None else file.before.to_json(),
                    "after": None if file.after is None else file.after.to_json(),
                }
                for file in self.replaced
            ],
        }


def decode(data: bytes) -> Journal:
    """Return the journal in a file; ValueError, TypeError, KeyError or AttributeError for none.

    Whether it is signed, and what it names, is for the caller to check.
    """
    body = unseal(_KIND, data)
    patched = tuple(
        PatchedFile(
            _text(file["name"]),
            _size(file["size"]),
            tuple(
                SavedRange(_size(offset), _size(size), _size(at), _text(before), _text(after))
                for offset, size, at, before, after in file["ranges"]
            ),
        )
        for file in body["patched"]
    )
    end = 0
    for saved in (saved for file in patched for saved in file.ranges):
        if saved.at != end:
            raise ValueError("ranges that are not saved one after the other")
        end += saved.size
    replaced = tuple(
        ReplacedFile(_text(file["name"]), _digest(file["before"]), _digest(file["after"]))
        for file in body["replaced"]
    )
    return Journal(
        _text(body["operation"]),
        _text(body["time"]),
        patched,
        replaced,
        _number(body.get("directory", 0)),
        _text(body.get("signature", "")),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text that is none")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError("a size that is none")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError("an inode that is none")
    return value


def _digest(entry: Any) -> FileDigest | None:
    return None if entry is None else FileDigest.from_json(entry)
