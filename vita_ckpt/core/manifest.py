"""Encode ``vita_ckpt.manifest.json``: the digests of all files and tensors of a checkpoint.

A surgery keeps the digests of the tensors that it carries over. It therefore hashes only what it
changes, and earlier damage to carried tensors remains detectable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.core.checksummed_json import seal, unseal
from vita_ckpt.core.dataclass import dataclass

_KIND: Final = "vita-ckpt-manifest"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """The size of a file in bytes, and SHA-256 digests in hex.

    ``sha256`` is the digest of the whole file or, for a safetensors file, of its header (the JSON
    text). ``tensors`` are then the digests of its tensors, as far as they are known.
    """

    size: int
    sha256: str
    tensors: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the digest as JSON values."""
        if self.tensors is None:
            return {"size": self.size, "sha256": self.sha256}
        tensors = dict(sorted(self.tensors.items()))
        return {"size": self.size, "header_sha256": self.sha256, "tensors": tensors}

    @classmethod
    def from_json(cls, entry: Any) -> FileDigest:
        """Return the digest that :meth:`to_json` encoded.

        Raises ValueError if ``entry`` is invalid.
        """
        if isinstance(entry, dict) and type(entry.get("size")) is int:
            tensors = entry.get("tensors")
            digest = entry.get("sha256" if tensors is None else "header_sha256")
            if isinstance(digest, str) and isinstance(tensors, dict | None):
                return cls(entry["size"], digest, tensors)
        raise ValueError("an entry without size and digest")


@dataclass(frozen=True, slots=True)
class Manifest:
    """The digests of the files of a checkpoint, by their path below it."""

    files: Mapping[str, FileDigest]

    @property
    def tensors(self) -> dict[str, str]:
        """The digests of all tensors in safetensors files, by name."""
        return {
            name: digest
            for file in self.files.values()
            for name, digest in (file.tensors or {}).items()
        }


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as the content of a file, with a digest of itself."""
    return seal(_KIND, {name: file.to_json() for name, file in sorted(manifest.files.items())})


def decode(data: bytes) -> Manifest:
    """Return the manifest in ``data``.

    Raises ValueError if it differs from what :func:`encode` wrote.
    """
    files = unseal(_KIND, data)
    return Manifest({name: FileDigest.from_json(entry) for name, entry in files.items()})
