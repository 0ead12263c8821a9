"""Bind a checkpoint's tensors to what a loader builds: strictly, by whole names.

The names and shapes follow from the config, the tower's own config and the tables of the anatomy
(UPSTREAM §1, §3, §4, §8). Nothing is recognised by guess here: a prefix too many makes a tensor
unexpected, and the one it should be missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final

from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import language_tensors, parts, projectors, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.audio.tensors import (
    AUDIO_PREFIX,
    COUNTER,
    prompt_rows,
    settings_of_shapes,
    wanted_tensors,
)
from vita_ckpt.core.anatomy.backbones import BACKBONES, Backbone
from vita_ckpt.core.anatomy.config_values import wrong_language_values, wrong_sizes
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers.tensors import config_of_tensors, expected_shapes
from vita_ckpt.core.anatomy.towers.tower import Tower, TowerDirectory
from vita_ckpt.core.checkpoint import Shape, Tensor
from vita_ckpt.core.dtype import is_real
from vita_ckpt.core.tensor_match import KeyMismatch
from vita_ckpt.errors import InputError

Shapes = Mapping[str, Shape]
Tensors = Mapping[str, Tensor]

VITA_1_5: Final = "vita-1.5"
VITA_1_0: Final = "vita-1.0"
TRANSFORMERS_4_41: Final = "transformers-4.41"
TRANSFORMERS_5_6: Final = "transformers-5.6"
HUB_MODEL: Final = "hub-model"
HUB_METADATA: Final = "hub-metadata"


@dataclass(frozen=True, slots=True)
class _Loader:
    """What distinguishes a loader as to what it binds.

    ``is_vita`` builds tower, projector and audio encoder, ``looks_around`` opens their directories
    for it, ``tower_last`` fills the tower from its directory after the checkpoint is read,
    ``is_old`` is transformers before 5, ``gives_module`` has the caller build the model.
    """

    is_vita: bool = False
    looks_around: bool = False
    tower_last: bool = False
    is_old: bool = False
    gives_module: bool = False


# By the names of ``explain --loader``; the one that only reads headers builds nothing.
_LOADERS: Final[Mapping[str, _Loader | None]] = {
    VITA_1_5: _Loader(is_vita=True, looks_around=True, is_old=True),
    VITA_1_0: _Loader(is_vita=True, looks_around=True, tower_last=True, is_old=True),
    TRANSFORMERS_4_41: _Loader(is_old=True),
    TRANSFORMERS_5_6: _Loader(),
    HUB_MODEL: _Loader(is_vita=True, gives_module=True),
    HUB_METADATA: None,
}
LOADER_NAMES: Final = tuple(_LOADERS)

# What every loader drops without harm: tables that are computed anew when the model is built.
_HARMLESS: Final = (".rotary_emb.inv_freq", ".embeddings.position_ids")
# The released code builds no state predictor: with its tensors or without, the model is the same.
_PREDICTS_STATES: Final = "vita-fo-Qwen2"
_UNREACHABLE: Final = "tower-path-unreachable"
# What every causal language model has its layers below (base_model_prefix).
_BASE_PREFIX: Final = "model"
_SPARSE: Final = ".block_sparse_moe."


class PartSource(Enum):
    """Where a part of a loaded model ends up coming from; its string is the wording of reports."""

    CHECKPOINT = auto()
    TOWER_DIRECTORY = auto()
    BASE = auto()
    RANDOM = auto()
    UNFILLED = auto()
    NOT_BUILT = auto()

    def __str__(self) -> str:
        return _WORDING[self]


_WORDING: Final[Mapping[PartSource, str]] = {
    PartSource.CHECKPOINT: "the checkpoint",
    PartSource.TOWER_DIRECTORY: "its directory",
    PartSource.BASE: "its base",
    PartSource.RANDOM: "drawn at random",
    PartSource.UNFILLED: "left without values",
    PartSource.NOT_BUILT: "not built",
}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lies around a checkpoint, as far as a binding depends on it.

    ``tower`` is what lies at ``mm_vision_tower``, ``carried`` a tower's config that comes with the
    checkpoint or is given for it, ``audio`` what ``mm_audio_encoder`` leads to.
    """

    tower: TowerDirectory | None = None
    carried: Mapping[str, Any] | None = None
    audio: AudioDirectory | None = None

    @property
    def tower_configs(self) -> tuple[Mapping[str, Any], ...]:
        """The tower's configs in order of precedence: loaders read the directory's."""
        directory = self.tower.config if self.tower is not None else None
        return tuple(config for config in (directory, self.carried) if config is not None)


