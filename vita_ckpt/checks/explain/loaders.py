"""Each loader, replayed over a directory: what it builds, from which files, and what it leaves.

VITA's two loaders run on transformers 4.41.1. What plain transformers does without VITA's code, and
what huggingface_hub does, was read from their sources and is compared with the installed libraries
in the tests. Of transformers 5 before 5.6, language models load as in 5.6 and towers as in 4.41.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from vita_ckpt.checks.explain import file_resolution as file_choice
from vita_ckpt.checks.explain.file_resolution import Read
from vita_ckpt.checks.explain.trace import (
    CHECKPOINT,
    DIRECTORY,
    NOT_BUILT,
    RANDOM,
    UNFILLED,
    LoaderStory,
    Teller,
    by_part,
    some_files,
)
from vita_ckpt.core.anatomy import language_tensors, parts, projectors, towers
from vita_ckpt.core.anatomy.backbones import BACKBONES, Backbone
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.anatomy.towers.tower import TowerDirectory
from vita_ckpt.core.checkpoint import Shape, TensorRef
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import InputError

VITA_1_5: Final = "vita-1.5"
VITA_1_0: Final = "vita-1.0"
TRANSFORMERS_4_41: Final = "transformers-4.41"
TRANSFORMERS_5_6: Final = "transformers-5.6"
HUB_MODEL: Final = "hub-model"
HUB_METADATA: Final = "hub-metadata"

Found = Mapping[str, tuple[TensorRef, str]]

_TORCH_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# The level that CLIP's and SigLIP's towers lost in transformers 5.6, and what every causal language
# model has its layers below (base_model_prefix).
_VISION_LEVEL: Final = "vision_model."
_BASE_PREFIX: Final = "model"
_TOWER: Final = "model.vision_tower."

# Mixtral as transformers 5 builds it, by the names that are stored (conversion_mapping.py): found
# by the class or the config's model_type, and VITA's is none that it knows.
_FUSED: Final = (
    ("block_sparse_moe.gate", "mlp.gate"),
    ("block_sparse_moe.experts.*.w1 and .w3", "mlp.experts.gate_up_proj"),
    ("block_sparse_moe.experts.*.w2", "mlp.experts.down_proj"),
)

_SPARSE: Final = ".block_sparse_moe."

# Files of runs that are loaded on top of a base.
_RUN: Final = "mm_projector.bin"
_LORA: Final[tuple[str, ...]] = ("adapter_model.safetensors", "adapter_model.bin")
_NON_LORA: Final = "non_lora_trainables.bin"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies where ``mm_vision_tower`` leads, looked up before any loader is replayed.

    ``files`` are the tower directory's; ``from_here`` says whether the path leads there from the
    working directory, which is where VITA's loaders look.
    """

    tower: TowerDirectory | None = None
    files: WeightFiles | None = None
    from_here: bool = False


def explain_loaders(files: WeightFiles, around: Surroundings) -> tuple[LoaderStory, ...]:
    """What every loader would do with these files."""
    stories = []
    for name, (_, replay) in LOADERS.items():
        stories.append(Teller(name, files).tell(partial(replay, around=around)))
    return tuple(stories)


def _vita_1_5(teller: Teller, around: Surroundings) -> None:
    _vita(teller, around, delayed=False)


def _vita_1_0(teller: Teller, around: Surroundings) -> None:
    config = teller.files.config or {}
    _vita(teller, around, delayed=not config.get("continuous_training"))


def _vita(teller: Teller, around: Surroundings, *, delayed: bool) -> None:
    """VITA's loader; ``delayed`` builds the tower without weights and fills it afterwards."""
    if _needs_base(teller):
        return
    config = _config(teller)
    if towers.tower_of_config(config) is not None:
        teller.stop("not-a-vita-checkpoint", "a tower: name it in mm_vision_tower of a checkpoint")
    backbone = _backbone(teller, config)
    teller.model_class, teller.dtype = backbone.architecture, "float16"
    teller.step("builds", f"{backbone.architecture}, loader name {backbone.loader_name}")
    family = _build_tower(teller, around, config, delayed=delayed)
    read = file_choice.from_pretrained(teller, old=True)
    # With low_cpu_mem_usage a tensor is loaded only if the index knows its name too.
    named = read.tensors if read.index is None else read.index.weight_map
    unnamed = sorted(read.tensors.keys() - named.keys())
    found = {name: tensor for name, tensor in read.tensors.items() if name in named}
    if unnamed:
        teller.ignored += unnamed
        teller.step("leaves out", f"{by_part(unnamed)}: the index does not name them")
    wanted = _wanted(teller, backbone, config)
    wanted_tower: Mapping[str, Shape] = {}
    if family is not None:
        wanted |= _wanted_projector(teller, config, found)
        wanted_tower = _wanted_tower(around, found, family)
        wanted |= {} if delayed else wanted_tower
    _refuse_head_beside_base(teller, wanted, found)
    accepted = _audio(teller, config, found)
    _tie_keeping_embeddings(teller, config, found)
    _fit(teller, wanted, found, accepted, "on the meta device or drawn at random")
    if family is not None:
        _say_projector(teller, "N(0, 0.02), biases zero, without a word")
        _finish_tower(teller, around, config, wanted_tower, family=family, delayed=delayed)
    teller.step("casts", "to float16, whatever torch_dtype says")


