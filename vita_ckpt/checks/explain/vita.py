"""Replay VITA's loaders, which run on transformers 4.41.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import (
    Lookup,
    begin,
    build_audio,
    describe_mismatch,
    record,
    record_audio,
    require_backbone,
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
from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import parts, towers, wrappers
from vita_ckpt.core.anatomy.families import VITA
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.loaders import VITA_1_0, VITA_1_5
from vita_ckpt.core.binding.modules import built_projector
from vita_ckpt.core.binding.result import Binding, PartSource
from vita_ckpt.core.binding.stops import stop_of_model, stop_of_projector
from vita_ckpt.core.filenames import (
    ADAPTER_CONFIG,
    LORA_FILES,
    NON_LORA,
    ORIGIN_CONFIG,
    PROJECTOR_RUN,
)
from vita_ckpt.core.lora import read_names

# What peft wraps modules in that are trained whole; only its own files are read into them.
_SAVED: Final = f".{wrappers.MODULES_TO_SAVE}."


def vita_1_5(tracer: Tracer, lookup: Lookup) -> None:
    """Replay the loader of VITA-1.5."""
    if is_run(tracer):
        _load_lora_run(tracer, lookup)
    else:
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
    config = begin(tracer, lookup)
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


def _load_lora_run(tracer: Tracer, lookup: Lookup) -> None:
    """Replay VITA-1.5's loader on a run: only a LoRA run on Mixtral comes to its end there.

    The branches of the other language models were not written, and the name of the directory
    chooses between those of LoRA runs and of projector runs (UPSTREAM §8, LORA §1).
    """
    config = tracer.files.config or {}
    if config.get("model_type") != "vita-mixtral":
        tracer.stop(
            "run-not-loadable",
            "UnboundLocalError before anything is read: the loader has no code for a run on this "
            "language model",
        )
    if "lora" not in lookup.name.lower():
        tracer.stop(
            "run-not-loadable",
            f'AttributeError: {lookup.name!r} has no "lora" in it, and is taken for a projector '
            "run, for which the loader asks for pretrain_audio_mlp_adapter",
        )
    named = (tracer.files.adapter_config or {}).get("base_model_name_or_path")
    if not {*LORA_FILES} & {*tracer.files.names} or not isinstance(named, str):
        tracer.stop("run-not-loadable", f"OSError: no {ADAPTER_CONFIG} with {LORA_FILES[0]}")
    if lookup.base is None and not looks_like_repository(named):
        tracer.stop(
            "run-not-loadable",
            f"OSError: {named!r}, which the run names, is not here; model_base is not opened",
        )
    tracer.step("loads", f"the weights of {named!r}, which the run names; model_base is not opened")
    stop_at(tracer, stop_of_model(config))
    tracer.step("builds", "the model by the run's config.json")
    tower = build_tower(tracer, lookup, config, VITA)
    if tower is not None:
        _look_into_tower(tracer, lookup, tower, delayed=False)
    build_audio(tracer, lookup, config)
    if tower is not None:
        stop_at(tracer, stop_of_projector(config))
    if NON_LORA not in tracer.files.names:
        tracer.stop(
            "run-not-loadable", f"no {NON_LORA}: the loader asks the hub for it, and raises"
        )
    read_run(tracer)
    tracer.tower = PartSource.BASE
    _put_onto_base(tracer, lookup, config)


def _put_onto_base(tracer: Tracer, lookup: Lookup, config: Mapping[str, Any]) -> None:
    """Record what of a LoRA run takes its place in the model, and what the model lacks then."""
    stored = lookup.base.tensors if lookup.base is not None else {}
    bound = bind(config, stored, lookup.surroundings, VITA_1_5)
    if lookup.base is not None and bound.mismatch.mismatched:
        mismatch = describe_mismatch(bound.mismatch.mismatched[0])
        tracer.stop("shape-mismatch", f"size mismatch in the base: {mismatch}")
    wanted = {name: shape for part in bound.parts.values() for name, shape in part.wanted.items()}
    files = tracer.files.files
    run = {name: files[file].tensors[name] for name, file in tracer.sources.items()}
    found = read_names(run)
    for module, delta in found.deltas.items():
        shape = wanted.get(f"{module}.weight")
        a, b = (run[name].shape if name in run else None for name in (delta.a, delta.b))
        if shape is not None and len(shape) == 2 and a and b and (b[:1] + a[1:] != shape):
            detail = f"{delta.name}: [{b[0]}, {a[1]}] for {module}, which is {list(shape)}"
            tracer.stop("shape-mismatch", f"size mismatch: {detail}")
    tracer.step("renames", "non_lora_trainables without base_model. and the model. after it")
    dropped = sorted(
        name
        for place, name in found.trained.items()
        if place not in wanted or (_SAVED in name and tracer.sources[name] == NON_LORA)
    )
    if wanted and dropped:
        tracer.ignored += dropped
        tracer.step("leaves out", f"{dropped[0]} and such: no name of the model, without a word")
    lacking = [name for name in bound.mismatch.missing if name not in found.trained]
    if lookup.base is not None and lacking:
        tracer.missing += lacking
        tracer.step("lacks", f"{by_part(lacking)}, such as {lacking[0]}: uninitialised memory")
    tracer.step("merges", "the LoRA deltas; what does not fit is dropped without a word")


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