@dataclass(frozen=True, slots=True)
class Stop:
    """Where a loader raises while it builds the model, before it reads the weights."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class PartBinding:
    """The tensors of one part, against those that a loader builds.

    ``wanted`` is empty where nothing determines the part; every stored tensor of it is then
    unexpected. ``integers`` are the names of tensors that bind but hold no real numbers.
    """

    wanted: Shapes
    mismatch: KeyMismatch
    source: PartSource
    integers: tuple[str, ...] = ()

    def without(self, names: Collection[str]) -> PartBinding:
        """Return the part as if these names were neither missing nor unexpected."""
        found = self.mismatch
        if not names or not (found.missing or found.unexpected):
            return self
        missing = tuple(name for name in found.missing if name not in names)
        unexpected = tuple(name for name in found.unexpected if name not in names)
        return replace(self, mismatch=KeyMismatch(missing, unexpected, found.mismatched))


@dataclass(frozen=True, slots=True)
class Binding:
    """What a loader makes of a checkpoint: what binds, what does not, and where it stops.

    ``parts`` are those that it builds, or of which tensors are stored, by their names in
    :mod:`~vita_ckpt.core.anatomy.parts`. ``found`` maps stored names to the names they bind to,
    ``left_out`` are stored tensors that the loader drops and the model is the same. ``has_vision``
    is set for loaders that build VITA's modules where the config has them. ``fault`` says why a
    model that is loaded to the end fails at its first image, ``audio_fault`` at its first
    recording.
    """

    parts: Mapping[str, PartBinding]
    found: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    stop: Stop | None = None
    has_vision: bool = False
    fault: str = ""
    audio_fault: str = ""

    def part(self, name: str) -> PartBinding:
        """Return the binding of a part; that of one that is not built, if it is neither stored."""
        nothing = PartBinding({}, KeyMismatch((), (), ()), PartSource.NOT_BUILT)
        return self.parts.get(name, nothing)

    @property
    def mismatch(self) -> KeyMismatch:
        """The missing, unexpected and mismatched tensors of all parts."""
        found = [part.mismatch for part in self.parts.values()]
        return KeyMismatch(
            tuple(name for one in found for name in one.missing),
            tuple(name for one in found for name in one.unexpected),
            tuple(entry for one in found for entry in one.mismatched),
        )

    @property
    def integers(self) -> tuple[str, ...]:
        """Tensors that bind, but hold no real numbers."""
        return tuple(name for part in self.parts.values() for name in part.integers)

    @property
    def renamed(self) -> dict[str, str]:
        """The stored names that bind under another one."""
        return {stored: built for stored, built in self.found.items() if stored != built}

    @property
    def is_complete(self) -> bool:
        """Whether every part is the checkpoint's, or rightly its directory's, and nothing is left.

        That a directory is not reachable from here says nothing about the checkpoint.
        """
        stops = self.stop is not None and self.stop.code != _UNREACHABLE
        lacking = (PartSource.RANDOM, PartSource.UNFILLED)
        unfilled = any(part.source in lacking for part in self.parts.values())
        faulty = self.fault or self.audio_fault
        return not (stops or unfilled or self.mismatch or self.integers or faulty)


def bind(
    config: Mapping[str, Any],
    tensors: Tensors,
    surroundings: Surroundings = Surroundings(),
    loader: str = VITA_1_5,
) -> Binding:
    """Bind the tensors of a checkpoint as a loader does; ``loader`` is one of LOADER_NAMES."""
    traits = _LOADERS[loader]
    if traits is None:
        return Binding({}, {name: name for name in tensors})
    stop = stop_of_model(config, is_vita=traits.is_vita)
    wanted: dict[str, Shapes] = {}
    backbone = backbone_of(config)
    if backbone is not None and not wrong_sizes(backbone.language_model, config):
        wanted[parts.LANGUAGE_MODEL] = _language_model(traits, config)
    family = None
    if traits.is_vita:
        family = tower_family(config)
        if traits.looks_around:
            stop = _first(
                stop, stop_of_tower(config, surroundings), stop_of_audio(config, surroundings)
            )
        if builds_audio(config):
            wanted[parts.AUDIO_ENCODER] = _audio(config, tensors, surroundings)
        if family is not None:
            wanted[parts.VISION_TOWER] = _tower(family, tensors, surroundings)
            wanted[parts.MM_PROJECTOR] = {}
            stop = _first(stop, stop_of_projector(config))
            if (projector := built_projector(config)) is not None:
                wanted[parts.MM_PROJECTOR] = {
                    parts.PROJECTOR_PREFIX + name: shape
                    for name, shape in projectors.expected_shapes(projector).items()
                }
    bound = _match(traits, config, tensors, wanted, stop)
    if stop is not None or not traits.looks_around:
        return bound
    fault = ""
    if family is not None:
        fault = _fault(config, _described(family, tensors, surroundings))
    return replace(bound, fault=fault, audio_fault=_audio_fault(config, tensors, surroundings))


def bind_to(wanted: Shapes, tensors: Tensors) -> Binding:
    """Bind tensors to those of a module, by their whole names."""
    return _match(_Loader(), {}, tensors, {parts.VISION_TOWER: wanted}, None)


def is_harmless(name: str) -> bool:
    """Return whether every loader drops a tensor of this name, and the model is the same."""
    return name.endswith(_HARMLESS)


def tower_family(config: Mapping[str, Any]) -> str | None:
    """Return the family of the tower that the config's path chooses; None if none is built."""
    path = config.get("mm_vision_tower")
    return towers.dispatch(path, False).family if isinstance(path, str) else None


