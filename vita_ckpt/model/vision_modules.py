"""Implement the vision modules of a live model, with upstream's ``initialize_vision_modules``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from vita_ckpt.core.anatomy import projectors, towers
from vita_ckpt.core.anatomy.families import ModelFamily
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.anatomy.tiles import Size
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.model.merging import merge_frames, merge_tiles, pool_frames
from vita_ckpt.model.projectors import build_projector
from vita_ckpt.model.towers.base import VisionTower
from vita_ckpt.model.towers.build import tower_of
from vita_ckpt.model.weights import Weights, load_resident, on_meta
from vita_ckpt.storage.reading.checkpoint import open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import open_tower
from vita_ckpt.surgery.donors import projector_of


class VisionModules(nn.Module):
    """A mixin with the vision tower and the projector of a composed model.

    ``config`` is the checkpoint's config, ``family`` the family that reads it, ``language_model``
    the library's causal language model. They are set before :meth:`build_vision_modules` is called.
    """

    config: dict[str, Any]
    language_model: Any
    family: ModelFamily
    vision_tower: VisionTower | None
    mm_projector: nn.Module | None
    image_newline: Newline | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of a model's inputs and outputs."""
        raise NotImplementedError

    @property
    def streams(self) -> bool:
        """Whether weights are read from the files while running."""
        raise NotImplementedError

    def build_vision_modules(
        self, tower_config: Mapping[str, Any] | None, attn: str | None = None
    ) -> None:
        """Build the tower and the projector of ``config``, without weights.

        ``tower_config`` is the tower's own config; if it is None, neither is built.
        """
        self.vision_tower = None
        self.mm_projector = None
        self.image_newline = None
        if tower_config is not None:
            self.vision_tower = tower_of(self.config, tower_config, attn, self.family)
            kind = str(self.family.projector_type(self.config))
            width = self.config.get("mm_hidden_size") or self.vision_tower.hidden_size
            hidden = self.language_model.config.hidden_size
            self.mm_projector = build_projector(kind, width, hidden)
            if self.family.has_newline(self.config):
                self.image_newline = Newline(hidden)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return the projected features [N, tokens, hidden] of images or tiles [N, 3, H, W]."""
        if self.vision_tower is None or self.mm_projector is None:
            raise UsageError(
                "no-vision-modules", "pixel_values", expected="a model with a vision tower"
            )
        pixels = pixel_values.to(self.device, self.dtype)
        features: Tensor = self.mm_projector(self.vision_tower(pixels).to(self.device))
        return features.to(self.device)

    def image_tokens(
        self,
        pixel_values: Tensor | Sequence[Tensor],
        tiles_per_image: Sequence[int] | Tensor | None = None,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        modalities: Sequence[str] | None = None,
    ) -> list[Tensor]:
        """Return the tokens [T, hidden] of each image or video, which stand for its placeholder.

        ``pixel_values`` are [N, 3, H, W]. Without ``tiles_per_image`` they are one image each. With
        it they are the tiles of all images, one image after another, and are merged as the config
        says; so are those of a list, [tiles, 3, H, W] or [3, H, W] of each image. ``image_sizes``
        are the images' (width, height) in pixels before they were cut, needed where padding is cut
        off. ``modalities`` says ``image`` or ``video`` of each; the tiles of a video are its
        frames.

        Raises UsageError ``tiles-do-not-fit-images``, and ``tiles-do-not-merge`` where upstream
        raises too.
        """
        if not isinstance(pixel_values, Tensor):
            tiles = [one if one.ndim == 4 else one[None] for one in pixel_values]
            pixel_values = torch.cat(tiles)
            if tiles_per_image is None:
                tiles_per_image = [len(one) for one in tiles]
        features = self.encode_images(pixel_values)
        if tiles_per_image is None:
            return list(features)
        counts, sizes, kinds = _per_image(len(features), tiles_per_image, image_sizes, modalities)
        merged = zip(torch.split(features, counts), sizes, kinds, strict=True)
        return [self._merged(parts, size, is_video=kind == "video") for parts, size, kind in merged]

    def _merged(self, features: Tensor, size: Size | None, *, is_video: bool) -> Tensor:
        """Return the tokens of an image or a video from those of its tiles or frames."""
        assert self.vision_tower is not None  # noqa: S101 - they come from it
        tiling = self.family.tiling(self.config)
        newline = self.image_newline().to(self.device) if self.image_newline is not None else None
        side, tile = self.vision_tower.grid, self.vision_tower.tile_size
        if not is_video:
            return merge_tiles(features, size, tiling, newline, side, tile)
        mode = str(self.config.get("mm_spatial_pool_mode"))
        position = str(self.config.get("mm_newline_position", "one_token"))
        if self.config.get("add_faster_video") and position == "grid":
            raise UsageError(
                "tiles-do-not-merge",
                "modalities",
                expected="a video of one speed",
                got="add_faster_video in the config",
                hint="upstream raises a NameError too",
            )
        return merge_frames(pool_frames(features, side, mode), position, tiling, newline)

    def initialize_vision_modules(self, model_args: object, delay_load: bool = False) -> None:
        """Replace the tower, the projector or the projector's weights, as upstream's method should.

        Upstream itself keeps the old tower and the old projector.

        ``model_args`` has ``vision_tower`` (a path), ``mm_projector_type`` and
        ``pretrain_mm_mlp_adapter`` (a file or None), and may have ``use_s2`` and ``s2_scales``, for
        LLaVA and LLaVA-NeXT ``s2``, ``mm_vision_select_layer``, ``mm_vision_select_feature`` and
        ``mm_patch_merge_type``. The tower is replaced if another one is asked for, and frozen as
        upstream leaves it. The projector is rebuilt if its type or widths change, and is trainable;
        so is an ``image_newline``, which is drawn if there was none. An adapter is read with
        ``get_w`` into the model's dtype. ``config`` is updated. With ``delay_load`` the tower is
        built without its weights.

        Raises InputError for a path that upstream would take for another family, or a tower that
        does not fit its config, and AdapterError for an adapter that does not fit the projector.
        After an error the model is unchanged.
        """
        family = self.family
        path = str(argument(model_args, "vision_tower", ""))
        kind = str(argument(model_args, "mm_projector_type", None) or family.default_projector)
        config = {
            **self.config,
            "mm_vision_tower": path,
            family.s2_key: bool(argument(model_args, family.s2_key, False)),
            "mm_projector_type": kind,
            "use_mm_proj": True,
        }
        for key in ("s2_scales", *_FEATURE_KEYS, "mm_patch_merge_type"):
            given = argument(model_args, key, None) if key in family.keys else None
            if given is not None:
                config[key] = str(given) if key == "s2_scales" else given
        keys = ("mm_vision_tower", family.s2_key, "s2_scales", *_FEATURE_KEYS)
        tower = self.vision_tower
        if tower is None or any(config.get(key) != self.config.get(key) for key in keys):
            tower = _tower(config, path, self.dtype, self.device, delay_load, family)
        config["mm_hidden_size"] = tower.hidden_size
        new = Projector(kind, tower.hidden_size, self.language_model.config.hidden_size)
        projector = self.mm_projector
        if (
            projector is None
            or self.streams  # a streamed module cannot be trained or loaded into
            or kind != family.projector_type(self.config)
            or _shapes(projector) != projectors.expected_shapes(new)
        ):
            built = build_projector(new.type, new.in_width, new.out_width)
            projector = built.to(self.device, self.dtype)
        adapter = argument(model_args, "pretrain_mm_mlp_adapter", None)
        if adapter is not None:
            _load_adapter(projector, open_checkpoint(os.fspath(adapter), Stores()), new)
        newline = self.image_newline
        if not family.has_newline(config):
            newline = None
        elif newline is None or self.streams:
            newline = Newline(new.out_width).drawn().to(self.device, self.dtype)
        # The model is changed only after every check has passed.
        self.vision_tower = tower.requires_grad_(False)
        self.mm_projector = projector.requires_grad_(True)
        self.image_newline = newline
        self.config = config


# The keys that say which hidden states of a tower are its features.
_FEATURE_KEYS: Final = ("mm_vision_select_layer", "mm_vision_select_feature")


class Newline(nn.Module):
    """The vector [hidden] that ends each row of an image in tiles."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def drawn(self) -> Newline:
        """Draw it as upstream does for training, with a variance of one over its width."""
        nn.init.normal_(self.weight, std=len(self.weight) ** -0.5)
        return self

    def forward(self) -> Tensor:
        """Return it."""
        return self.weight.clone()


