"""Read every value of a checkpoint, and say for each part how large they are."""

from __future__ import annotations

from vita_ckpt.api.fetch import downloaded
from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.checks.distribution import Distribution, distribution_of, is_counted
from vita_ckpt.checks.inspection.inspect import names_by_part
from vita_ckpt.core.checkpoint import Checkpoint, parameters, refs_of
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.tensors.scan import scan


def distributions(
    checkpoint: Checkpoint | StrPath,
    *,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
) -> dict[str, Distribution]:
    """Read every value of a checkpoint, and return the distribution of each part that it has.

    Keys are the names of parts, as in :func:`~vita_ckpt.inspect`. Bytes that several names share
    are read once. What lies on the hub is downloaded. ``on_progress`` is told what is being read,
    and how far that is: see :mod:`vita_ckpt.core.progress`. Raises InputError if the checkpoint
    cannot be read, StaleInputError if a file changes while it is read.
    """
    stores = Stores() if stores is None else stores
    opened = downloaded(as_checkpoint(checkpoint, stores), stores)
    stored = opened.stored
    seen = {ref: Distribution() for tensor in stored.values() for ref in refs_of(tensor)}
    counted = [ref for ref in seen if is_counted(ref.dtype)]
    step = Tally(on_progress, "reading", sum(ref.span for ref in counted))
    seen |= scan(counted, distribution_of, progress=step)
    found: dict[str, Distribution] = {}
    for part, names in names_by_part(opened).items():
        total = Distribution()
        for name in names:
            tensor = opened.tensors[name]
            if name in stored and is_counted(tensor.dtype):
                total = sum((seen[ref] for ref in refs_of(stored[name])), total)
            else:
                total += Distribution(uncounted=parameters(tensor))
        if names:
            found[part] = total
    return found