def backbone_of(config: Mapping[str, Any]) -> Backbone | None:
    """Return the backbone that ``model_type`` names, with vision or without."""
    model_type = config.get("model_type")
    known = (b for b in BACKBONES.values() if model_type in (b.model_type, b.plain_model_type))
    return next(known, None)


def stop_of_model(config: Mapping[str, Any], *, is_vita: bool = True) -> Stop | None:
    """Return where building the language model stops a loader: its type, its sizes, its values."""
    backbone = backbone_of(config)
    if backbone is None:
        expected = ", ".join(BACKBONES)
        model_type = config.get("model_type")
        return Stop("unknown-model-type", f"model_type {model_type!r} is none of {expected}")
    family = backbone.language_model
    sizes = wrong_sizes(family, config)
    if sizes:
        return Stop("config-type", f"{sizes[0]} is {config.get(sizes[0])!r}, no size")
    for wrong in wrong_language_values(family, config) if is_vita else ():
        return Stop("config-type", f"{wrong.key} is {wrong.got}, not {wrong.expected}")
    return None


def stop_of_tower(config: Mapping[str, Any], surroundings: Surroundings) -> Stop | None:
    """Return where building the tower stops a loader of VITA (UPSTREAM §3, §8)."""
    path = config.get("mm_vision_tower")
    if not isinstance(path, str) or not path:
        return None
    dispatch = towers.dispatch(path, bool(config.get("use_s2")))
    if dispatch.family is None:
        s2 = dispatch.reason.outcome is towers.Outcome.NO_S2
        return Stop("s2-needs-siglip" if s2 else "tower-path-misleads", str(dispatch.reason))
    tower = surroundings.tower
    if tower is None or tower.path is None:
        return _unreachable(path)
    if tower.problem is not None:
        return Stop("tower-directory-unreadable", tower.problem)
    if tower.tower is not None and tower.tower.family != dispatch.family:
        return _stop_of_misled_tower(path, tower.tower.family, dispatch.family)
    return None


