"""Define a family of multimodal models by everything that distinguishes it from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import Enum
from typing import Any, Final

from vita_ckpt.core.anatomy import towers
from vita_ckpt.core.anatomy.backbones import Backbone
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.projectors import ProjectorType
from vita_ckpt.core.anatomy.tiles import Tiling
from vita_ckpt.core.anatomy.towers.dispatch import Dispatch
from vita_ckpt.core.dataclass import dataclass

Config = Mapping[str, Any]
Exists = Callable[[str], bool]


class TowerSource(Enum):
    """Where the values of the tower come from, once a family's own loader has come to its end."""

    CHECKPOINT = "the checkpoint"
    DIRECTORY = "its directory"
    UNINITIALISED = "uninitialised memory"
    RAISES = "the loader raises"


@dataclass(frozen=True, slots=True)
class Load:
    """What a family's loader finds, as far as it decides which tower wins.

    ``stored`` is whether the checkpoint has tensors of a tower, ``safetensors`` whether its weights
    are in such files. ``name`` is the name of its directory, which some loaders read.
    """

    stored: bool
    safetensors: bool = True
    name: str = ""


@dataclass(frozen=True, slots=True)
class Features:
    """Which hidden states of a tower are its features.

    ``layers`` index the hidden states, of which there is one more than the tower has layers; those
    of several are concatenated along the channels. ``class_token`` is whether it is kept.
    """

    layers: tuple[int, ...] = (-2,)
    class_token: bool = False


class ImageCount(Enum):
    """What a family does with another number of images than a batch has places for."""

    EXACT = "it raises"
    AT_LEAST = "images that are too many are left out, too few raise"
    LAST_AGAIN = "images that are too many are left out, for one that is missing the last is taken"


SIDES: Final = ("left", "right")