def _per_image(
    tiles: int,
    tiles_per_image: Sequence[int] | Tensor,
    image_sizes: Sequence[Sequence[int]] | Tensor | None,
    modalities: Sequence[str] | None,
) -> tuple[list[int], list[Size | None], list[str]]:
    """Return the tiles, the size and the modality of each image."""
    counts = [int(count) for count in tiles_per_image]
    sizes: list[Size | None] = [None] * len(counts)
    if image_sizes is not None:
        sizes = [(int(size[0]), int(size[1])) for size in image_sizes]
    kinds = ["image"] * len(counts) if modalities is None else list(modalities)
    if (
        sum(counts) != tiles
        or any(count < 1 for count in counts)
        or not len(counts) == len(sizes) == len(kinds)
        or any(size is not None and min(size) < 1 for size in sizes)
    ):
        raise UsageError(
            "tiles-do-not-fit-images",
            "tiles_per_image",
            expected=f"numbers of tiles that sum to {tiles}, and a size and a modality for each",
            got=f"{counts}, {len(sizes)} sizes, {len(kinds)} modalities",
        )
    return counts, sizes, kinds


def argument(model_args: object, name: str, default: Any) -> Any:
    """Return one of upstream's ``model_args``, which may be a mapping."""
    if isinstance(model_args, Mapping):
        return model_args.get(name, default)
    return getattr(model_args, name, default)