def _needs_base(teller: Teller) -> bool:
    """A LoRA or projector run: nothing without a base. True for what no further step follows."""
    names = set(teller.files.names)
    model = set(file_choice.FROM_PRETRAINED_ORDER) & names
    if model or not names & {"adapter_config.json", _NON_LORA, _RUN}:
        return False
    lora = [name for name in _LORA if name in names][:1]
    lora += [_NON_LORA] if _NON_LORA in names else []
    for name in lora or [_RUN]:
        if name in teller.files.files:
            file = teller.read(teller.files.files[name])
            teller.sources |= dict.fromkeys(file.tensors, name)
    if lora:
        base = (teller.files.adapter_config or {}).get("base_model_name_or_path")
        teller.step("loads", f"the base it is given first (the run names {base!r})")
        teller.step("renames", "non_lora_trainables without base_model. and the model. after it")
        teller.step("merges", "the LoRA deltas into the base")
    else:
        teller.step("loads", "the base it is given, built with the run's config.json")
        teller.step("renames", f"{_RUN} by what follows mm_projector. (get_w)")
    held = any(parts.part_of(name) == parts.MM_PROJECTOR for name in teller.sources)
    teller.projector = CHECKPOINT if held else "its base"
    teller.tower, teller.dtype = "its base", "float16"
    return True


def _config(teller: Teller) -> Mapping[str, Any]:
    if teller.files.config_trouble is not None:
        teller.stop_for(teller.files.config_trouble)
    if teller.files.config is None:
        teller.stop("config-missing", "no config.json")
    return teller.files.config


def _backbone(teller: Teller, config: Mapping[str, Any]) -> Backbone:
    model_type = config.get("model_type")
    known = (b for b in BACKBONES.values() if model_type in (b.model_type, b.plain_model_type))
    backbone = next(known, None)
    if backbone is None:
        expected = ", ".join(BACKBONES)
        teller.stop("unknown-model-type", f"model_type {model_type!r} is none of {expected}")
    return backbone


def _build_tower(
    teller: Teller, around: Surroundings, config: Mapping[str, Any], *, delayed: bool
) -> str | None:
    """The tower as it is built before the checkpoint is read: its family, None if there is none."""
    path = config.get("mm_vision_tower")
    if not isinstance(path, str) or not path:
        teller.tower = teller.projector = NOT_BUILT
        teller.step("tower", "none: the config names no mm_vision_tower")
        return None
    dispatch = towers.dispatch(path, bool(config.get("use_s2")))
    if dispatch.family is None:
        s2 = dispatch.reason.outcome is towers.Outcome.NO_S2
        teller.stop("s2-needs-siglip" if s2 else "tower-path-misleads", str(dispatch.reason))
    teller.step("tower", f"{dispatch.tower_class}: {dispatch.reason}")
    tower = around.tower
    if tower is not None and tower.path is not None:
        if tower.problem is not None:
            teller.stop("tower-directory-unreadable", tower.problem)
        if tower.tower is not None and tower.tower.family != dispatch.family:
            is_ = tower.tower.traits.label
            teller.stop("tower-path-misleads", f"a size mismatch: {tower.path} is {is_}")
        if not around.from_here:
            teller.step(
                "tower", f"{path} was found in {tower.path}: the loader looks from where it runs"
            )
    else:
        teller.step("tower", f"{path} is not reachable from here: a path elsewhere, or a hub id")
    if delayed:
        teller.step("tower", "its config only, from its directory; weights follow at the end")
    else:
        _read_tower_directory(teller, around, dispatch.family)
    return dispatch.family


