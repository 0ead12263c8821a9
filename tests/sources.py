"""Open files of the disk as sources, for tests of what reads a format."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from vita_ckpt.storage.formats import safetensors, torch_reader
from vita_ckpt.storage.formats.safetensors import SafetensorsFile
from vita_ckpt.storage.formats.torch_reader import TorchFile, TorchObjects
from vita_ckpt.storage.stores.local import LOCAL

NEWEST_DTYPES = pytest.mark.skipif(
    tuple(map(int, version("safetensors").split(".")[:2])) < (0, 8),
    reason="this version of the library does not know every dtype of the format",
)


def read_safetensors(path: str | Path) -> SafetensorsFile:
    """Return what the header of a safetensors file says."""
    with LOCAL.open(str(path)) as source:
        return safetensors.read_safetensors(source)


def read_torch(path: str | Path, key: str | None = None) -> TorchFile:
    """Return what a state dict in a file of torch.save says."""
    with LOCAL.open(str(path)) as source:
        return torch_reader.read_torch(source, key)


def read_objects(path: str | Path) -> TorchObjects:
    """Return everything that a file of torch.save holds."""
    with LOCAL.open(str(path)) as source:
        return torch_reader.read_objects(source)
