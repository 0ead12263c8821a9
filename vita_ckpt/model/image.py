"""Prepare an image file for a tower as CLIP's and SigLIP's processors do, with PIL."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vita_ckpt.core.anatomy import tiles, towers
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.filenames import PROCESSOR
from vita_ckpt.core.requirements import family_of_model
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.model.load import StrPath, tower_config
from vita_ckpt.model.towers.build import tower_of
from vita_ckpt.model.weights import on_meta
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.surroundings import look_around
from vita_ckpt.storage.reading.tower import read_processor
from vita_ckpt.storage.stores.local import opened

# Only some of PIL's formats: some of its readers start other programs.
_FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# The errors that PIL's readers raise for a damaged file.
_DAMAGED: Final = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
# The most pixels of an image at any stage of its preparation: PIL's own limit for opening.
_LARGEST: Final = 178_956_970

# Defaults of the library's processors for keys that a config omits.
_CLIP_DEFAULTS: Final[dict[str, Any]] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP_DEFAULTS: Final[dict[str, Any]] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@dataclass(frozen=True)
class Processor:
    """The steps that turn an image into pixels, in this order; None means that a step is skipped.

    ``pad`` makes the image square with the mean colour. ``resize`` is a shortest edge or (height,
    width) in pixels, ``resample`` the number of a PIL filter, ``crop`` the (height, width) around
    the centre. Then values are multiplied by ``factor``, and ``mean`` and ``std`` normalise each
    channel.
    """

    pad: bool
    resize: int | tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, family: str, config: Mapping[str, Any], *, pad: bool = False) -> Processor:
        """Return the processor of a family with the keys of a ``preprocessor_config.json``.

        As upstream does, the family decides whether it is CLIP's or SigLIP's. ``pad`` corresponds
        to ``image_aspect_ratio: pad``. Raises InputError ``unsupported-processor-config``.
        """
        is_siglip = towers.FAMILIES[family].processor == "siglip"
        keys = dict(_SIGLIP_DEFAULTS if is_siglip else _CLIP_DEFAULTS)
        keys |= {key: config[key] for key in keys if config.get(key) is not None}
        if is_siglip:  # its processor does not crop
            keys["do_center_crop"] = False
        for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if type(keys[key]) is not bool:
                raise _unsupported(key, "true or false", keys[key])
        if type(keys["resample"]) is not int or keys["resample"] not in range(6):
            raise _unsupported("resample", "the number of one of PIL's filters", keys["resample"])
        (factor,) = _numbers("rescale_factor", [keys["rescale_factor"]], 1)
        std = _numbers("image_std", keys["image_std"], 3)
        if not all(std):
            raise _unsupported("image_std", "no zero", std)
        size = _size("size", keys["size"])
        crop = _both("crop_size", keys["crop_size"])
        return cls(
            pad=pad,
            resize=size if keys["do_resize"] else None,
            resample=keys["resample"],
            crop=crop if keys["do_center_crop"] else None,
            factor=factor if keys["do_rescale"] else 1.0,
            mean=_numbers("image_mean", keys["image_mean"], 3),
            std=std if keys["do_normalize"] else None,
        )

    def pixels(self, image: Image.Image) -> Tensor:
        """Return the pixels of an RGB image, float32 [3, H, W].

        Raises InputError ``image-too-large``.
        """
        if self.pad:
            image = self._padded(image)
        if self.resize is not None:
            height, width = _target(self.resize, image)
            _check_size(width, height)
            image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            _check_size(width, height)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = flat.reshape(image.height, image.width, 3).permute(2, 0, 1)
        # As in the library: multiplied in double precision, then rounded.
        values = (pixels.double() * self.factor).float()
        if self.std is None:
            return values
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (values - mean) / std

    def tiles(self, image: Image.Image, sizes: Sequence[tiles.Size]) -> Tensor:
        """Return the pixels of the tiles of an RGB image, float32 [tiles, 3, H, W].

        The first is the whole image, squashed to a square. The others are those of the image once
        it is resized into the one of ``sizes`` that suits it best, on black, row by row. A tile is
        as large as the crop, without one as the image that is resized. Raises InputError:
        ``image-too-large``, ``no-tile-grid``, ``unsupported-processor-config``.
        """
        best = tiles.best_size(image.size, sizes)
        if best is None:
            raise InputError(
                "no-tile-grid", "image_grid_pinpoints", expected="sizes in pixels", got="none"
            )
        _check_size(*best)
        canvas = Image.new("RGB", best)
        small = image.resize(tiles.fitted(image.size, best))
        canvas.paste(small, ((best[0] - small.width) // 2, (best[1] - small.height) // 2))
        side = self.tile
        whole = self.resize if isinstance(self.resize, int) else side
        cut = [
            canvas.crop((left, top, left + side, top + side))
            for top in range(0, best[1], side)
            for left in range(0, best[0], side)
        ]
        return torch.stack([self.pixels(one) for one in (image.resize((whole, whole)), *cut)])

    @property
    def tile(self) -> int:
        """The side of a tile in pixels: that of the crop, without one of what is resized."""
        size = self.crop or (self.resize if isinstance(self.resize, tuple) else None)
        if size is None:
            raise _unsupported("crop_size", "a size, for images in tiles", None)
        return size[0]

    def _padded(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        _check_size(side, side)
        red, green, blue = (min(max(int(value * 255), 0), 255) for value in self.mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square


@dataclass(frozen=True)
class Picture:
    """An image as a model takes it.

    ``pixels`` are float32 [T, 3, H, W], of the image or of its tiles. ``size`` is its width and
    height before it was cut into tiles, None for one that was not.
    """

    pixels: Tensor
    size: tiles.Size | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of a call of the model with this image alone, beside its pixels."""
        if self.size is None:
            return {}
        return {"tiles_per_image": [len(self.pixels)], "image_sizes": [self.size]}