def _read_tower_directory(teller: Teller, around: Surroundings, family: str) -> bool:
    """The tower's own from_pretrained; False if it draws the tower at random instead."""
    files = around.files
    if files is None:
        return True
    inner = Teller(teller.loader, files)
    names: list[str] = []
    story = inner.tell(lambda own: names.extend(_tower_names(own, family)))
    if story.stopped_by is not None:
        teller.stop(story.stopped_by, f"in the tower's directory: {story.steps[-1].detail}")
    teller.tower_files += map(files.path_of, story.files_read)
    teller.step("tower", f"filled from its directory: {some_files(story.files_read)}")
    if towers.FAMILIES[family].library_class is not None and not any(
        n.startswith(_VISION_LEVEL) for n in names
    ):
        teller.step(
            "draws",
            f"the tower at random: its directory's names lack the {_VISION_LEVEL} level that "
            "transformers before 5.6 expects, and it says so only in a warning",
        )
        return False
    return True


def _tower_names(own: Teller, family: str) -> Iterable[str]:
    """Return the names in a tower's directory, or in the files of a family that has none."""
    if not towers.FAMILIES[family].lone_file:
        return file_choice.from_pretrained(own, old=True).tensors
    return [name for file in own.files.files.values() for name in own.read(file).tensors]


def _finish_tower(
    teller: Teller,
    around: Surroundings,
    config: Mapping[str, Any],
    wanted: Mapping[str, Shape],
    *,
    family: str,
    delayed: bool,
) -> None:
    """What the tower ends up with, once the checkpoint is loaded."""
    if delayed:
        filled = _read_tower_directory(teller, around, family)
        teller.tower = DIRECTORY if filled else RANDOM
    else:
        own = [name for name in teller.sources if name.startswith(_TOWER)]
        teller.tower = CHECKPOINT if own else UNFILLED
        if own:
            teller.step("tower", f"{len(own)} tensors of the checkpoint over the directory's")
        else:
            teller.step(
                "tower", "none in the checkpoint: most stays on the meta device, the rest is drawn"
            )
    if config.get("unfreeze_vision_tower"):
        _read_tower_again(teller, wanted)


def _read_tower_again(teller: Teller, wanted: Mapping[str, Shape]) -> None:
    """``unfreeze_vision_tower``: every file of the directory, strictly, in the system's order."""
    names = [name for name in teller.files.names if name.endswith("safetensors")]
    found: dict[str, list[str]] = {}
    shapes: dict[str, Shape] = {}
    for name in names:
        file = teller.files.files[name]
        if file.trouble is not None:
            teller.stop_for(file.trouble)
        teller.tower_files.append(name)
        for tensor, ref in file.tensors.items():
            if tensor.startswith(_TOWER):
                found.setdefault(tensor, []).append(name)
                shapes[tensor] = ref.shape
    teller.step("tower", f"again, strictly, from every *.safetensors file: {some_files(names)}")
    if not found:
        teller.stop("tower-absent", "no *.safetensors file holds a tensor of the tower")
    misfit = compare(wanted, shapes)
    if misfit.missing:
        teller.stop("missing-tensor", f"{misfit.missing[0]} is in none of them")
    if misfit.unexpected:
        teller.stop("unexpected-tensor", f"{misfit.unexpected[0]} is none of the tower's")
    if misfit.mismatched:
        teller.stop("shape-mismatch", _shapes(misfit.mismatched[0]))
    twice = [tensor for tensor, holders in found.items() if len(holders) > 1]
    if twice:
        teller.step(
            "tower", f"{len(twice)} tensors are in several files: the one listed last counts"
        )
    teller.sources |= {tensor: " or ".join(holders) for tensor, holders in found.items()}
    teller.ignored = [name for name in teller.ignored if name not in found]
    teller.tower = CHECKPOINT


def _wanted(teller: Teller, backbone: Backbone, config: Mapping[str, Any]) -> dict[str, Shape]:
    wrong = language_tensors.wrong_sizes(backbone.language_model, config)
    if wrong:
        teller.stop("config-type", f"{wrong[0]} is {config.get(wrong[0])!r}, no size")
    return language_tensors.expected_shapes(backbone.language_model, config)


