"""Define what a family of vision towers is: everything that distinguishes one from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vita_ckpt.core.anatomy.towers.shapes import Shapes
from vita_ckpt.core.checkpoint import Shape


def _no_options(shapes: Shapes) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Family:
    """A family of vision towers.

    A family whose towers are directories with a ``config.json`` has ``model_types``; one without
    is a lone file of weights, and has ``sizes_of_tensors`` instead.

    ``name`` identifies the family in reports and names its module in ``model.towers``; ``label``
    is what messages call it. ``word`` is what upstream looks for in the lower-cased tower path,
    ``tower_class`` the class that it then builds, ``has_s2`` whether that class has an S2 variant.

    All names of tensors are the transformer's own, without a prefix. A tower is recognised by
    ``patches``, the convolution [width, 3, patch, patch] that cuts an image into patches, by the
    names in ``present``, of which it has all, and by those in ``absent``, of which it has none.
    ``positions`` is the table of positions [..., tokens, width] with ``class_tokens`` rows before
    those of the patches; the number of a layer follows ``layers``. ``stored_prefix`` stands before
    the names below ``model.vision_tower.`` in a VITA checkpoint, ``standalone_prefix`` in a
    directory that transformers 4.41 or upstream loads the tower from.

    ``expected_shapes`` gives every tensor by a config (or by what ``sizes_of_tensors`` returns),
    and raises InputError ``unsupported-tower-config`` where there is no such tower.

    ``model_types`` are the values of ``model_type`` that mean this family, that of a tower
    directory last. ``config_defaults`` are the sizes that a ``config.json`` may leave out;
    ``published`` are the config keys of the published towers by width and layers, for a tower
    without a config; ``options_of_tensors`` reads from a tower's own names and shapes what its
    config says besides sizes.

    ``sizes_of_tensors`` gets a tower's own names and shapes with ``width``, ``layers``,
    ``patch_size`` and ``image_size``, and returns its whole config, or None where one of
    ``sizing_tensors`` is missing. ``config_keys`` are keys that identify such a config.

    ``pixel_shuffle`` is the side of the square of patches that becomes one token, whose features
    are then concatenated. ``processor`` is the image processor that upstream uses, and
    ``library_class`` the tower's class in transformers, None where the library has none.
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
    library_class: str | None = None

    @property
    def lone_file(self) -> bool:
        """Whether ``mm_vision_tower`` names a file of weights, with nothing beside it."""
        return not self.model_types

    @property
    def model_type(self) -> str:
        """The ``model_type`` of a tower directory of a family that is no lone file."""
        return self.model_types[-1]

    @property
    def grid_needed(self) -> str:
        """What the pixel shuffle needs, as an error words it."""
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
    """Return the labels of ``families`` as a sentence lists them: ``A, B or C``."""
    return enumerate_words([family.label for family in families], last)


def enumerate_words(words: list[str], last: str = "or") -> str:
    """Return ``words`` as a sentence lists them: ``a, b or c``."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