def stop_of_audio(config: Mapping[str, Any], surroundings: Surroundings) -> Stop | None:
    """Return where building the audio encoder stops a loader of VITA."""
    if not builds_audio(config):
        path = config.get("mm_audio_encoder")
        wrong = path is not None and not isinstance(path, str)
        return Stop("config-type", f"mm_audio_encoder is {path!r}, no path") if wrong else None
    if config.get("audio_prompt_finetune") and not prompt_rows(config):
        number = config.get("audio_prompt_num")
        return Stop("config-type", f"audio_prompt_num is {number!r}, no number of embeddings")
    path, directory = config["mm_audio_encoder"], surroundings.audio
    if directory is None or directory.path is None:
        return _unreachable(path)
    if directory.missing:
        names = " and no ".join(directory.missing)
        return Stop("audio-files-missing", f"TypeError: no {names} in {path}")
    if directory.settings is None or directory.cmvn is None:
        return Stop("audio-directory-unreadable", directory.problem or "")
    return None


def stop_of_projector(config: Mapping[str, Any]) -> Stop | None:
    """Return where building the projector stops a loader of VITA: its type, its widths."""
    kind = config.get("mm_projector_type", projectors.DEFAULT_TYPE)
    if not isinstance(kind, str) or not projectors.is_known(kind):
        return Stop("unknown-projector-type", f"mm_projector_type {kind!r}")
    if built_projector(config) is None and not projectors.has_no_tensors(kind):
        width = config.get("mm_hidden_size")
        return Stop("hidden-size-mismatch", f"mm_hidden_size {width!r} is no width: it raises")
    return None


def built_projector(config: Mapping[str, Any]) -> Projector | None:
    """Return the projector that a loader builds; None for an unknown type, or without a width."""
    return projectors.of_config({**config, "hidden_size": hidden_size(config)})


def hidden_size(config: Mapping[str, Any]) -> Any:
    """Return the width of the language model that a config describes, or what it says instead."""
    backbone = backbone_of(config)
    if backbone is None:
        return config.get("hidden_size")
    return LANGUAGE_MODELS[backbone.language_model].keys(config)["hidden_size"]


def is_audio(name: str) -> bool:
    """Return whether a tensor belongs to the audio encoder or its adapter."""
    return name.startswith(AUDIO_PREFIX)


def builds_audio(config: Mapping[str, Any]) -> bool:
    """Return whether a loader builds the audio encoder (AUDIO §1 of upstream's facts)."""
    path = config.get("mm_audio_encoder")
    return isinstance(path, str) and bool(path)


def _first(*stops: Stop | None) -> Stop | None:
    """Return the first stop; one for a directory that is not here only if there is no other."""
    found = [stop for stop in stops if stop is not None]
    return next((stop for stop in found if stop.code != _UNREACHABLE), found[0] if found else None)


def _unreachable(path: str) -> Stop | None:
    """Return the stop at a directory that is gone; a name on the hub may be fetched."""
    if looks_like_repository(path):
        return None
    return Stop(_UNREACHABLE, f"{path} is not reachable from here: it raises")


def _stop_of_misled_tower(path: str, own: str, by_path: str) -> Stop | None:
    """Return where the class that a misleading path chooses stops over another family's directory.

    UPSTREAM §8: a family that is a lone file opens the directory as one, two families of the
    library have shapes that do not fit; anything else has no name in common and goes on.
    """
    label = towers.FAMILIES[own].label
    if towers.FAMILIES[by_path].lone_file != towers.FAMILIES[own].lone_file:
        return Stop("tower-path-misleads", f"{path} is {label}: no file of the kind it opens")
    if None not in [towers.FAMILIES[family].transformers_class for family in (own, by_path)]:
        return Stop("tower-path-misleads", f"a size mismatch: {path} is {label}")
    return None