def _wanted_projector(
    teller: Teller, config: Mapping[str, Any], found: Found
) -> Mapping[str, Shape]:
    kind = config.get("mm_projector_type", projectors.DEFAULT_TYPE)
    if not isinstance(kind, str) or not projectors.is_known(kind):
        teller.stop("unknown-projector-type", f"mm_projector_type {kind!r}")
    projector = projectors.of_config(config)
    if projector is None:
        return {n: t.shape for n, (t, _) in found.items() if n.startswith(parts.PROJECTOR_PREFIX)}
    shapes = projectors.expected_shapes(projector)
    teller.step("projector", f"{projector}, from the config")
    return {parts.PROJECTOR_PREFIX + name: shape for name, shape in shapes.items()}


def _wanted_tower(around: Surroundings, found: Found, family: str) -> dict[str, Shape]:
    """The tower's tensors by its directory's config; those of the checkpoint where that is away."""
    stored = {n: t.shape for n, (t, _) in found.items() if n.startswith(_TOWER)}
    config = around.tower.config if around.tower is not None else None
    if config is None:
        return stored
    try:
        shapes = tower_tensors.expected_shapes(config)
    except InputError:
        return stored
    prefix = _TOWER + towers.FAMILIES[family].stored_prefix
    return {prefix + name: shape for name, shape in shapes.items()}


def _audio(teller: Teller, config: Mapping[str, Any], found: Found) -> set[str]:
    """The audio tensors, which have a place where the config names an encoder."""
    audio = {
        name for name in found if parts.part_of(name) in (parts.AUDIO_ENCODER, parts.AUDIO_ADAPTER)
    }
    path = config.get("mm_audio_encoder")
    if path is None:
        return set()
    teller.step("audio", f"built from train.yaml, global_cmvn and final.pt in {path}")
    if audio:
        teller.step("audio", f"{len(audio)} tensors of the checkpoint over the directory's")
    return audio


def _tie_keeping_embeddings(teller: Teller, config: Mapping[str, Any], found: Found) -> None:
    """lm_head where every module is filled on its own and tied at the end."""
    if config.get("tie_word_embeddings") is not True:
        teller.lm_head = parts.LM_HEAD if parts.LM_HEAD in found else None
        return
    teller.lm_head = parts.EMBED_TOKENS
    if parts.LM_HEAD in found:
        teller.step("ties", "lm_head.weight of the file is dropped: the embeddings are used")


def _fit(
    teller: Teller, wanted: Mapping[str, Shape], found: Found, accepted: set[str], fate: str
) -> None:
    """Match names and shapes: where each tensor comes from, what is missing, what is left."""
    placed = _placed(wanted, found, accepted)
    shapes = {place: found[stored][0].shape for stored, place in placed.items()}
    misfit = compare(wanted, shapes)
    if misfit.mismatched:
        teller.stop("shape-mismatch", f"size mismatch: {_shapes(misfit.mismatched[0])}")
    teller.sources |= {stored: found[stored][1] for stored in placed}
    ignored = [name for name in found if name not in placed]
    teller.missing += misfit.missing
    teller.ignored += ignored
    if misfit.missing:
        example = f"such as {misfit.missing[0]}"
        teller.step("lacks", f"{by_part(misfit.missing)}, {example}: {fate}")
    if ignored:
        teller.step("leaves out", f"{by_part(ignored)}: no place for them")


def _placed(wanted: Mapping[str, Shape], found: Found, accepted: set[str]) -> dict[str, str]:
    """Stored names with the model's: below ``model.`` where no stored name starts like that."""
    bare = not any(name.startswith(_BASE_PREFIX) for name in found)
    placed = {name: name for name in found if name in wanted or name in accepted}
    if bare:
        below = {name: f"{_BASE_PREFIX}.{name}" for name in found if name not in placed}
        placed |= {name: place for name, place in below.items() if place in wanted}
    return placed


def _say_projector(teller: Teller, fate: str) -> None:
    own = [name for name in teller.sources if name.startswith(parts.PROJECTOR_PREFIX)]
    lacks = any(name.startswith(parts.PROJECTOR_PREFIX) for name in teller.missing)
    teller.projector = RANDOM if lacks and not own else CHECKPOINT
    if lacks:
        teller.step("draws", f"what the projector lacks: {fate}")


def _shapes(mismatch: tuple[str, Shape, Shape]) -> str:
    name, want, got = mismatch
    return f"{name} is {list(got)}, not {list(want)}"


def _transformers_4_41(teller: Teller, around: Surroundings) -> None:
    _transformers(teller, old=True)


