"""Define a family of vision towers by everything that distinguishes it from the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from vita_ckpt.core.anatomy.towers.shapes import Shapes
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass


def _no_options(shapes: Shapes) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Family:
    """A family of vision towers.

    A family whose towers are directories with a ``config.json`` has ``model_types``. A family
    without configs, whose towers are lone weight files, has ``sizes_of_tensors`` instead.

    ``name`` identifies the family in reports and names its module in ``model.towers``; ``label`` is
    its name in messages. ``word`` is the word that upstream looks for in the lower-cased tower
    path, ``tower_class`` the class that it then builds, ``has_s2`` whether that class has an S2
    variant.

    All names of tensors are the transformer's own, without a prefix. A tower is recognised by
    ``patches``, the convolution [width, 3, patch, patch] that cuts an image into patches; it must
    have all names in ``present`` and none of those in ``absent``. ``positions`` is the position
    table [..., tokens, width], with ``class_tokens`` rows before those of the patches. ``layers``
    is the prefix before a layer's number. ``stored_prefix`` is the prefix of the names below
    ``model.vision_tower.`` in a VITA checkpoint, ``standalone_prefix`` the one in a directory from
    which transformers 4.41 or upstream loads the tower.

    ``expected_shapes`` returns every tensor for a config (or for the result of
    ``sizes_of_tensors``). It raises InputError ``unsupported-tower-config`` where there is no such
    tower.

    ``model_types`` are the values of ``model_type`` for this family; the last one is that of a
    tower directory. ``config_defaults`` are the sizes that a ``config.json`` may omit.
    ``published`` holds the config keys of the published towers by width and layers, for a tower
    without a config. ``options_of_tensors`` derives the config's options other than sizes from a
    tower's own names and shapes.

    ``sizes_of_tensors`` gets a tower's own names and shapes with ``width``, ``layers``,
    ``patch_size`` and ``image_size``. It returns the tower's whole config, or None where one of
    ``sizing_tensors`` is missing. ``config_keys`` are keys that identify such a config.

    ``pixel_shuffle`` is the side of the square of patches whose features are concatenated into one
    token. ``processor`` is the image processor that upstream uses, and ``transformers_class`` the
    tower's class in transformers, None where the library has none.
    """

    name: str
    label: str
    word: str
    tower_class: str
    patches: str
    present: tuple[str, ...]
    positions: str
    layers: str
    expected_shapes: Callable[[Mapping[str, Any]], dict[str, Shape]]
    absent: tuple[str, ...] = ()
    class_tokens: int = 0
    stored_prefix: str = "vision_tower."
    standalone_prefix: str = ""
    model_types: tuple[str, ...] = ()
    config_defaults: Mapping[str, int] = field(default_factory=dict)
    published: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    options_of_tensors: Callable[[Shapes], Mapping[str, Any]] = _no_options
    sizes_of_tensors: Callable[[Shapes, Mapping[str, int]], dict[str, Any] | None] | None = None
    sizing_tensors: tuple[str, ...] = ()
    config_keys: tuple[str, ...] = ()
    pixel_shuffle: int = 1
    has_s2: bool = False
    processor: Literal["clip", "siglip"] = "clip"
    transformers_class: str | None = None

    @property
    def lone_file(self) -> bool:
        """Whether ``mm_vision_tower`` names a single weight file without a config."""
        return not self.model_types

    @property
    def model_type(self) -> str:
        """The ``model_type`` of a tower directory; not defined for a lone file."""
        return self.model_types[-1]

    @property
    def grid_needed(self) -> str:
        """The grid that the pixel shuffle needs, as worded in errors."""
        multiple = (
            "an even number"
            if self.pixel_shuffle == 2
            else f"a multiple of {self.pixel_shuffle} as number"
        )
        return f"{multiple} of patches along a side"

    def recognises(self, shapes: Shapes, prefix: str) -> bool:
        """Return whether tensors below ``prefix`` are a tower of this family."""
        return all(prefix + name in shapes for name in (self.patches, *self.present)) and not any(
            prefix + name in shapes for name in self.absent
        )


def listed(families: Iterable[Family], last: str = "or") -> str:
    """Return the labels of ``families``, formatted for a sentence: ``A, B or C``."""
    return enumerate_words([family.label for family in families], last)


def enumerate_words(words: list[str], last: str = "or") -> str:
    """Return ``words``, formatted for a sentence: ``a, b or c``."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
