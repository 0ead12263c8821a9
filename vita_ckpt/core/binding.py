"""Bind a checkpoint's tensors to what a loader builds: strictly, by whole names.

The names and shapes follow from the config, the tower's own config and the tables of the anatomy
(UPSTREAM §1, §3, §4, §8). Nothing is recognised by guess here: a prefix too many makes a tensor
unexpected, and the one it should be missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
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
from vita_ckpt.core.anatomy.config_values import (
    wrong_language_values,
    wrong_sizes,
    wrong_tower_values,
    wrong_vision_values,
)
from vita_ckpt.core.anatomy.families import (
    FAMILIES,
    VITA,
    Features,
    Load,
    ModelFamily,
    TowerSource,
    family_of,
)
from vita_ckpt.core.anatomy.language_tensors import (
    LANGUAGE_MODELS,
    LanguageModel,
    of_plain_type,
)
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.towers.tensors import config_of_tensors, expected_shapes
from vita_ckpt.core.anatomy.towers.tower import Tower, TowerDirectory
from vita_ckpt.core.checkpoint import Shape, Tensor
from vita_ckpt.core.dataclass import dataclass
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

    ``family`` is the family whose tower, projector and audio encoder it builds, None if none,
    ``looks_around`` opens their directories for it, ``tower_last`` fills the tower from its
    directory after the checkpoint is read, ``is_old`` is transformers before 5, ``gives_module``
    has the caller build the model.
    """

    family: ModelFamily | None = None
    looks_around: bool = False
    tower_last: bool = False
    is_old: bool = False
    gives_module: bool = False

    @property
    def is_vita(self) -> bool:
        """Whether it is one of VITA's."""
        return self.family is VITA


# By the names of ``explain --loader``; the one that only reads headers builds nothing.
_LOADERS: Final[Mapping[str, _Loader | None]] = {
    VITA_1_5: _Loader(VITA, looks_around=True, is_old=True),
    VITA_1_0: _Loader(VITA, looks_around=True, tower_last=True, is_old=True),
    TRANSFORMERS_4_41: _Loader(is_old=True),
    TRANSFORMERS_5_6: _Loader(),
    **{
        name: _Loader(family, looks_around=True, is_old=True)
        for family in FAMILIES.values()
        if family is not VITA
        for name in family.loaders
    },
    HUB_MODEL: _Loader(VITA, gives_module=True),
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
    checkpoint or is given for it, ``audio`` what ``mm_audio_encoder`` leads to. ``path_exists`` is
    whether ``mm_vision_tower`` is a path that exists, by default whether there is a ``tower``: one
    that is given may stand in for what does not. ``safetensors`` is whether the weights are in such
    files, ``name`` the name of their directory, which some loaders read. ``processor`` is the
    tower's ``preprocessor_config.json``.
    """

    tower: TowerDirectory | None = None
    carried: Mapping[str, Any] | None = None
    audio: AudioDirectory | None = None
    path_exists: bool | None = None
    safetensors: bool = True
    name: str = ""
    processor: Mapping[str, Any] | None = None

    def exists(self, path: str) -> bool:
        """Return whether the path of the tower exists here."""
        if self.path_exists is not None:
            return self.path_exists
        return self.tower is not None and self.tower.path is not None

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
    is set for loaders that build the modules of ``family`` where the config has them. ``fault``
    says why a model that is loaded to the end fails at its first image, ``audio_fault`` at its
    first recording. ``contradiction`` says what in the config contradicts the model that is built.
    """

    parts: Mapping[str, PartBinding]
    found: Mapping[str, str]
    left_out: tuple[str, ...] = ()
    stop: Stop | None = None
    has_vision: bool = False
    fault: str = ""
    audio_fault: str = ""
    family: ModelFamily | None = None
    contradiction: str = ""

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
    loader: str | None = None,
) -> Binding:
    """Bind the tensors of a checkpoint as a loader does.

    ``loader`` is one of LOADER_NAMES, by default the one that judges such a checkpoint.
    """
    traits = _LOADERS[loader or judge_of(config, tensors)]
    if traits is None:
        return Binding({}, {name: name for name in tensors})
    family = traits.family
    stop = stop_of_model(config, family)
    wanted: dict[str, Shapes] = {}
    language = language_model_of(config, family)
    if language is not None and not wrong_sizes(language.name, config):
        wanted[parts.LANGUAGE_MODEL] = _language_model(traits, language, config)
    if family is None:
        return _match(traits, config, tensors, wanted, stop)
    tower = tower_family(config, surroundings, family)
    source = _tower_source(traits, config, tensors, surroundings)
    if traits.looks_around:
        stop = _first(
            stop,
            stop_of_tower(config, surroundings, family),
            stop_of_audio(config, surroundings) if family.has_audio else None,
        )
    if family.has_audio and builds_audio(config):
        wanted[parts.AUDIO_ENCODER] = _audio(config, tensors, surroundings)
    if tower is not None:
        if source is TowerSource.RAISES:
            stop = _first(stop, _stop_of_reading_again(config, tensors, family))
        wanted[parts.VISION_TOWER] = _tower(tower, tensors, surroundings, family)
        wanted[parts.MM_PROJECTOR] = {}
        stop = _first(stop, stop_of_projector(config, family))
        if (projector := built_projector(config, family)) is not None:
            wanted[parts.MM_PROJECTOR] = {
                parts.PROJECTOR_PREFIX + name: shape
                for name, shape in projectors.expected_shapes(projector).items()
            }
        width = hidden_size(config, family)
        if family.has_newline(config) and type(width) is int:
            wanted[parts.IMAGE_NEWLINE] = {parts.NEWLINE: (width,)}
    unread = _unread(tower, tensors, surroundings, source, family)
    bound = _match(traits, config, tensors, wanted, stop, source, unread)
    if stop is not None or not traits.looks_around:
        return bound
    fault = ""
    if tower is not None:
        fault = _fault(config, _described(tower, tensors, surroundings), surroundings, family)
    audio_fault = _audio_fault(config, tensors, surroundings) if family.has_audio else ""
    return replace(
        bound,
        fault=fault,
        audio_fault=audio_fault,
        contradiction=contradiction_of(config, family),
    )


