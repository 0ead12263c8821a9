"""Measure the memory that models take, and give back what they leave."""

from __future__ import annotations

import ctypes
import gc
import resource
from contextlib import suppress

import torch


def release_memory() -> None:
    """Give back what a model that nothing refers to any more held; its hooks are cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def trim_heap() -> None:
    """Give the heap's free pages back: glibc keeps those of freed activations, hundreds of MB."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak_of(devices: str) -> int:
    """Return the most bytes that were taken on some devices, ``cuda:0, cpu``."""
    gpus = [device for device in devices.split(", ") if device.startswith("cuda")]
    if gpus:
        return sum(torch.cuda.max_memory_allocated(device) for device in gpus)
    return peak_of_host()


def peak_of_host() -> int:
    """Return the most bytes that this process has had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
