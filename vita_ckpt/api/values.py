"""The values check: what the bytes of tensors say, read once and judged piece by piece."""

from __future__ import annotations

from collections.abc import Collection
from threading import Lock

from vita_ckpt.checks.values import Values, check_tensor, values_of
from vita_ckpt.core.checkpoint import Checkpoint, TensorRef
from vita_ckpt.core.report import Finding
from vita_ckpt.storage.tensors.scan import scan
from vita_ckpt.storage.tensors.stream import Progress, no_progress


def check_values(
    checkpoint: Checkpoint,
    names: Collection[str] | None = None,
    *,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> list[Finding]:
    """What is wrong with the values of tensors that lie in files: of ``names``, or of all.

    Findings are in the order of the checkpoint's tensors. Bytes that several names share are read
    once. ``threads``, ``progress`` and the errors are those of
    :func:`~vita_ckpt.storage.tensors.scan.scan`.
    """
    refs = {n: ref for n, ref in checkpoint.refs.items() if names is None or n in names}
    seen = dict.fromkeys(refs.values(), Values())
    lock = Lock()

    def visit(tensor: TensorRef, data: memoryview, position: int) -> None:
        values = values_of(tensor, data, position)
        with lock:
            seen[tensor] += values

    scan(seen, visit, threads=threads, progress=progress)
    return [found for name, ref in refs.items() for found in check_tensor(name, ref, seen[ref])]