def prepare_image(
    checkpoint: Checkpoint,
    path: StrPath,
    tower: StrPath | None = None,
    *,
    stores: Stores | None = None,
) -> Picture:
    """Read an image and prepare it for a checkpoint as its family does: whole, or cut into tiles.

    Raises the errors of :func:`processor_of`, :func:`read_image` and :class:`Processor`, and
    InputError ``unsupported-image-aspect-ratio`` for a way of cutting that is not known here.
    """
    tiling = family_of_model(checkpoint).tiling(checkpoint.config or {})
    if tiling.aspect in tiles.UNKNOWN_CUTS and tiling.extended:
        raise InputError(
            "unsupported-image-aspect-ratio",
            checkpoint.root,
            expected="image_aspect_ratio square, pad, anyres or anyres_max_N",
            got=tiling.aspect,
            hint="verify works without --image",
        )
    processor = processor_of(checkpoint, tower, stores=stores)
    image = read_image(path)
    if tiling.is_anyres:
        return Picture(processor.tiles(image, tiling.sizes(processor.tile)), image.size)
    return Picture(processor.pixels(image)[None])


def processor_of(
    checkpoint: Checkpoint, tower: StrPath | None = None, *, stores: Stores | None = None
) -> Processor:
    """Return the processor of a checkpoint's images.

    Its config is read by :func:`~vita_ckpt.storage.reading.tower.read_processor`, unless the
    checkpoint's family knows it by heart. EVA-CLIP, which has no such config, uses CLIP's processor
    at its own size. With S2 the images have the size of the largest scale. Raises UsageError for a
    checkpoint without a tower, and InputError naming ``--tower`` if the config is missing.
    """
    config = checkpoint.config or {}
    stores = Stores() if stores is None else stores
    family = family_of_model(checkpoint)
    around = look_around(checkpoint, stores, tower)
    bound = bind(config, checkpoint.tensors, around)
    sizes = tower_config(checkpoint, around, bound, stores)
    if sizes is None:
        raise UsageError(
            "no-vision-modules", checkpoint.root, expected="a vision tower, for an image"
        )
    with on_meta(torch.float32):
        vision_tower = tower_of(config, sizes, family=family)
    traits = towers.FAMILIES[vision_tower.family]
    side = {"height": vision_tower.image_size, "width": vision_tower.image_size}
    edge = {"shortest_edge": vision_tower.image_size}
    found = read_processor(checkpoint, stores, tower)
    keys: dict[str, Any]
    if traits.name in family.own_sizes:
        keys = {"size": side}
    elif found is not None:
        keys = dict(found)
    elif traits.lone_file:
        keys = {"size": edge, "crop_size": side}
    else:
        raise InputError(
            "processor-config-unknown",
            checkpoint.root,
            expected=f"a {PROCESSOR} in it or in its tower's directory",
            got="none",
            hint="give the tower's directory with --tower",
        )
    if family.uses_s2(config):
        keys |= (
            {"size": side} if traits.processor == "siglip" else {"size": edge, "crop_size": side}
        )
    return Processor.of(traits.name, keys, pad=config.get("image_aspect_ratio") == "pad")