def _transformers_5_6(teller: Teller, around: Surroundings) -> None:
    _transformers(teller, old=False)


def _transformers(teller: Teller, *, old: bool) -> None:
    """``from_pretrained`` of the library's own classes, with nothing of VITA's registered."""
    _say_adapter(teller, old=old)
    config = _config(teller)
    tower = towers.tower_of_config(config)
    if tower is not None:
        _library_tower(teller, config, tower.family, old=old)
        return
    backbone = _backbone(teller, config)
    model_type = config.get("model_type")
    teller.model_class = f"{backbone.language_model}ForCausalLM"
    if model_type in BACKBONES:
        teller.step("auto", f"AutoModelForCausalLM does not know {model_type}: ValueError")
        teller.step("builds", f"{teller.model_class}, if asked for it by name, with a warning")
    else:
        teller.step("builds", teller.model_class)
    teller.tower = teller.projector = NOT_BUILT
    read = file_choice.from_pretrained(teller, old=old)
    teller.dtype = _dtype(teller, config, read, old=old)
    wanted = _wanted(teller, backbone, config)
    if old:
        _refuse_head_beside_base(teller, wanted, read.tensors)
    found = dict(read.tensors)
    tied = config.get("tie_word_embeddings") is True
    head = found.pop(parts.LM_HEAD) if tied and parts.LM_HEAD in found else None
    if backbone.language_model == "Mixtral" and not old:
        wanted = _fuse(teller, wanted, known=model_type == backbone.plain_model_type)
    _fit(teller, wanted, found, set(), "drawn at random (norms 1, biases 0)")
    teller.lm_head = parts.EMBED_TOKENS if tied else parts.LM_HEAD
    if head is not None:
        _tie(teller, read, head[1], old=old)
    elif parts.LM_HEAD in teller.missing:
        teller.lm_head = None


def _say_adapter(teller: Teller, *, old: bool) -> None:
    """maybe_load_adapters, which is active where peft is installed."""
    if teller.files.adapter_config is None:
        return
    base = teller.files.adapter_config.get("base_model_name_or_path")
    what = (
        f"the base it names, {base!r}"
        if old or "config.json" not in teller.files.names
        else "this directory with the adapter on top"
    )
    teller.step("adapter", f"where peft is installed, adapter_config.json loads {what}")


def _refuse_head_beside_base(teller: Teller, wanted: Mapping[str, Shape], found: Found) -> None:
    """4.41.1 takes names without ``model.`` for a base model, which has no head."""
    heads = [name for name in found if name in wanted]
    if heads and not any(name.startswith(_BASE_PREFIX) for name in found):
        teller.stop("foreign-prefix", f"{heads[0]} beside names without model.: taken for corrupt")


def _fuse(
    teller: Teller,
    wanted: Mapping[str, Shape],
    *,
    known: bool,
) -> dict[str, Shape]:
    """Mixtral's experts in transformers 5, fused on load if model_type is the library's own."""
    if known:
        teller.renamed += _FUSED
        teller.step("renames", "block_sparse_moe to mlp, and fuses the experts of a layer")
        return dict(wanted)
    teller.step("renames", "nothing: its table for Mixtral is not looked up for this model_type")
    built = {name: shape for name, shape in wanted.items() if _SPARSE not in name}
    for name, shape in wanted.items():
        layer, _, gate = name.partition(_SPARSE)
        if gate == "gate.weight":
            experts, width = shape
            inner = wanted[f"{layer}{_SPARSE}experts.0.w1.weight"][0]
            built[f"{layer}.mlp.gate.weight"] = (experts, width)
            built[f"{layer}.mlp.experts.gate_up_proj"] = (experts, 2 * inner, width)
            built[f"{layer}.mlp.experts.down_proj"] = (experts, width, inner)
    return built


def _tie(teller: Teller, read: Read, head: str, *, old: bool) -> None:
    """A tied lm_head.weight that is stored all the same: three loaders, three answers."""
    if not old:
        teller.sources[parts.LM_HEAD] = head
        teller.lm_head = f"{parts.LM_HEAD} if it differs from the embeddings"
        teller.step("ties", "lm_head.weight to the embeddings only if the two are equal")
        return
    embeddings = read.tensors.get(parts.EMBED_TOKENS)
    if embeddings is None or teller.files_read.index(head) >= teller.files_read.index(
        embeddings[1]
    ):
        teller.sources |= {parts.LM_HEAD: head}
        teller.lm_head = parts.LM_HEAD
        teller.step("ties", "lm_head.weight is written over the embeddings: both are one tensor")
    else:
        teller.step("ties", "the embeddings are written over lm_head.weight: both are one tensor")