def _language_model(loader: _Loader, config: Mapping[str, Any]) -> Shapes:
    backbone = backbone_of(config)
    if backbone is None:
        return {}
    family = backbone.language_model
    shapes = language_tensors.expected_shapes(family, config)
    # transformers 5 looks its table for Mixtral up by the library's own model_type.
    unfused = loader.is_old or loader.is_vita or config["model_type"] == backbone.plain_model_type
    return shapes if unfused or family != "Mixtral" else _fused(shapes)


def _fused(shapes: Shapes) -> dict[str, Shape]:
    """Return Mixtral's tensors as transformers 5 builds them, the experts of a layer fused."""
    built = {name: shape for name, shape in shapes.items() if _SPARSE not in name}
    for name, shape in shapes.items():
        layer, _, gate = name.partition(_SPARSE)
        if gate == "gate.weight":
            experts, width = shape
            inner = shapes[f"{layer}{_SPARSE}experts.0.w1.weight"][0]
            built[f"{layer}.mlp.gate.weight"] = (experts, width)
            built[f"{layer}.mlp.experts.gate_up_proj"] = (experts, 2 * inner, width)
            built[f"{layer}.mlp.experts.down_proj"] = (experts, width, inner)
    return built


def _tower(family: str, tensors: Tensors, surroundings: Surroundings) -> Shapes:
    """Return the tower's tensors that a loader builds, by the names of the checkpoint.

    The first config that describes a tower of the family decides its sizes; without one, the
    tensors under their exact names do, and then those of a tower under any names, which are all
    missing and all unexpected. Empty where nothing determines them.
    """
    directory = surroundings.tower
    own = directory.tower if directory is not None else None
    if directory is not None and own is not None and own.family != family:
        return _misled_tower(family, directory.config or {})
    traits = towers.FAMILIES[family]
    prefix = parts.TOWER_MODULE + traits.stored_prefix
    for config in surroundings.tower_configs:
        if (shapes := _shapes_of_tower(family, config)) is not None:
            return {prefix + name: shape for name, shape in shapes.items()}
    stored = {name: t.shape for name, t in tensors.items() if name.startswith(parts.TOWER_MODULE)}
    described = config_of_tensors(parts.below(prefix, stored))
    if described is not None and (shapes := _shapes_of_tower(family, described)) is not None:
        return {prefix + name: shape for name, shape in shapes.items()}
    below = parts.below(parts.TOWER_MODULE, stored)
    places = {
        parts.TOWER_MODULE + to: below[name] for name, to in towers.stored_names(below).items()
    }
    return places if any(place not in stored for place in places) else {}


def _shapes_of_tower(family: str, config: Mapping[str, Any]) -> Shapes | None:
    described = towers.family_of_config(config)
    if described is None or described.name != family:
        return None
    try:
        return expected_shapes(config)
    except InputError:
        return None