def read_image(path: StrPath) -> Image.Image:
    """Read the first frame of an image file, in RGB, without applying EXIF rotation, as upstream.

    Raises InputError: ``unreadable-file``, ``unreadable-image``, ``image-too-large``.
    """
    name = os.fspath(path)
    with opened(name) as (descriptor, _), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with (
                os.fdopen(descriptor, "rb", closefd=False) as file,
                Image.open(file, formats=_FORMATS) as image,
            ):
                _check_size(*image.size)
                return image.convert("RGB")
        except Image.DecompressionBombError as error:
            raise _too_large(str(error)) from error
        except _DAMAGED as error:
            raise InputError(
                "unreadable-image",
                name,
                expected=f"an image ({', '.join(_FORMATS)})",
                got="none of these"
                if isinstance(error, UnidentifiedImageError)
                else f"{error}" or type(error).__name__,
            ) from error


def _target(size: int | tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of a resized image.

    For a shortest edge, the longer side is rounded down.
    """
    if isinstance(size, tuple):
        return size
    short, long = sorted(image.size)
    longer = size * long // short
    return (longer, size) if image.width <= image.height else (size, longer)


def _check_size(width: int, height: int) -> None:
    if width * height > _LARGEST:
        raise _too_large(f"{width} x {height}")


def _too_large(got: str) -> InputError:
    return InputError(
        "image-too-large",
        "--image",
        expected=f"at most {_LARGEST} pixels, also once padded or resized",
        got=got,
        hint="make it smaller",
    )


def _size(key: str, value: Any) -> int | tuple[int, int]:
    """Return a shortest edge, or (height, width)."""
    if isinstance(value, Mapping) and "shortest_edge" in value:
        value = value["shortest_edge"]
    return _pixels(key, value) if type(value) is int else _both(key, value)


def _both(key: str, value: Any) -> tuple[int, int]:
    """Return (height, width); a single number is used for both."""
    if isinstance(value, Mapping):
        return _pixels(key, value.get("height")), _pixels(key, value.get("width"))
    return _pixels(key, value), _pixels(key, value)


def _pixels(key: str, value: Any) -> int:
    if type(value) is not int or value <= 0:
        raise _unsupported(key, "shortest_edge, or height and width, in pixels", value)
    return value


def _numbers(key: str, value: Any, count: int) -> tuple[float, ...]:
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(type(number) in (int, float) and isfinite(number) for number in value)
    ):
        raise _unsupported(key, f"{count} numbers", value)
    return tuple(map(float, value))


def _unsupported(key: str, expected: str, got: object) -> InputError:
    return InputError(
        "unsupported-processor-config",
        f"{PROCESSOR}: {key}",
        expected=expected,
        got=f"{got}",
    )
