"""Replay the loaders of VITA's relatives: ``builder.py`` of LLaVA, of LLaVA-NeXT and of Bunny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import (
    Lookup,
    begin,
    record,
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
from vita_ckpt.checks.explain.trace import Tracer
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import (
    BUNNY,
    LLAVA,
    LLAVA_NEXT,
    Load,
    ModelFamily,
    TowerSource,
)
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.modules import built_projector
from vita_ckpt.core.binding.result import Binding, PartSource
from vita_ckpt.core.binding.stops import stop_of_model, stop_of_projector
from vita_ckpt.core.filenames import PROJECTOR_RUN
from vita_ckpt.core.runs import stop_of_run, unfilled_by_run


def replay(family: ModelFamily) -> Callable[[Tracer, Lookup], None]:
    """Return the replay of a family's loader."""

    def run(tracer: Tracer, lookup: Lookup) -> None:
        if is_run(tracer):
            _load_run(tracer, family)
        else:
            _load_model(tracer, lookup, family)

    return run


def _load_model(tracer: Tracer, lookup: Lookup, family: ModelFamily) -> None:
    config = begin(tracer, lookup)
    stop_at(tracer, stop_of_model(config, family))
    backbone = family.backbone(config) or family.backbone_on(config.get("model_type"))
    if backbone is None:
        tracer.stop("unknown-model-type", f"model_type {config.get('model_type')!r}")
    tower: str | None = None

    def build() -> None:
        nonlocal tower
        tracer.model_class, tracer.dtype = backbone.architecture, "float16"
        tracer.step("builds", f"{backbone.architecture}: {_chosen_by(family, lookup.name)}")
        tower = build_tower(tracer, lookup, config, family)

    read = file_resolution.from_pretrained(tracer, old=True, build=build)
    if tower is not None:
        stop_at(tracer, stop_of_projector(config, family))
        if (projector := built_projector(config, family)) is not None:
            by = "the config" if "mm_projector_type" in config else "default: the config names none"
            tracer.step("projector", f"{projector}, by {by}")
    refs = {name: tensor for name, (tensor, _) in read.tensors.items()}
    bound = bind(config, refs, lookup.surroundings, tracer.loader)
    trace_lm_head(tracer, config, read.tensors)
    fate = "uninitialised memory, or drawn at random"
    record(tracer, bound, read.tensors, fate, quiet=(parts.LM_HEAD, *bound.left_out))
    if tower is not None:
        trace_projector(tracer, bound, "N(0, 0.02), biases zero, without a word")
        _finish_tower(tracer, lookup, config, bound, family, tower)
    if bound.fault:
        tracer.fault = bound.fault
        tracer.step("fails", f"at the first image, loaded to the end: {bound.fault}")
    for token in family.added_tokens(config):
        tracer.step("adds", f"{token}, unless the tokenizer has it, and a row that is not stored")
    trace_rows(tracer, lookup, read.tensors)
    tracer.step("casts", "to float16, whatever torch_dtype says")


def _by_name(*words: tuple[str, str], otherwise: str) -> Callable[[str], str]:
    """Return what says which class the name of a directory chooses, and why it matters."""

    def chosen(name: str) -> str:
        lowered = name.lower()
        found = next((cls for word, cls in words if word in lowered), otherwise)
        if "llava" not in lowered:
            return (
                f'for a name with "llava" in it, which {name!r} has not: under that name AutoModel '
                "builds it, without a processor, and never fills a tower that is its directory's"
            )
        return f"the name {name!r} chooses {found}, whatever model_type says"

    return chosen


# What a loader raises over that reads a trained tower again, from safetensors files alone.
_IN_PICKLES: Final = Load(stored=True, safetensors=False)

# How each family's loader chooses its class.
_CHOSEN_BY: Final[Mapping[str, Callable[[str], str]]] = {
    LLAVA.name: _by_name(
        ("mpt", "LlavaMptForCausalLM"),
        ("mistral", "LlavaMistralForCausalLM"),
        otherwise="LlavaLlamaForCausalLM",
    ),
    LLAVA_NEXT.name: _by_name(
        ("mixtral", "LlavaMixtralForCausalLM"),
        ("mistral", "LlavaMistralForCausalLM"),
        ("zephyr", "LlavaMistralForCausalLM"),
        ("qwen", "LlavaQwenForCausalLM"),
        ("quyen", "LlavaQwenForCausalLM"),
        ("gemma", "LlavaGemmaForCausalLM, and raises NameError in the released code"),
        otherwise="LlavaLlamaForCausalLM, which has no biases for a Qwen2's",
    ),
    BUNNY.name: lambda _: "by the model_type that the loader is given, whatever the config's says",
}


def _chosen_by(family: ModelFamily, name: str) -> str:
    chosen = _CHOSEN_BY.get(family.name)
    return chosen(name) if chosen is not None else "by the config's model_type"


def _finish_tower(
    tracer: Tracer,
    lookup: Lookup,
    config: Mapping[str, Any],
    bound: Binding,
    family: ModelFamily,
    tower: str,
) -> None:
    """Record where the tower's weights come from, once the checkpoint is loaded."""
    part = bound.parts[parts.VISION_TOWER]
    own = sum(name.startswith(parts.TOWER_MODULE) for name in (*tracer.sources, *bound.left_out))
    filled = read_tower_directory(tracer, lookup, tower)
    if part.source is PartSource.TOWER_DIRECTORY:
        tracer.tower = PartSource.TOWER_DIRECTORY if filled else PartSource.RANDOM
        if own:
            tracer.step("tower", f"{own} tensors of the checkpoint are dropped: its directory wins")
        return
    tracer.tower = part.source
    if part.source is PartSource.CHECKPOINT:
        tracer.step("tower", f"{own} tensors of the checkpoint over the directory's")
    else:
        tracer.step("tower", "none in the checkpoint: uninitialised memory")
    if family.tower_source(config, _IN_PICKLES) is TowerSource.RAISES:
        read_tower_again(tracer, part.wanted)


def _load_run(tracer: Tracer, family: ModelFamily) -> None:
    """Replay the loader on a run: its own config over the base's weights."""
    config = require_config(tracer)
    lora = read_run(tracer)
    tracer.step(
        "builds", "the model by the run's config.json, and fills it with the base's weights"
    )
    stop_at(tracer, stop_of_run(config, tracer.sources, family, is_lora=bool(lora)))
    if lora:
        tracer.step("renames", "non_lora_trainables without base_model. and the model. after it")
        tracer.step("merges", "the LoRA deltas into the base; other tensors with strict=False")
    else:
        tracer.step("loads", f"{PROJECTOR_RUN} with strict=False, under its full names")
    own = any(parts.part_of(name) == parts.VISION_TOWER for name in tracer.sources)
    tracer.tower = PartSource.CHECKPOINT if own else PartSource.TOWER_DIRECTORY
    unfilled = unfilled_by_run(config, tracer.sources, family, is_lora=bool(lora))
    if unfilled:
        tracer.missing += unfilled
        tracer.step("lacks", f"{', '.join(unfilled)}: uninitialised memory, if the base has none")
