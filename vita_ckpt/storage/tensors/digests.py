"""Compute digests of tensors and files, reading each once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeVar

from vita_ckpt.core.checkpoint import Tensor
from vita_ckpt.core.manifest import FileDigest
from vita_ckpt.storage.stores.local import opened, read_at
from vita_ckpt.storage.system.threads import run_all
from vita_ckpt.storage.tensors.stream import Inputs, Progress, no_progress, tensor_bytes

_THREADS: Final = 2
_STEP: Final = 4 << 20

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def tensor_digests(
    tensors: Mapping[str, Tensor], progress: Progress = no_progress
) -> dict[str, str]:
    """Return the SHA-256, in hex, of the contiguous bytes of each tensor.

    ``progress`` is called with the bytes of each step.
    Raises CastError where a conversion loses a value, InputError for a file that cannot be read and
    StaleInputError for one that has changed.
    """
    with Inputs() as inputs:
        jobs = {n: partial(_tensor_digest, t, inputs, n, progress) for n, t in tensors.items()}
        return _all(jobs)


def file_digests(
    paths: Mapping[str, str], progress: Progress = no_progress
) -> dict[str, FileDigest]:
    """Return size and SHA-256 of whole files, by the names that map to their paths.

    ``progress`` is called with the bytes of each step. Raises InputError for a file that cannot be
    read.
    """
    return _all({name: partial(_file_digest, path, progress) for name, path in paths.items()})


def _tensor_digest(tensor: Tensor, inputs: Inputs, name: str, progress: Progress) -> str:
    found = hashlib.sha256()
    for data in tensor_bytes(tensor, inputs, name):
        found.update(data)
        progress(len(data))
    return found.hexdigest()


def _file_digest(path: str, progress: Progress) -> FileDigest:
    found, offset = hashlib.sha256(), 0
    with opened(path) as (descriptor, file):
        while offset < file.size:
            data = read_at(descriptor, min(_STEP, file.size - offset), offset, path)
            found.update(data)
            offset += len(data)
            progress(len(data))
    return FileDigest(file.size, found.hexdigest())


def _all(jobs: Mapping[_Key, Callable[[], _Value]]) -> dict[_Key, _Value]:
    results = run_all(jobs.values(), min(_THREADS, os.cpu_count() or 1))
    return dict(zip(jobs, results, strict=True))