def _misled_tower(family: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the tensors of a family's tower that is built from another family's config."""
    traits = towers.FAMILIES[family]
    try:
        shapes = traits.expected_shapes(towers.inner_config(config))
    except (InputError, KeyError):
        return {}
    return {
        parts.TOWER_MODULE + traits.stored_prefix + name: shape for name, shape in shapes.items()
    }


def _described(family: str, tensors: Tensors, surroundings: Surroundings) -> Tower | None:
    """Return the tower by its directory, by a carried config, or by the checkpoint's tensors."""
    directory, carried = surroundings.tower, surroundings.carried
    tower = directory.tower if directory is not None else None
    if tower is None and carried is not None:
        tower = towers.tower_of_config(carried)
    if tower is None:
        shapes = {n: t.shape for n, t in tensors.items() if n.startswith(parts.TOWER_MODULE)}
        tower = towers.tower_of_shapes(parts.below(parts.TOWER_MODULE, shapes))
    return tower if tower is not None and tower.family == family else None


def _fault(config: Mapping[str, Any], tower: Tower | None) -> str:
    """Return why tower and projector do not go together, which shows at the first image."""
    if tower is None:
        return ""
    made, taken = tower.output_width(towers.number_of_scales(config)), config.get("mm_hidden_size")
    if made != taken and not projectors.has_no_tensors(config.get("mm_projector_type", "")):
        return f"the tower gives {made} features, the projector takes {taken}"
    if tower.has_odd_grid:
        return f"a grid of {tower.grid} patches: expected {tower.traits.grid_needed}"
    if config.get("use_s2"):
        text = config.get("s2_scales", towers.DEFAULT_S2_SCALES)
        scales = towers.parse_s2_scales(text) if isinstance(text, str) else None
        if scales is None or not towers.fits_s2_scales(tower, scales):
            return f"s2_scales {text!r} are no multiples of {tower.image_size} px"
    kind = config.get("mm_projector_type", projectors.DEFAULT_TYPE)
    tokens = tower.tokens()
    if tokens is not None and projectors.tokens_out(kind, tokens) is None:
        return f"{tokens} tokens are none that a {kind} projector can take"
    return ""


def _match(
    loader: _Loader,
    config: Mapping[str, Any],
    tensors: Tensors,
    wanted: Mapping[str, Shapes],
    stop: Stop | None,
) -> Binding:
    """Match stored tensors with the built ones, part by part."""
    places = {name: shape for shapes in wanted.values() for name, shape in shapes.items()}
    from_directory = loader.tower_last and not config.get("continuous_training")
    tower_is_read = not from_directory or bool(config.get("unfreeze_vision_tower"))
    if not tower_is_read:
        for name in wanted.get(parts.VISION_TOWER, ()):
            del places[name]
    is_base = not any(name.startswith(_BASE_PREFIX) for name in tensors)
    if is_base and stop is None and loader.is_old:
        # 4.41.1 takes names without model. for a base model, which has no head.
        head = next((name for name in tensors if name in places), None)
        if head is not None:
            detail = f"{head} beside names without model.: taken for corrupt"
            stop = Stop("foreign-prefix", detail)
    found, left_out, strange = _place(loader, config, tensors, places, is_base=is_base)
    stored = {place: name for name, place in found.items()}
    bound: dict[str, PartBinding] = {}
    for part, shapes in wanted.items():
        read: Shapes = shapes if part != parts.VISION_TOWER or tower_is_read else {}
        bound[part] = _bind_part(read, tensors, stored, strange.pop(part, []))
    if parts.VISION_TOWER in bound:
        bound[parts.VISION_TOWER] = _tower_bound(bound, wanted, tensors, is_read=tower_is_read)
    if parts.AUDIO_ENCODER in bound:
        bound[parts.AUDIO_ENCODER] = _audio_bound(bound[parts.AUDIO_ENCODER])
    for part, names in strange.items():
        mismatch = KeyMismatch((), tuple(names), ())
        bound[part] = PartBinding({}, mismatch, PartSource.NOT_BUILT)
    return Binding(bound, found, tuple(left_out), stop, loader.is_vita)


def _place(
    loader: _Loader,
    config: Mapping[str, Any],
    tensors: Tensors,
    places: Collection[str],
    *,
    is_base: bool,
) -> tuple[dict[str, str], list[str], dict[str, list[str]]]:
    """Return what binds by its stored name, what is harmless, and what is unexpected by part."""
    found: dict[str, str] = {}
    left_out: list[str] = []
    strange: dict[str, list[str]] = {}
    for name in tensors:
        if name in places:
            found[name] = name
        elif is_base and f"{_BASE_PREFIX}.{name}" in places:
            found[name] = f"{_BASE_PREFIX}.{name}"
        elif _is_left_out(loader, config, name):
            left_out.append(name)
        else:
            strange.setdefault(_part_of(name), []).append(name)
    return found, left_out, strange


def _bind_part(
    wanted: Shapes, tensors: Tensors, stored: Mapping[str, str], unexpected: Iterable[str]
) -> PartBinding:
    missing: list[str] = []
    mismatched: list[tuple[str, Shape, Shape]] = []
    integers: list[str] = []
    for place, shape in wanted.items():
        name = stored.get(place)
        if name is None:
            missing.append(place)
            continue
        tensor = tensors[name]
        if tensor.shape != shape:
            mismatched.append((name, shape, tensor.shape))
        elif not is_real(tensor.dtype) and not name.endswith(COUNTER):
            integers.append(name)
    lacks_all = bool(missing) and len(missing) == len(wanted)
    return PartBinding(
        wanted,
        KeyMismatch(tuple(missing), tuple(unexpected), tuple(mismatched)),
        PartSource.RANDOM if lacks_all else PartSource.CHECKPOINT,
        tuple(integers),
    )


def _tower_bound(
    bound: Mapping[str, PartBinding],
    wanted: Mapping[str, Shapes],
    tensors: Tensors,
    *,
    is_read: bool,
) -> PartBinding:
    """Return the tower's binding with where its values come from: nothing draws them at random."""
    part = bound[parts.VISION_TOWER]
    shapes = wanted[parts.VISION_TOWER]
    if not is_read:
        return PartBinding(shapes, part.mismatch, PartSource.TOWER_DIRECTORY)
    own = shapes or [name for name in tensors if name.startswith(parts.TOWER_MODULE)]
    filled = bool(own) and len(part.mismatch.missing) < len(own)
    source = PartSource.CHECKPOINT if filled else PartSource.UNFILLED
    return PartBinding(shapes, part.mismatch, source, part.integers)


def _audio_shapes(tensors: Tensors) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items() if is_audio(name)}


