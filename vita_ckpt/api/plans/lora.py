"""Plan to merge a LoRA run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vita_ckpt.api.locate import StrPath, as_checkpoint, whole
from vita_ckpt.api.plans.inputs import noted, refuse_swapped
from vita_ckpt.api.plans.values import with_values_checked
from vita_ckpt.api.plans.vision import is_plain, vision_of_run
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.dtype import dtype_code
from vita_ckpt.core.lora import settings_of_deltas
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.core.remedies import merge_lora
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.references import find_named_base, read_adapter_config
from vita_ckpt.storage.reading.tokenizer import (
    new_tokenizer_files,
)
from vita_ckpt.surgery import consolidate as consolidation
from vita_ckpt.surgery import lora as lora_surgery


def plan_merge_lora(
    base: Checkpoint | StrPath | None = None,
    adapter: Checkpoint | StrPath | None = None,
    *,
    dtype: str | None = None,
    tower: Checkpoint | StrPath | None = None,
    adapter_config: StrPath | None = None,
    lora_alpha: float | None = None,
    use_rslora: bool = False,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to merge a LoRA run into the checkpoint that it was trained on, as peft's merge does.

    ``adapter`` is the run, or a training state of one. ``base`` may be left out where the run names
    one that is found: by a relative path here or beside the run, or in the hub's cache. ``dtype``
    (``"bf16"``, ``"float16"`` …) is what the result is in, by default what the base is in; with
    ``"f16"`` it is what upstream's loader holds. ``allow_bad_values`` is that of
    :func:`plan_merge_projector`.

    A run of LLaVA, LLaVA-NeXT or Bunny may be one on a plain language model, which then becomes a
    checkpoint of that family. ``tower`` is its vision tower, by default what the run's config
    names; what the run trained of it replaces it.

    Without ``adapter``, ``base`` is a checkpoint that was saved with its deltas unmerged. The
    run's ``adapter_config.json`` lies beside it, or is ``adapter_config``; without one,
    ``lora_alpha`` and ``use_rslora`` say how the deltas are scaled.

    Raises InputError, AdapterError or CastError where these do not go together, and UsageError for
    an unknown dtype or options that exclude each other.
    """
    stores = Stores() if stores is None else stores
    code = dtype_code(dtype)
    if adapter is not None:
        if adapter_config is not None or lora_alpha is not None or use_rslora:
            raise UsageError(
                "options-exclude-each-other",
                "--adapter",
                expected="no --adapter-config, --lora-alpha or --rslora: those are for deltas in "
                "the checkpoint itself",
                got="both",
                hint="a run has its own adapter_config.json",
            )
        run = consolidation.lora_run_of(as_checkpoint(adapter, stores))
        if base is None:
            lora_surgery.require_run(run)
        opened = _base_of_run(run, stores) if base is None else as_checkpoint(base, stores)
        refuse_swapped(opened, run, merge_lora)
        return plan_merge_run(opened, run, tower, None, code, allow_bad_values, stores)
    if base is None:
        raise UsageError(
            "option-needed",
            "--adapter",
            expected="a LoRA run, or --base with deltas in it",
        )
    opened = as_checkpoint(base, stores)
    if opened.layout == "lora":
        raise UsageError(
            "base-and-adapter-swapped",
            opened.root,
            expected="--adapter RUN, with the --base that it was trained on",
            got="the run as the base",
            hint=merge_lora("CKPT", opened.root),
        )
    given = None if adapter_config is None else whole(adapter_config, stores)
    content = _lora_settings(opened, given, lora_alpha, use_rslora, stores)
    plan = lora_surgery.plan_merge_unmerged(opened, content, dtype=code)
    request = {
        "dtype": code,
        "adapter_config": given,
        "lora_alpha": lora_alpha,
        "use_rslora": use_rslora,
    }
    return with_values_checked(
        replace(plan, request=request), lora_surgery.trained_part(opened), allow_bad_values
    )


def plan_merge_run(
    base: Checkpoint,
    run: Checkpoint,
    tower: Checkpoint | StrPath | None,
    tower_path: str | None,
    dtype: str | None,
    allow_bad_values: bool,
    stores: Stores,
) -> Plan:
    """Plan to merge a run; ``dtype`` is a safetensors code, ``tower_path`` that of the config."""
    vision = None
    if is_plain(base) and family_of(run.config) not in (None, VITA):
        vision = vision_of_run(base, run, tower, tower_path, stores)
    elif tower is not None and not is_plain(base):
        raise UsageError(
            "tower-already-there",
            base.root,
            expected="a plain language model, since a tower is given, and a run of a relative of "
            "VITA",
            hint="swap-tower --tower … puts another tower into a checkpoint",
        )
    tokenizer = new_tokenizer_files(base, run, stores)
    plan = lora_surgery.plan_merge_lora(base, run, dtype=dtype, tokenizer=tokenizer, vision=vision)
    path = {} if vision is None else {"tower_path": vision.mm_vision_tower}
    plan = noted(replace(plan, request={"dtype": dtype, **path}))
    return with_values_checked(plan, run, allow_bad_values)


def _base_of_run(run: Checkpoint, stores: Stores) -> Checkpoint:
    """Open what a run names as its base. Raises InputError if it is not found or not followed."""
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    found = find_named_base(run, stores)
    if found is not None:
        return found
    raise InputError(
        "lora-base-absent",
        run.root,
        expected="a base here, beside the run or in the hub's cache, as the run names it",
        got=f"{named!r}",
        hint="name it with --base; an absolute path that a run names is not followed, and nothing "
        "is downloaded for it",
    )


def _lora_settings(
    base: Checkpoint, given: str | None, alpha: float | None, rslora: bool, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the settings of deltas in a checkpoint: of a file, or as far as options say."""
    if given is not None and (alpha is not None or rslora):
        raise UsageError(
            "options-exclude-each-other",
            "--adapter-config",
            expected="either the run's config or --lora-alpha and --rslora",
            got="both",
        )
    if given is not None:
        return read_adapter_config(given, stores)
    if alpha is not None:
        return settings_of_deltas(base, alpha, use_rslora=rslora)
    if rslora:
        raise UsageError(
            "option-needed", "--lora-alpha", expected="the run's alpha, beside --rslora"
        )
    return read_adapter_config(base.root, stores)
