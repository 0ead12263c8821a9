"""Replay VITA's loaders, which run on transformers 4.41.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import (
    Lookup,
    build_audio,
    record,
    record_audio,
    refuse_whole_model,
    require_backbone,
    require_config,
    stop_at,
    trace_projector,
    trace_rows,
)
from vita_ckpt.checks.explain.runs import is_run, read_run
from vita_ckpt.checks.explain.tower_files import (
    build_tower,
    read_tower_again,
    read_tower_directory,
    trace_lm_head,
)
from vita_ckpt.checks.explain.trace import Tracer, by_part
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.families import VITA
from vita_ckpt.core.binding import (
    VITA_1_0,
    VITA_1_5,
    Binding,
    PartSource,
    bind,
    built_projector,
    stop_of_projector,
)
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    NON_LORA,
    ORIGIN_CONFIG,
    PROJECTOR_RUN,
)


def vita_1_5(tracer: Tracer, lookup: Lookup) -> None:
    """Replay the loader of VITA-1.5."""
    if is_run(tracer):
        _stop_at_run(tracer)
    _vita(tracer, lookup, delayed=False)


def vita_1_0(tracer: Tracer, lookup: Lookup) -> None:
    """Replay the loader of VITA-1.0: the tower is filled last, unless training goes on."""
    if is_run(tracer):
        _load_run(tracer)
        return
    config = tracer.files.config or {}
    _vita(tracer, lookup, delayed=not config.get("continuous_training"))


def _vita(tracer: Tracer, lookup: Lookup, *, delayed: bool) -> None:
    """Replay either loader; ``delayed`` builds the tower empty and fills it afterwards."""
    config = require_config(tracer)
    refuse_whole_model(tracer, config)
    if towers.tower_of_config(config) is not None:
        tracer.stop("not-a-vita-checkpoint", "a tower: name it in mm_vision_tower of a checkpoint")
    if tracer.files.serving_config is not None:
        tracer.step(
            "config",
            f"{ORIGIN_CONFIG}, if it is named as VITA's demo does; else config.json, a server's",
        )
    backbone = require_backbone(tracer, config)
    tower: str | None = None

    def build() -> None:
        nonlocal tower
        tracer.model_class, tracer.dtype = backbone.architecture, "float16"
        tracer.step("builds", f"{backbone.architecture}, loader name {backbone.loader_name}")
        tower = build_tower(tracer, lookup, config, VITA)
        if tower is not None:
            _look_into_tower(tracer, lookup, tower, delayed=delayed)
        build_audio(tracer, lookup, config)

    read = file_resolution.from_pretrained(tracer, old=True, build=build)
    # With low_cpu_mem_usage a tensor is loaded only if the index knows its name too.
    named = read.tensors if read.index is None else read.index.weight_map
    unnamed = sorted(read.tensors.keys() - named.keys())
    found = {name: tensor for name, tensor in read.tensors.items() if name in named}
    if unnamed:
        tracer.ignored += unnamed
        tracer.step("leaves out", f"{by_part(unnamed)}: the index does not name them")
    if tower is not None:
        stop_at(tracer, stop_of_projector(config))
        if (projector := built_projector(config)) is not None:
            tracer.step("projector", f"{projector}, from the config")
    refs = {name: tensor for name, (tensor, _) in found.items()}
    bound = bind(config, refs, lookup.surroundings, VITA_1_0 if delayed else VITA_1_5)
    record_audio(tracer, config, found)
    trace_lm_head(tracer, config, found)
    fate = "uninitialised memory, or drawn at random"
    record(tracer, bound, found, fate, quiet=(parts.LM_HEAD,))
    if tower is not None:
        trace_projector(tracer, bound, "N(0, 0.02), biases zero, without a word")
        _finish_tower(tracer, lookup, config, bound, tower=tower, delayed=delayed)
    for fault, what in ((bound.fault, "image"), (bound.audio_fault, "recording")):
        if fault:
            tracer.fault = tracer.fault or fault
            tracer.step("fails", f"at the first {what}, loaded to the end: {fault}")
    trace_rows(tracer, lookup, found)
    tracer.step("casts", "to float16, whatever torch_dtype says")


def _read_run(tracer: Tracer) -> bool:
    """Read the files of a run; True for a LoRA run."""
    lora = read_run(tracer)
    tracer.tower = PartSource.BASE
    return bool(lora) or ADAPTER_CONFIG in tracer.files.names


def _stop_at_run(tracer: Tracer) -> NoReturn:
    """Replay VITA-1.5's loader on a run: only a LoRA run on Mixtral comes to its end there.

    UPSTREAM §8: the branches of the other language models were not written.
    """
    config = tracer.files.config or {}
    is_mixtral = config.get("model_type") == "vita-mixtral"
    is_lora = bool({ADAPTER_CONFIG, NON_LORA} & set(tracer.files.names))
    if not is_mixtral:
        tracer.stop(
            "run-not-loadable",
            "UnboundLocalError before anything is read: the loader has no code for a run on this "
            "language model",
        )
    if not is_lora:
        tracer.stop(
            "run-not-loadable", "AttributeError: the loader asks for pretrain_audio_mlp_adapter"
        )
    base = (tracer.files.adapter_config or {}).get("base_model_name_or_path")
    tracer.step("loads", f"the weights of {base!r}, which the run names; model_base is not opened")
    tracer.step("builds", "the model by the run's config.json")
    _read_run(tracer)
    tracer.step("renames", "non_lora_trainables without base_model. and the model. after it")
    tracer.step("merges", "the LoRA deltas; what does not fit is dropped without a word")
    tracer.end()


def _load_run(tracer: Tracer) -> None:
    """Replay VITA-1.0's loader on a run."""
    if _read_run(tracer):
        base = (tracer.files.adapter_config or {}).get("base_model_name_or_path")
        tracer.step("loads", f"the base that it is given (the run names {base!r})")
        tracer.step("renames", "non_lora_trainables without base_model. and the model. after it")
        tracer.step("merges", "the LoRA deltas into the base")
        return
    tracer.step("loads", "the base that it is given, by the base's own config.json")
    tracer.step("loads", f"{PROJECTOR_RUN} with strict=False, under its full names")
    dropped = [n for n in tracer.sources if not n.startswith(parts.PROJECTOR_PREFIX)]
    if dropped:
        tracer.ignored += dropped
        tracer.step("leaves out", f"{dropped[0]} and such: no name of the model")