def _audio(config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings) -> Shapes:
    """Return the audio encoder's tensors by its directory, or by those stored without one.

    Empty where none is stored, and where nothing determines them.
    """
    shapes = _audio_shapes(tensors)
    settings = surroundings.audio.settings if surroundings.audio is not None else None
    return wanted_tensors(config, shapes, settings) if shapes else {}


def _audio_bound(part: PartBinding) -> PartBinding:
    """Return the audio encoder's binding with where its values come from: final.pt's are not read.

    One that nothing determines lacks all of its tensors.
    """
    filled = len(part.mismatch.missing) < len(part.wanted)
    if part.wanted:
        return replace(part, source=PartSource.CHECKPOINT if filled else PartSource.UNFILLED)
    mismatch = replace(part.mismatch, missing=(AUDIO_PREFIX + "*",))
    return replace(part, mismatch=mismatch, source=PartSource.UNFILLED)


def _audio_fault(config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings) -> str:
    """Return why audio encoder and language model do not go together."""
    if not builds_audio(config):
        return ""
    directory = surroundings.audio
    settings = directory.settings if directory is not None else None
    cmvn = directory.cmvn if directory is not None else None
    if settings is not None and cmvn is not None and len(cmvn.mean) != settings.mel_bins:
        return f"global_cmvn is of {len(cmvn.mean)} mel bins, the encoder takes {settings.mel_bins}"
    settings = settings or settings_of_shapes(parts.below(AUDIO_PREFIX, _audio_shapes(tensors)))
    if settings is None or settings.adapter.out_width == (taken := hidden_size(config)):
        return ""
    made = settings.adapter.out_width
    return f"the audio adapter gives {made} features, the language model takes {taken}"


def _is_left_out(loader: _Loader, config: Mapping[str, Any], name: str) -> bool:
    """Return whether the loader drops a tensor without harm."""
    if name == parts.LM_HEAD:
        return loader.gives_module or config.get("tie_word_embeddings") is True
    if name.startswith(_PREDICTOR) and config.get("model_type") == _PREDICTS_STATES:
        return True
    return is_harmless(name)


_PREDICTOR: Final = "predictor_head."


def _part_of(name: str) -> str:
    """Return the part among whose unexpected tensors a name is reported."""
    part = parts.part_of(name)
    if part in (parts.OTHER, parts.LORA):
        return parts.LANGUAGE_MODEL
    return parts.AUDIO_ENCODER if part == parts.AUDIO_ADAPTER else part
