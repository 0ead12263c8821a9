"""Replay ``from_pretrained`` of plain transformers, before and after 5.6.

Of transformers 5 before 5.6, language models load as in 5.6 and towers as in 4.41.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.file_resolution import Read
from vita_ckpt.checks.explain.matching import (
    VISION_LEVEL,
    Lookup,
    record,
    refuse_whole_model,
    require_config,
    require_language_model,
)
from vita_ckpt.checks.explain.trace import Tracer
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.binding.bind import bind, bind_to
from vita_ckpt.core.binding.loaders import TRANSFORMERS_4_41, TRANSFORMERS_5_6
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.errors import InputError

_TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# Mixtral as transformers 5 builds it, by the names that are stored (conversion_mapping.py): found
# by the class or the config's model_type, and VITA's is none that it knows.
_FUSED: Final = (
    ("block_sparse_moe.gate", "mlp.gate"),
    ("block_sparse_moe.experts.*.w1 and .w3", "mlp.experts.gate_up_proj"),
    ("block_sparse_moe.experts.*.w2", "mlp.experts.down_proj"),
)


def transformers_4_41(tracer: Tracer, lookup: Lookup) -> None:
    """Replay ``from_pretrained`` of 4.41.1."""
    _transformers(tracer, old=True)


def transformers_5_6(tracer: Tracer, lookup: Lookup) -> None:
    """Replay ``from_pretrained`` of 5.6 and later."""
    _transformers(tracer, old=False)


def _transformers(tracer: Tracer, *, old: bool) -> None:
    """Replay the library's own classes, with none of VITA's registered."""
    _trace_adapter(tracer, old=old)
    config = require_config(tracer)
    refuse_whole_model(tracer, config)
    if tracer.files.serving_config is not None:
        _refuse_serving(tracer, tracer.files.serving_config)
    tower = towers.tower_of_config(config)
    if tower is not None:
        _tower(tracer, config, tower.family, old=old)
        return
    language = require_language_model(tracer, config)
    model_type = config.get("model_type")
    tracer.model_class = language.architecture
    if model_type not in language.model_types:
        tracer.step("auto", f"AutoModelForCausalLM does not know {model_type}: ValueError")
        tracer.step("builds", f"{tracer.model_class}, if asked for it by name, with a warning")
    else:
        tracer.step("builds", tracer.model_class)
    tracer.tower = tracer.projector = PartSource.NOT_BUILT
    read = file_resolution.from_pretrained(tracer, old=old)
    tracer.dtype = _dtype(tracer, config, read, old=old)
    found = dict(read.tensors)
    tied = language.is_tied(config)
    head = found.pop(parts.LM_HEAD) if tied and parts.LM_HEAD in found else None
    if language.name == "Mixtral" and not old:
        _trace_fusing(tracer, known=model_type in language.model_types)
    refs = {name: tensor for name, (tensor, _) in found.items()}
    bound = bind(config, refs, loader=TRANSFORMERS_4_41 if old else TRANSFORMERS_5_6)
    record(tracer, bound, found, "drawn at random (norms 1, biases 0)")
    tracer.lm_head = parts.EMBED_TOKENS if tied else parts.LM_HEAD
    if head is not None:
        _tie(tracer, read, head[1], old=old)
    elif parts.LM_HEAD in tracer.missing:
        tracer.lm_head = None


def _refuse_serving(tracer: Tracer, serving: Mapping[str, Any]) -> NoReturn:
    """Replay the library on a deployment folder: it reads config.json, which is a server's."""
    model_type = serving.get("model_type")
    tracer.step("config", "config.json, which is a server's such as vLLM's")
    tracer.stop(
        "unknown-model-type",
        "config.json has no model_type: a server's own classes read it"
        if model_type is None
        else f"model_type {model_type!r} of config.json is a server's, whose own classes read it",
    )


def _trace_adapter(tracer: Tracer, *, old: bool) -> None:
    """Record what maybe_load_adapters does, which is active where peft is installed."""
    if tracer.files.adapter_config is None:
        return
    base = tracer.files.adapter_config.get("base_model_name_or_path")
    what = (
        f"the base it names, {base!r}"
        if old or CONFIG not in tracer.files.names
        else "this directory with the adapter on top"
    )
    tracer.step("adapter", f"where peft is installed, adapter_config.json loads {what}")


def _trace_fusing(tracer: Tracer, *, known: bool) -> None:
    """Record whether transformers 5 fuses Mixtral's stored experts: for its own model_type."""
    if known:
        tracer.renamed += _FUSED
        tracer.step("renames", "block_sparse_moe to mlp, and fuses the experts of a layer")
    else:
        tracer.step("renames", "nothing: its table for Mixtral is not looked up for this type")


def _tie(tracer: Tracer, read: Read, head: str, *, old: bool) -> None:
    """Record what becomes of a tied lm_head.weight that is stored all the same."""
    if not old:
        tracer.sources[parts.LM_HEAD] = head
        tracer.lm_head = f"{parts.LM_HEAD} if it differs from the embeddings"
        tracer.step("ties", "lm_head.weight to the embeddings only if the two are equal")
        return
    embeddings = read.tensors.get(parts.EMBED_TOKENS)
    if embeddings is None or tracer.files_read.index(head) >= tracer.files_read.index(
        embeddings[1]
    ):
        tracer.sources |= {parts.LM_HEAD: head}
        tracer.lm_head = parts.LM_HEAD
        tracer.step("ties", "lm_head.weight is written over the embeddings: both are one tensor")
    else:
        tracer.step("ties", "the embeddings are written over lm_head.weight: both are one tensor")


def _dtype(tracer: Tracer, config: Mapping[str, Any], read: Read, *, old: bool) -> str | None:
    """Return the dtype if the caller names none: float32 before 5.0, then the stored one."""
    if old:
        tracer.step("casts", "to float32, unless the caller says otherwise")
        return "float32"
    stated = config.get("dtype", config.get("torch_dtype"))
    if not isinstance(stated, str) and read.index is not None:
        stated = (read.index.metadata or {}).get("dtype")
    if isinstance(stated, str):
        return stated
    first = tracer.files.files[tracer.files_read[0]].tensors
    dtypes = (_TORCH_DTYPES.get(first[name].dtype) for name in sorted(first))
    return next((dtype for dtype in dtypes if dtype is not None), None)


def _tower(tracer: Tracer, config: Mapping[str, Any], family: str, *, old: bool) -> None:
    """Replay a standalone tower in the library's own class."""
    tracer.model_class = towers.FAMILIES[family].transformers_class
    if tracer.model_class is None:
        tracer.stop("unknown-model-type", f"model_type {config.get('model_type')!r} is unknown")
    tracer.step("builds", tracer.model_class)
    read = file_resolution.from_pretrained(tracer, old=old)
    tracer.dtype = _dtype(tracer, config, read, old=old)
    found = dict(read.tensors)
    level = old or any(name.startswith(VISION_LEVEL) for name in found)
    try:
        own = tower_tensors.expected_shapes(config)
    except InputError as error:
        tracer.stop(error.code, str(error))
    if level and not old:
        tracer.renamed.append((f"{VISION_LEVEL}*", "*"))
        tracer.step("renames", f"{VISION_LEVEL}* without that level")
    wanted = {(VISION_LEVEL if level else "") + name: shape for name, shape in own.items()}
    refs = {name: tensor for name, (tensor, _) in found.items()}
    record(tracer, bind_to(wanted, refs), found, "drawn at random, with a warning")
    tracer.tower = PartSource.CHECKPOINT if tracer.sources else PartSource.RANDOM