def _tower(
    config: Mapping[str, Any],
    path: str,
    dtype: torch.dtype,
    device: torch.device,
    delay: bool,
    family: ModelFamily,
) -> VisionTower:
    """Build the tower at ``path``; upstream must choose the tower's own family from that path."""
    found = open_tower(os.path.abspath(path), Stores())
    checkpoint = open_checkpoint(path, Stores())
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    described = found.config or towers.config_of_shapes(shapes)
    own = towers.tower_of_shapes(shapes)
    if described is None or own is None:
        raise InputError("unknown-tower", path, expected=f"a {towers.listed(towers.KNOWN)} tower")
    towers.check_dispatch(
        path, own.family, family.dispatch(config, os.path.exists), "rename the directory"
    )
    with on_meta(dtype):
        tower = tower_of(config, described, family=family)
    if not delay:
        _load_tower(tower, checkpoint, device)
    return tower


def _load_tower(tower: VisionTower, checkpoint: Checkpoint, device: torch.device) -> None:
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    sources = {stored: name for name, stored in towers.stored_names(shapes).items()}
    names = {name: tower.checkpoint_name(name) for name in tower.state_dict()}
    state = tower.state_dict()
    compare(
        {stored: tuple(state[name].shape) for name, stored in names.items()},
        {stored: shapes[source] for stored, source in sources.items()},
    ).refuse(checkpoint.root, "exactly the tensors that the tower's config describes")
    taken = {name: sources[stored] for name, stored in names.items()}
    with Weights(checkpoint) as weights:
        load_resident(tower, taken, weights, {"": device})


def _load_adapter(projector: nn.Module, adapter: Checkpoint, new: Projector) -> None:
    donor = projector_of(adapter)
    found = {name: tensor.shape for name, tensor in donor.tensors.items()}
    if found != _shapes(projector):
        names = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
        raise AdapterError(
            "projector-shape-mismatch",
            adapter.root,
            expected=f"the tensors of {new}",
            got=names or "no tensor of a projector",
        )
    with Weights(adapter) as weights, torch.no_grad():
        for name, tensor in projector.state_dict().items():
            tensor.copy_(weights.view(donor.origins[name]))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