def contradiction_of(config: Mapping[str, Any], family: ModelFamily) -> str:
    """Return what in the config names another class than the family's; empty if nothing does."""
    backbone, said = family.backbone(config), config.get("architectures")
    if backbone is None and "mm_vision_tower" in config:
        return f"expected {', '.join(family.by_type)}, got model_type {config.get('model_type')!r}"
    if backbone is None or not said or said == [backbone.architecture]:
        return ""
    return f"expected ['{backbone.architecture}'], got {said!r}"


def judge_of(config: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """Return the loader whose binding judges a model: its family's own, by default VITA's.

    A plain language model that VITA has no class for is judged by plain transformers.
    """
    family = family_of(config, names)
    if family is not None:
        return family.loaders[0]
    model_type = config.get("model_type")
    is_plain = of_plain_type(model_type) is not None and "mm_vision_tower" not in config
    return TRANSFORMERS_4_41 if is_plain and VITA.backbone_on(model_type) is None else VITA_1_5


def bind_to(wanted: Shapes, tensors: Tensors) -> Binding:
    """Bind tensors to those of a module, by their whole names."""
    return _match(_Loader(), {}, tensors, {parts.VISION_TOWER: wanted}, None)


def model_name(root: str) -> str:
    """Return the name by which upstream's loaders know a directory; of a step the run's with it."""
    *_, parent, own = ("", *root.rstrip("/").split("/"))
    return f"{parent}_{own}" if own.startswith("checkpoint-") else own


def is_harmless(name: str) -> bool:
    """Return whether every loader drops a tensor of this name, and the model is the same."""
    return name.endswith(_HARMLESS)


def tower_family(
    config: Mapping[str, Any],
    surroundings: Surroundings = Surroundings(),
    family: ModelFamily | None = None,
) -> str | None:
    """Return the family of the tower that the config's path chooses; None if none is built."""
    dispatch = tower_class(config, surroundings, family)
    return None if dispatch is None else dispatch.family


def tower_class(
    config: Mapping[str, Any], surroundings: Surroundings, family: ModelFamily | None = None
) -> towers.Dispatch | None:
    """Return the tower class that the path of the config chooses; None if it has no path.

    Where only the existence of a path chooses, one that is not here is taken to exist where the
    loader runs, unless it is the name of another tower on the hub.
    """
    path = config.get("mm_vision_tower")
    if not isinstance(path, str) or not path:
        return None
    family = family or family_of(config) or VITA
    found = family.dispatch(config, surroundings.exists)
    if found.reason.outcome is not towers.Outcome.NO_RULE or _names_another_tower(path):
        return found
    return family.dispatch(config, lambda _: True)


def _names_another_tower(path: str) -> bool:
    """Return whether a path that is not here is the hub's name of a tower other than CLIP."""
    word = towers.dispatch(path, False).family
    return looks_like_repository(path) and word not in (None, "clip")


def backbone_of(config: Mapping[str, Any]) -> Backbone | None:
    """Return VITA's backbone that ``model_type`` names, with vision or without."""
    model_type = config.get("model_type")
    known = (b for b in BACKBONES.values() if model_type in (b.model_type, b.plain_model_type))
    return next(known, None)


def language_model_of(
    config: Mapping[str, Any], family: ModelFamily | None = None
) -> LanguageModel | None:
    """Return the language model that ``model_type`` names, with vision or without.

    A loader of a ``family`` knows its own model types and those of the plain models below; without
    one, those of every family count.
    """
    model_type = config.get("model_type")
    for one in FAMILIES.values() if family is None else (family,):
        if (backbone := one.backbone(config)) is not None:
            return LANGUAGE_MODELS[backbone.language_model]
    plain = of_plain_type(model_type)
    return plain if family is None or family.backbone_on(model_type) is not None else None


def is_tied(config: Mapping[str, Any]) -> bool:
    """Return whether a config ties the head to the embeddings, by its key or the default."""
    language = language_model_of(config)
    if language is None:
        return config.get("tie_word_embeddings") is True
    return language.is_tied(config)


def stop_of_model(config: Mapping[str, Any], family: ModelFamily | None = VITA) -> Stop | None:
    """Return where building the language model stops a loader: its type, its sizes, its values."""
    language = language_model_of(config, family)
    if language is None:
        types = [b.model_type for f in ([family] if family else [VITA]) for b in f.backbones]
        model_type = config.get("model_type")
        expected = ", ".join(types)
        return Stop("unknown-model-type", f"model_type {model_type!r} is none of {expected}")
    sizes = wrong_sizes(language.name, config)
    if sizes:
        return Stop("config-type", f"{sizes[0]} is {config.get(sizes[0])!r}, no size")
    if family is None:
        return None
    beyond = (*wrong_language_values(language.name, config), *wrong_vision_values(family, config))
    for wrong in beyond:
        return Stop("config-type", f"{wrong.key} is {wrong.got}, not {wrong.expected}")
    return None


def takes_directory(
    config: Mapping[str, Any],
    tensors: Tensors,
    surroundings: Surroundings,
    loader: str | None = None,
) -> bool:
    """Return whether the loader ends with the tower of its directory, whatever is stored."""
    traits = _LOADERS[loader or judge_of(config, tensors)]
    source = None if traits is None else _tower_source(traits, config, tensors, surroundings)
    return source is TowerSource.DIRECTORY


def stop_of_tower(
    config: Mapping[str, Any], surroundings: Surroundings, family: ModelFamily = VITA
) -> Stop | None:
    """Return where building the tower stops a family's loader (UPSTREAM §3, §8)."""
    path = config.get("mm_vision_tower")
    dispatch = tower_class(config, surroundings, family)
    if not isinstance(path, str) or dispatch is None:
        return None
    if dispatch.family is None:
        s2 = dispatch.reason.outcome is towers.Outcome.NO_S2
        return Stop("s2-needs-siglip" if s2 else "tower-path-misleads", str(dispatch.reason))
    if "mm_vision_select_layer" in family.keys and "mm_vision_select_layer" not in config:
        return Stop("config-type", "AttributeError: the config has no mm_vision_select_layer")
    return _stop_of_directory(path, surroundings.tower, dispatch.family, family)


def _stop_of_directory(
    path: str, tower: TowerDirectory | None, built: str, family: ModelFamily
) -> Stop | None:
    if tower is None or tower.path is None:
        return _unreachable(path)
    problem = tower.problem
    lone = towers.FAMILIES[built].lone_file
    if tower.config is None and not (lone or (tower.tower and tower.tower.traits.lone_file)):
        problem = problem or f"{tower.path} has no config.json: it raises"
    if problem is not None:
        return Stop("tower-directory-unreadable", problem)
    for wrong in wrong_tower_values(tower.config or {}):
        return Stop("config-type", f"{wrong.key} of the tower is {wrong.got}, not {wrong.expected}")
    if tower.tower is not None and tower.tower.family != built and family is VITA:
        return _stop_of_misled_tower(path, tower.tower.family, built)
    return None


def _stop_of_reading_again(
    config: Mapping[str, Any], tensors: Tensors, family: ModelFamily
) -> Stop | None:
    """Return where a loader stops that reads a trained tower again, or too early."""
    everything = Load(stored=True, safetensors=True)
    if family.tower_source(config, everything) is TowerSource.RAISES:
        key = f"{family.unfreeze_key} with {family.s2_key}"
        return Stop("tower-not-loadable", f"AttributeError: {key}: the class is not ready for it")
    if not any(name.startswith(parts.TOWER_MODULE) for name in tensors):
        detail = f"{family.unfreeze_key} is set: RuntimeError, its tensors are in no file"
        return Stop("tower-absent", detail)
    detail = f"{family.unfreeze_key} is set: RuntimeError, it is read from *.safetensors files only"
    return Stop("tower-not-loadable", detail)


def stop_of_audio(config: Mapping[str, Any], surroundings: Surroundings) -> Stop | None:
    """Return where building the audio encoder stops a loader of VITA."""
    if not builds_audio(config):
        return None
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


def stop_of_projector(config: Mapping[str, Any], family: ModelFamily = VITA) -> Stop | None:
    """Return where building the projector stops a family's loader: its type, its widths."""
    kind = family.projector_type(config)
    if not isinstance(kind, str) or not projectors.is_known(kind, family.projector_types):
        return Stop("unknown-projector-type", f"mm_projector_type {kind!r}")
    if built_projector(config, family) is None and not projectors.has_no_tensors(kind):
        width = config.get("mm_hidden_size")
        return Stop("hidden-size-mismatch", f"mm_hidden_size {width!r} is no width: it raises")
    return None


def built_projector(
    config: Mapping[str, Any], family: ModelFamily | None = None
) -> Projector | None:
    """Return the projector that a loader builds; None for an unknown type, or without a width."""
    family = family or family_of(config) or VITA
    kind = family.projector_type(config)
    own = {**config, "mm_projector_type": kind, "hidden_size": hidden_size(config, family)}
    return projectors.of_config(own, family.projector_types)


def hidden_size(config: Mapping[str, Any], family: ModelFamily | None = None) -> Any:
    """Return the width of the language model that a config describes, or what it says instead."""
    language = language_model_of(config, family)
    default = None if language is None else language.defaults["hidden_size"]
    return config.get("hidden_size", default)


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


def _language_model(loader: _Loader, model: LanguageModel, config: Mapping[str, Any]) -> Shapes:
    shapes = language_tensors.expected_shapes(model.name, config)
    # transformers 5 looks its table for Mixtral up by the library's own model_type.
    unfused = loader.is_old or loader.is_vita or config["model_type"] == model.model_type
    return shapes if unfused or model.name != "Mixtral" else _fused(shapes)


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


def _tower_source(
    loader: _Loader, config: Mapping[str, Any], tensors: Tensors, surroundings: Surroundings
) -> TowerSource:
    """Return which tower a loader of a family ends with."""
    family = loader.family or VITA
    if loader.tower_last:  # UPSTREAM §8
        read = config.get("continuous_training") or config.get("unfreeze_vision_tower")
        return TowerSource.CHECKPOINT if read else TowerSource.DIRECTORY
    stored = any(name.startswith(parts.TOWER_MODULE) for name in tensors)
    load = Load(stored, surroundings.safetensors, surroundings.name)
    return family.tower_source(config, load)


def _unread(
    tower: str | None,
    tensors: Tensors,
    surroundings: Surroundings,
    source: TowerSource,
    family: ModelFamily,
) -> tuple[str, ...]:
    """Return stored tensors of a tower that a family's loader does not read, without harm.

    Of VITA's loaders the one that reads the directory's tower says that they are too many.
    """
    if family is VITA or tower is None:
        return ()
    own = [name for name in tensors if name.startswith(parts.TOWER_MODULE)]
    if source is TowerSource.DIRECTORY:
        return tuple(own)
    prefix = parts.TOWER_MODULE + towers.FAMILIES[tower].stored_prefix
    shapes = parts.below(prefix, {name: tensors[name].shape for name in own})
    configs = (*surroundings.tower_configs, config_of_tensors(shapes))
    config = next(filter(None, configs), None)
    whole = _shapes_of_tower(tower, config) if config is not None else None
    if whole is None:
        return ()
    built = _tower(tower, tensors, surroundings, family)
    cut = [prefix + name for name in whole if prefix + name not in built]
    return tuple(name for name in cut if name in tensors)


def _tower(tower: str, tensors: Tensors, surroundings: Surroundings, family: ModelFamily) -> Shapes:
    """Return the tower's tensors that a loader builds, by the names of the checkpoint.

    The first config that describes a tower of the chosen family decides its sizes; without one, the
    tensors under their exact names do, and then those of a tower under any names, which are all
    missing and all unexpected. Empty where nothing determines them.
    """
    directory = surroundings.tower
    own = directory.tower if directory is not None else None
    if directory is not None and own is not None and own.family != tower:
        return _misled_tower(tower, directory.config or {})
    traits = towers.FAMILIES[tower]
    prefix = parts.TOWER_MODULE + traits.stored_prefix
    for config in surroundings.tower_configs:
        if (shapes := _shapes_of_tower(tower, config, family)) is not None:
            return {prefix + name: shape for name, shape in shapes.items()}
    stored = {name: t.shape for name, t in tensors.items() if name.startswith(parts.TOWER_MODULE)}
    built = _built_config(tower, parts.below(prefix, stored), family)
    if built is not None and (shapes := _shapes_of_tower(tower, built)) is not None:
        return {prefix + name: shape for name, shape in shapes.items()}
    below = parts.below(parts.TOWER_MODULE, stored)
    places = {
        parts.TOWER_MODULE + to: below[name] for name, to in towers.stored_names(below).items()
    }
    return places if any(place not in stored for place in places) else {}


def _shapes_of_tower(
    tower: str, config: Mapping[str, Any], family: ModelFamily = VITA
) -> Shapes | None:
    described = towers.family_of_config(config)
    if described is None or described.name != tower:
        return None
    try:
        return expected_shapes(family.stored_tower(tower, config))
    except InputError:
        return None


def _built_config(tower: str, shapes: Shapes, family: ModelFamily) -> Mapping[str, Any] | None:
    """Return the config of a stored tower as it is built; what a family cuts off may be stored."""
    described = config_of_tensors(shapes)
    if described is None or towers.family_of_config(described) is not towers.FAMILIES[tower]:
        return described
    built = family.stored_tower(tower, described)
    is_published = towers.config_of_shapes(shapes) is not None
    if built is described or is_published:
        return built
    # How many layers there were is not known: what is stored is taken for what is left.
    return {**built, "num_hidden_layers": described["num_hidden_layers"]}


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


def _described(name: str, tensors: Tensors, surroundings: Surroundings) -> Tower | None:
    """Return the tower by its directory, by a carried config, or by the checkpoint's tensors."""
    directory, carried = surroundings.tower, surroundings.carried
    tower = directory.tower if directory is not None else None
    if tower is None and carried is not None:
        tower = towers.tower_of_config(carried)
    if tower is None:
        shapes = {n: t.shape for n, t in tensors.items() if n.startswith(parts.TOWER_MODULE)}
        tower = towers.tower_of_shapes(parts.below(parts.TOWER_MODULE, shapes))
    return tower if tower is not None and tower.family == name else None


def _fault(
    config: Mapping[str, Any],
    tower: Tower | None,
    surroundings: Surroundings,
    family: ModelFamily,
) -> str:
    """Return why tower and projector do not go together, which shows at the first image."""
    own = surroundings.tower.tower if surroundings.tower is not None else None
    if tower is not None:
        found = next(_faults(config, tower, family), "")
        size = unfit_image_size(surroundings.processor, tower, config, family)
        if not found and size is not None:
            return f"images of {size} px, where the tower takes {tower.image_size} px"
        return found
    if own is None or family is VITA:
        return ""
    built = towers.FAMILIES[str(tower_family(config, surroundings, family))]
    return f"IndexError: {own.traits.label} is built as {built.label}"


def _faults(config: Mapping[str, Any], tower: Tower, family: ModelFamily) -> Iterator[str]:
    kind = family.projector_type(config)
    features = features_of(config, tower, family)
    if features is None:
        word = config.get("mm_vision_select_feature", "patch")
        layer = config.get("mm_vision_select_layer")
        yield f"the tower has no features {word!r} of layer {layer!r}"
        return
    made = tower.output_width(family.number_of_scales(config)) * len(features.layers)
    has_none = projectors.has_no_tensors(kind if isinstance(kind, str) else "")
    taken = config.get("mm_hidden_size")
    if made != taken and not has_none:
        yield f"the tower gives {made} features, the projector takes {taken}"
    if has_none and family is not VITA and made != hidden_size(config, family):
        yield f"the tower gives {made} features, and no projector changes their number"
    if tower.has_odd_grid:
        yield f"a grid of {tower.grid} patches: expected {tower.traits.grid_needed}"
    if family.uses_s2(config):
        scales = family.s2_scales(config)
        if not scales or not towers.fits_s2_scales(tower, scales):
            text = config.get("s2_scales", family.default_s2_scales)
            yield f"s2_scales {text!r} are no multiples of {tower.image_size} px"
    tokens = tower.tokens()
    if tokens is not None and projectors.tokens_out(kind, tokens + features.class_token) is None:
        yield f"{tokens} tokens are none that a {kind} projector can take"
    if fault := family.fault(config, features):
        yield fault


def unfit_image_size(
    processor: Mapping[str, Any] | None,
    tower: Tower,
    config: Mapping[str, Any],
    family: ModelFamily,
) -> int | None:
    """Return the size in pixels of the images that a processor makes, if it is not the tower's.

    Pixels beyond the last whole patch make no difference. With S2 upstream sets the largest scale
    itself.
    """
    size = _image_size(processor or {})
    if size is None or tower.image_size is None or tower.family in family.own_sizes:
        return None
    patch = tower.patch_size or 1
    if size // patch == tower.image_size // patch or size in (family.s2_scales(config) or ()):
        return None
    return size


def _image_size(processor: Mapping[str, Any]) -> int | None:
    """Return the side in pixels of the images that a processor makes; None if not specified."""
    crops = processor.get("do_center_crop") is not False and "crop_size" in processor
    size = processor.get("crop_size" if crops else "size")
    if isinstance(size, Mapping):
        sides = [size.get(key) for key in ("height", "width", "shortest_edge") if key in size]
        size = sides[0] if sides and all(side == sides[0] for side in sides) else None
    return size if type(size) is int else None


def features_of(config: Mapping[str, Any], tower: Tower, family: ModelFamily) -> Features | None:
    """Return which features of a tower a model of the family takes; None where that raises."""
    if family.features is None:
        return Features()
    states = (tower.layers or 0) + 1
    return family.features(config, tower.family, states)


def _match(
    loader: _Loader,
    config: Mapping[str, Any],
    tensors: Tensors,
    wanted: Mapping[str, Shapes],
    stop: Stop | None,
    source: TowerSource = TowerSource.CHECKPOINT,
    unread: Collection[str] = (),
) -> Binding:
    """Match stored tensors with the built ones, part by part."""
    places = {name: shape for shapes in wanted.values() for name, shape in shapes.items()}
    tower_is_read = source is not TowerSource.DIRECTORY
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
    rest = {n: t for n, t in tensors.items() if n not in unread} if unread else tensors
    found, left_out, strange = _place(loader, config, rest, places, is_base=is_base)
    left_out += unread
    stored = {place: name for name, place in found.items()}
    bound: dict[str, PartBinding] = {}
    for part, shapes in wanted.items():
        read: Shapes = shapes if part != parts.VISION_TOWER or tower_is_read else {}
        bound[part] = _bind_part(read, tensors, stored, strange.pop(part, []))
    if parts.VISION_TOWER in bound:
        bound[parts.VISION_TOWER] = _tower_bound(bound, wanted, tensors, is_read=tower_is_read)
    if parts.AUDIO_ENCODER in bound:
        bound[parts.AUDIO_ENCODER] = _audio_bound(bound[parts.AUDIO_ENCODER])
    if parts.IMAGE_NEWLINE in bound and bound[parts.IMAGE_NEWLINE].mismatch.missing:
        newline = replace(bound[parts.IMAGE_NEWLINE], source=PartSource.UNFILLED)
        bound[parts.IMAGE_NEWLINE] = newline
    for part, names in strange.items():
        mismatch = KeyMismatch((), tuple(names), ())
        bound[part] = PartBinding({}, mismatch, PartSource.NOT_BUILT)
    return Binding(
        bound, found, tuple(left_out), stop, loader.family is not None, family=loader.family
    )


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
        return loader.gives_module or is_tied(config)
    if name.startswith(_PREDICTOR) and config.get("model_type") == _PREDICTS_STATES:
        return True
    if loader.family is not None and name.startswith(loader.family.dropped or _NOTHING):
        return True
    return is_harmless(name)


# No name starts with it.
_NOTHING: Final = "\0"


_PREDICTOR: Final = "predictor_head."


def _part_of(name: str) -> str:
    """Return the part among whose unexpected tensors a name is reported."""
    part = parts.part_of(name)
    if part in (parts.OTHER, parts.LORA):
        return parts.LANGUAGE_MODEL
    return parts.AUDIO_ENCODER if part == parts.AUDIO_ADAPTER else part
