"""Compute digests of tensors and files, reading each once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from vita_ckpt.core.checkpoint import Tensor, refs_of
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.core.team import ALONE, Team, portions
from vita_ckpt.storage.stores.local import identify, opened, read_at
from vita_ckpt.storage.system.workers import Progress, evaluate, no_progress
from vita_ckpt.storage.tensors.stream import Inputs, tensor_bytes

_STEP: Final = 4 << 20


def tensor_digests(
    tensors: Mapping[str, Tensor], progress: Progress = no_progress, *, team: Team = ALONE
) -> dict[str, str]:
    """Return the SHA-256, in hex, of the contiguous bytes of each tensor.

    ``team`` shares the tensors; ``progress`` is called with the bytes of each step. Raises
    CastError where a conversion loses a value, InputError for a file that cannot be read and
    StaleInputError for one that has changed.
    """
    ordered = sorted(tensors.items(), key=lambda item: _place(item[1]))
    cut = portions(ordered, lambda item: item[1].nbytes)
    sizes = [sum(tensor.nbytes for _, tensor in portion) for portion in cut]
    found = evaluate(partial(_tensor_digests, progress), cut, sizes, team=team)
    digests = dict(pair for pairs in found for pair in pairs)
    return {name: digests[name] for name in tensors}


def file_digests(
    paths: Mapping[str, str], progress: Progress = no_progress, *, team: Team = ALONE
) -> dict[str, FileDigest]:
    """Return size and SHA-256 of whole files, by the names that map to their paths.

    ``team`` shares the files; ``progress`` is called with the bytes of each step. Raises InputError
    for a file that cannot be read.
    """
    with team.agreement():
        sizes = [identify(path).size for path in paths.values()]
    found = evaluate(partial(_file_digest, progress), list(paths.values()), sizes, team=team)
    return dict(zip(paths, found, strict=True))


def _place(tensor: Tensor) -> tuple[str, int]:
    """Return where the bytes of a tensor begin: files are read in order."""
    ref = next(iter(refs_of(tensor)), None)
    return (ref.source.path, ref.offset) if ref else ("", 0)


def _tensor_digests(
    progress: Progress, tensors: Sequence[tuple[str, Tensor]]
) -> list[tuple[str, str]]:
    with Inputs() as inputs:
        return [(name, _tensor_digest(tensor, inputs, name, progress)) for name, tensor in tensors]


def _tensor_digest(tensor: Tensor, inputs: Inputs, name: str, progress: Progress) -> str:
    found = hashlib.sha256()
    for data in tensor_bytes(tensor, inputs, name):
        found.update(data)
        progress(len(data))
    return found.hexdigest()


def _file_digest(progress: Progress, path: str) -> FileDigest:
    found, offset = hashlib.sha256(), 0
    with opened(path) as (descriptor, file):
        while offset < file.size:
            data = read_at(descriptor, min(_STEP, file.size - offset), offset, path)
            found.update(data)
            offset += len(data)
            progress(len(data))
    return FileDigest(file.size, found.hexdigest())
