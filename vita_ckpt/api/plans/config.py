"""Plan to set keys of the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.api.plans.inputs import have_same_bytes, noted
from vita_ckpt.checks.inspection.inspect import inspect_checkpoint
from vita_ckpt.core.anatomy.parts import EMBED_TOKENS, LM_HEAD
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.storage.reading.audio import find_audio_encoder
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    find_tower,
)
from vita_ckpt.surgery import config


def plan_set(
    checkpoint: Checkpoint | StrPath, values: Mapping[str, Any], *, stores: Stores | None = None
) -> Plan:
    """Plan to set keys of a checkpoint's vision config, and touch no weight.

    ``vocab_size`` and ``tie_word_embeddings`` too, where the tensors agree. Raises UsageError for a
    key or a value that does not exist, InputError where they do not. The plan's notes name what
    then disagrees with the weights and did not before.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    is_same = None
    if values.get("tie_word_embeddings") is True:
        is_same = have_same_bytes(opened.refs.get(LM_HEAD), opened.refs.get(EMBED_TOKENS))
    plan = config.plan_set(opened, values, head_is_table=is_same)
    before, after = (
        inspect_checkpoint(
            side, find_tower(side, stores), find_audio_encoder(side, stores)
        ).disagreements
        for side in (plan.base, plan.target())
    )
    notes = tuple(s for s in after if s not in before)
    return noted(replace(plan, notes=notes, request={"values": dict(values)}))


def parse_value(key: str, text: str) -> Any:
    """Return the value that ``text`` means for a config key, as :func:`plan_set` takes it.

    Raises UsageError for a key that no surgery sets, or a text of another type.
    """
    return config.parse_value(key, text)
