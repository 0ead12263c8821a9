"""Make of a training state a checkpoint, a LoRA run or a file, in one call."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vita_ckpt.api.apply import apply
from vita_ckpt.api.fetch import fetched
from vita_ckpt.api.locate import StrPath
from vita_ckpt.api.plans.consolidate import plan_consolidate
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import SAFETENSORS_SUFFIX
from vita_ckpt.core.options import Options, TrainedWeights
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.progress import OnProgress, unwatched
from vita_ckpt.core.relocation import remote_refs
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.training.copies import check_copies


def consolidate(
    state: Checkpoint | StrPath,
    out: StrPath,
    *,
    base: Checkpoint | StrPath | None = None,
    config: Mapping[str, Any] | StrPath | None = None,
    dtype: str | None = None,
    weights: TrainedWeights = "masters",
    tag: str | None = None,
    check: bool = False,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
) -> str:
    """Write what a training state becomes to ``out``, and return its absolute path.

    ``out`` is a file if its name ends in ``.safetensors``, else a directory. With ``check`` all
    masters are compared with their copies first, and what was written is read again. The other
    arguments and the errors are those of :func:`plan_consolidate` and :func:`apply`.
    """
    stores = Stores() if stores is None else stores
    plan = plan_consolidate(
        state,
        base=base,
        config=config,
        dtype=dtype,
        weights=weights,
        tag=tag,
        as_file=os.fspath(out).endswith(SAFETENSORS_SUFFIX),
        stores=stores,
    )
    if check:
        check_masters(plan, on_progress=on_progress, stores=stores)
    return apply(plan, out, options=Options(check=check), on_progress=on_progress, stores=stores)


def check_masters(
    plan: Plan, *, on_progress: OnProgress = unwatched, stores: Stores | None = None
) -> None:
    """Compare all float32 masters of the training states that ``plan`` reads with their copies.

    Raises MalformedFileError for the first tensor whose masters do not round to them.
    """
    stores = Stores() if stores is None else stores
    for donor in plan.donors:
        if donor.training is None:
            continue
        copies = donor.training.copies
        masters = {name: tensor for name, tensor in donor.tensors.items() if name in copies}
        with fetched(remote_refs(masters) | remote_refs(copies), stores) as here:
            check_copies(here.checkpoint(donor), on_progress)