# The default of a key without which upstream raises.
REQUIRED: Final = object()


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a family's config: the types of its value beside null, its default, its choices.

    Without ``choices`` any value of its types may be one.
    """

    types: tuple[type, ...]
    default: Any = None
    choices: tuple[str, ...] = ()


def _stored_whole(tower_family: str, config: Config) -> Config:
    return config


def _no_tokens(config: Config) -> tuple[str, ...]:
    return ()


def _never(config: Config) -> bool:
    return False


def _flat(config: Config) -> Tiling:
    return Tiling()


def _nothing(config: Config) -> str | None:
    return None


def _no_fault(config: Config, features: Features) -> str:
    return ""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModelFamily:
    """A family of multimodal models: a tower, a projector and a language model under one class.

    ``name`` identifies the family in reports, ``label`` in messages. ``backbones`` are its model
    classes. ``keys`` are the keys of its config beside those of the language model. ``own_keys``
    tell it from a family of the same model types, and where there is none of them a value that only
    this family knows, which ``own_value`` returns in words.

    ``dispatch`` returns the tower class that is built for a config; it is given a function that
    says whether a path exists where the loader runs. ``tower_source`` returns which tower wins.
    ``unfreeze_key`` is the key that says that the tower was trained. ``stored_tower`` returns, for
    a tower's own config, that of the tower as the family builds and stores it.

    ``projector_types`` are the types that are built, ``default_projector`` the one without a key.
    ``s2_key`` is the key that asks for S2, ``default_s2_scales`` the scales without a key,
    ``s2_towers`` names the families of towers that have it.
    ``features`` returns which features of a tower are taken, None where that raises; it is given
    the tower's family and the number of hidden states of the tower as it is built. It is None where
    the tower's own class decides it. ``tiling`` returns how images become tiles and their features
    those of an image, ``has_newline`` whether the model has an ``image_newline``, ``added_tokens``
    the tokens that the loader adds. ``image_count`` says what becomes of too many and too few
    images. ``own_sizes`` maps the families of towers whose images are prepared by constants,
    whatever the tower's directory says, to the size in pixels that is one of them.

    ``unscaled`` names the language models whose rotary scaling the family's classes leave out.
    ``dropped`` are prefixes of tensors that the loader drops, or that never reach the output, where
    nothing else binds them. ``fault`` returns why keys that do not go together make the first image
    fail, empty if they do. ``tiles`` says how a picture becomes several tiles, None if it does not.
    ``loaders`` are the names of its loaders in ``explain``, the one that judges first, and
    ``runs_on`` is the library that they run on. ``refused_run`` says why the loader raises over a
    projector run of a config, None if it does not. ``has_audio`` says whether there are audio
    modules.
    """

    name: str
    label: str
    backbones: tuple[Backbone, ...]
    dispatch: Callable[[Config, Exists], Dispatch]
    tower_source: Callable[[Config, Load], TowerSource]
    projector_types: tuple[ProjectorType, ...]
    default_projector: str
    unfreeze_key: str
    s2_key: str
    default_s2_scales: str
    s2_towers: tuple[str, ...]
    keys: Mapping[str, Key]
    loaders: tuple[str, ...]
    runs_on: str
    features: Callable[[Config, str, int], Features | None] | None = None
    own_keys: tuple[str, ...] = ()
    own_value: Callable[[Config], str | None] = _nothing
    stored_tower: Callable[[str, Config], Config] = _stored_whole
    has_newline: Callable[[Config], bool] = _never
    added_tokens: Callable[[Config], tuple[str, ...]] = _no_tokens
    tiling: Callable[[Config], Tiling] = _flat
    image_count: ImageCount = ImageCount.AT_LEAST
    own_sizes: Mapping[str, int] = field(default_factory=dict)
    unscaled: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    fault: Callable[[Config, Features], str] = _no_fault
    refused_run: Callable[[Config], str | None] = _nothing
    tiles: Callable[[Config], str | None] = _nothing
    has_audio: bool = False

    @property
    def reads_tower_again(self) -> bool:
        """Whether a trained tower is read again, from every safetensors file of the directory."""
        return self.unfreeze_key == "unfreeze_vision_tower"

    def backbone(self, config: Config) -> Backbone | None:
        """Return the backbone that a config's ``model_type`` names; None if it names none."""
        return self.by_type.get(str(config.get("model_type")))

    @property
    def by_type(self) -> dict[str, Backbone]:
        """The backbones by their ``model_type``."""
        return {backbone.model_type: backbone for backbone in self.backbones}

    def backbone_on(self, plain_model_type: Any) -> Backbone | None:
        """Return the first backbone on a plain language model; None if there is none."""
        plain = of_plain_type(plain_model_type)
        if plain is None:
            return None
        return next((b for b in self.backbones if b.language_model == plain.name), None)

    def projector_type(self, config: Config) -> Any:
        """Return the value of ``mm_projector_type``, with the family's default."""
        return config.get("mm_projector_type", self.default_projector)

    def uses_s2(self, config: Config) -> bool:
        """Return whether a config asks for S2."""
        return bool(config.get(self.s2_key))

    def s2_scales(self, config: Config) -> tuple[int, ...] | None:
        """Return the scales at which the tower runs: one without S2 is none, None if invalid."""
        if not self.uses_s2(config):
            return ()
        text = config.get("s2_scales", self.default_s2_scales)
        return towers.parse_s2_scales(text) if isinstance(text, str) else None

    def number_of_scales(self, config: Config) -> int:
        """Return the number of S2 scales that a config asks for: 1 without S2."""
        return len(self.s2_scales(config) or ()) or 1

    def reads_processor(self, tower: str) -> bool:
        """Return whether its loader reads the image processor in the directory of such a tower."""
        return tower not in self.own_sizes and not towers.FAMILIES[tower].lone_file

    def whole_tower(self, shapes: towers.Shapes) -> Config | None:
        """Return the config of a published tower of which these tensors are what is stored.

        None where it is stored whole, or is not a published one.
        """
        found = towers.tower_of_shapes(shapes)
        if found is None:
            return None
        size = self.own_sizes.get(found.family, 0)
        same = found.patch_size and size // found.patch_size == found.grid
        own = {"patch_size": found.patch_size, "image_size": size if same else found.image_size}
        for (width, layers), keys in found.traits.published.items():
            whole = {"hidden_size": width, "num_hidden_layers": layers, **own, **keys}
            stored = self.stored_tower(found.family, whole)
            sizes = stored["hidden_size"], stored["num_hidden_layers"]
            if stored is not whole and sizes == (found.width, found.layers):
                return {"model_type": found.traits.model_type, **whole}
        return None