def _dtype(teller: Teller, config: Mapping[str, Any], read: Read, *, old: bool) -> str | None:
    """Without a dtype from the caller: float32 before 5.0, then what the config or a file says."""
    if old:
        teller.step("casts", "to float32, unless the caller says otherwise")
        return "float32"
    said = config.get("dtype", config.get("torch_dtype"))
    if not isinstance(said, str) and read.index is not None:
        said = (read.index.metadata or {}).get("dtype")
    if isinstance(said, str):
        return said
    first = teller.files.files[teller.files_read[0]].tensors
    dtypes = (_TORCH_DTYPES.get(first[name].dtype) for name in sorted(first))
    return next((dtype for dtype in dtypes if dtype is not None), None)


def _library_tower(teller: Teller, config: Mapping[str, Any], family: str, *, old: bool) -> None:
    """A standalone tower in the library's own class."""
    teller.model_class = towers.FAMILIES[family].library_class
    if teller.model_class is None:
        teller.stop("unknown-model-type", f"model_type {config.get('model_type')!r} is unknown")
    teller.step("builds", teller.model_class)
    read = file_choice.from_pretrained(teller, old=old)
    teller.dtype = _dtype(teller, config, read, old=old)
    found = dict(read.tensors)
    level = old or any(name.startswith(_VISION_LEVEL) for name in found)
    try:
        own = tower_tensors.expected_shapes(config)
    except InputError as error:
        teller.stop(error.code, str(error))
    if level and not old:
        teller.renamed.append((f"{_VISION_LEVEL}*", "*"))
        teller.step("renames", f"{_VISION_LEVEL}* without that level")
    wanted = {(_VISION_LEVEL if level else "") + name: shape for name, shape in own.items()}
    _fit(teller, wanted, found, set(), "drawn at random, with a warning")
    teller.tower = CHECKPOINT if teller.sources else RANDOM


def _hub_model(teller: Teller, around: Surroundings) -> None:
    """``load_torch_model`` with a module of the checkpoint's own class."""
    config = teller.files.config or {}
    read = file_choice.load_torch_model(teller)
    teller.step("fills", "the module that it is given, in that module's dtype, not strictly")
    backbone = BACKBONES.get(str(config.get("model_type")))
    found = read.tensors
    if backbone is None or language_tensors.wrong_sizes(backbone.language_model, config):
        teller.sources |= {name: file for name, (_, file) in found.items()}
        return
    teller.model_class = backbone.architecture
    wanted = _wanted(teller, backbone, config)
    path = config.get("mm_vision_tower")
    dispatch = towers.dispatch(path, False) if isinstance(path, str) else None
    if dispatch is not None and dispatch.family is not None:
        wanted |= _wanted_projector(teller, config, found)
        wanted |= _wanted_tower(around, found, dispatch.family)
    accepted = _audio(teller, config, found) | ({parts.LM_HEAD} & found.keys())
    _fit(teller, wanted, found, accepted, "kept as the module has them")
    for attribute, prefix in (("tower", _TOWER), ("projector", parts.PROJECTOR_PREFIX)):
        held = any(name.startswith(prefix) for name in teller.sources)
        setattr(teller, attribute, CHECKPOINT if held else None)


def _hub_metadata(teller: Teller, around: Surroundings) -> None:
    """What the Hub's pages and safetensors metadata are made of."""
    read = file_choice.metadata(teller)
    teller.sources |= {name: file for name, (_, file) in read.tensors.items()}


Replay = Callable[..., None]

LOADERS: Final[dict[str, tuple[str, Replay]]] = {
    VITA_1_5: ("VITA-1.5's loader, transformers 4.41.1", _vita_1_5),
    VITA_1_0: ("VITA-1.0's loader, transformers 4.41.1", _vita_1_0),
    TRANSFORMERS_4_41: ("plain transformers 4.41, from_pretrained", _transformers_4_41),
    TRANSFORMERS_5_6: ("plain transformers 5.6 and later, from_pretrained", _transformers_5_6),
    HUB_MODEL: ("huggingface_hub's load_torch_model", _hub_model),
    HUB_METADATA: ("huggingface_hub's safetensors metadata", _hub_metadata),
}
