"""Check files and tensors against the digests that were taken of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vita_ckpt.checks.rules import finding
from vita_ckpt.core.filenames import MANIFEST, PROVENANCE
from vita_ckpt.core.manifest import FileDigest, Manifest
from vita_ckpt.core.report import Finding

_HINT = "restore it from a copy; nothing here can tell what it was"


def check_manifest(manifest: Manifest, found: Manifest) -> Iterator[Finding]:
    """Check that the files of a checkpoint are those that its manifest describes."""
    for name, before in manifest.files.items():
        now = found.files.get(name)
        if now is None:
            yield finding(
                "manifest-file-missing",
                name,
                f"expected a file of {before.size} bytes, as {MANIFEST} says, got none that can "
                "be read",
                file=name,
            )
        elif now != before:
            yield from _file(name, before, now)
    for name in sorted(found.files.keys() - manifest.files.keys()):
        yield finding(
            "not-in-manifest",
            name,
            f"expected no file that {MANIFEST} does not know, got one",
            file=name,
        )


def check_written(
    wanted: Mapping[str, str], found: Mapping[str, str], *, what: str
) -> Iterator[Finding]:
    """Check that tensors or files (``what``) are still what the last surgery wrote."""
    for name, digest in wanted.items():
        if name in found and found[name] != digest:
            yield _mismatch(name, f"the {what} that a surgery wrote ({PROVENANCE})")


def _file(name: str, before: FileDigest, now: FileDigest) -> Iterator[Finding]:
    wanted, there = before.tensors or {}, now.tensors or {}
    changed = [tensor for tensor, digest in wanted.items() if there.get(tensor) != digest]
    for tensor in changed:
        yield _mismatch(tensor, "the bytes of the tensor when it was written", file=name)
    if not changed or now.sha256 != before.sha256:
        part = "header" if before.tensors is not None else "file"
        yield _mismatch(name, f"the {part} as it was written", file=name)


def _mismatch(subject: str, expected: str, file: str = "") -> Finding:
    message = f"expected {expected}, got other bytes"
    return finding("digest-mismatch", subject, message, hint=_HINT, file=file)