def _look_into_tower(tracer: Tracer, lookup: Lookup, built: str, *, delayed: bool) -> None:
    """Read the tower's directory before the weights, as far as it is here."""
    tower = lookup.tower
    if tower is None or tower.path is None:
        return
    if tower.tower is not None and tower.tower.family != built:
        label = towers.FAMILIES[tower.tower.family].label
        detail = f"{tower.path} is {label}: the class is built from its config, nothing fits"
        tracer.step("tower", detail)
    if delayed:
        tracer.step("tower", "its config only, from its directory; weights follow at the end")
    else:
        read_tower_directory(tracer, lookup, built)


def _finish_tower(
    tracer: Tracer,
    lookup: Lookup,
    config: Mapping[str, Any],
    bound: Binding,
    *,
    tower: str,
    delayed: bool,
) -> None:
    """Record where the tower's weights come from, once the checkpoint is loaded."""
    if delayed:
        filled = read_tower_directory(tracer, lookup, tower)
        tracer.tower = PartSource.TOWER_DIRECTORY if filled else PartSource.RANDOM
    else:
        tracer.tower = bound.parts[parts.VISION_TOWER].source
        if tracer.tower is PartSource.CHECKPOINT:
            own = sum(name.startswith(parts.TOWER_MODULE) for name in tracer.sources)
            tracer.step("tower", f"{own} tensors of the checkpoint over the directory's")
        else:
            tracer.step("tower", "none in the checkpoint: uninitialised memory")
    if config.get("unfreeze_vision_tower"):
        read_tower_again(tracer, bound.parts[parts.VISION_TOWER].wanted)
