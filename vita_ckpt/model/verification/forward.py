"""Run one pass over several inputs at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from vita_ckpt.core.anatomy import projectors
from vita_ckpt.model.image import Picture
from vita_ckpt.model.verification.memory import trim_heap
from vita_ckpt.model.vita import VitaModel

_TEXT_LENGTH: Final = 8
SHOWN: Final = 16  # of the tokens of an image or a recording
# The synthetic recording: four seconds, with the range that the logarithms of mel energies have.
FRAMES: Final = 400
_FEATURE_MEAN: Final = 10.0
_FEATURE_SPREAD: Final = 3.0


@dataclass(frozen=True)
class Batch:
    """The inputs: rows of one length, so that nothing is padded and the weights are read once.

    Of an image's tokens the language model is shown a few, evenly spread: enough to see whether
    they matter, and a small part of what all of them would cost.
    """

    first: Tensor  # [T] token ids
    second: Tensor  # [T] other ones in every place
    images: tuple[Picture, Picture] | None
    expected_tokens: int | None
    recordings: Tensor | None  # [2, T, mel bins]
    expected_audio_tokens: int | None

    @classmethod
    def of(cls, model: VitaModel, image: Picture | None = None) -> Batch:
        """Synthetic inputs; ``image`` takes the place of the first image."""
        vocab = model.language_model.config.vocab_size
        first = _text(_TEXT_LENGTH, vocab)
        second = (first + 1 + vocab // 2) % vocab
        recordings = audio_tokens = None
        if model.audio_encoder is not None:
            settings = model.audio_encoder.settings
            shape = (2, FRAMES, settings.mel_bins)
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            recordings = drawn * _FEATURE_SPREAD + _FEATURE_MEAN
            audio_tokens = settings.tokens_out(FRAMES)
        if model.vision_tower is None:
            return cls(first, second, None, None, recordings, audio_tokens)
        one, other = _drawn_images(model, image)
        tokens = expected_tokens(model, one)
        return cls(first, second, (image or one, other), tokens, recordings, audio_tokens)

    @torch.inference_mode()
    def run(self, model: VitaModel) -> Pass:
        """Every variant in one forward pass."""
        first, second = (model.embed_tokens(text) for text in (self.first, self.second))
        half = len(first) // 2

        def row(text: Tensor, part: Tensor) -> Tensor:
            """Put a few rows of an image or a recording, evenly spread, among those of text."""
            shown = torch.linspace(0, len(part) - 1, count).long()
            return torch.cat([text[:half], part[shown.to(part.device)], text[half:]])

        seen = None if self.images is None else _tokens_of(model, self.images)
        heard = None
        if self.recordings is not None:
            trim_heap()
            heard = model.encode_audio(self.recordings, torch.full((2,), FRAMES))
        trim_heap()
        lengths = [len(parts[0]) for parts in (seen, heard) if parts is not None]
        count = min([SHOWN, *lengths])
        rows: dict[str, Tensor] = {}
        if seen is not None:
            one, other = seen
            rows |= {"image": row(first, one), "again": row(first, one)}
            rows |= {"other image": row(first, other), "other text": row(second, one)}
        if heard is not None:
            one, other = heard
            rows |= {"audio": row(first, one), "other audio": row(first, other)}
            rows.setdefault("again", rows["audio"])
        vocab = model.language_model.config.vocab_size
        length = len(first) + (count if rows else 0)
        rows["text"] = model.embed_tokens(_text(length, vocab))
        logits = model.logits_of(torch.stack(list(rows.values())))
        prompt = model.audio_encoder.prompt if model.audio_encoder is not None else 0
        return Pass(
            dict(zip(rows, logits.cpu(), strict=True)),
            None if seen is None else len(seen[0]),
            None if heard is None else heard.shape[1] - prompt,
        )


@dataclass(frozen=True)
class Pass:
    """Logits [T', vocab] of each variant, and how many tokens an image and a recording became."""

    rows: Mapping[str, Tensor]
    image_tokens: int | None
    audio_tokens: int | None


def _drawn_images(model: VitaModel, image: Picture | None) -> tuple[Picture, Picture]:
    """Return two images drawn at random, of as many pixels and tiles as ``image`` if there is one.

    Otherwise a model for images in tiles gets the smallest grid that its config has.
    """
    assert model.vision_tower is not None  # noqa: S101 - there is something to show it to
    side, tile = model.vision_tower.image_size, model.vision_tower.tile_size
    size = None
    shape: tuple[int, ...] = (1, 3, side, side)
    tiling = model.family.tiling(model.config)
    grids = [(size, tiling.grid(size, tile)) for size in tiling.sizes(tile)]
    if image is not None:
        size, shape = image.size, tuple(image.pixels.shape)
    elif tiling.is_anyres and grids:
        size, (across, down) = min(
            ((size, grid or (1, 1)) for size, grid in grids), key=lambda pair: prod(pair[1])
        )
        shape = (1 + across * down, *shape[1:])
    drawn = torch.randn(2 * shape[0], *shape[1:], generator=torch.Generator().manual_seed(0))
    one, other = torch.split(drawn, shape[0])
    return Picture(one, size), Picture(other, size)


def expected_tokens(model: VitaModel, image: Picture) -> int | None:
    """Return how many tokens an image must become."""
    assert model.vision_tower is not None  # noqa: S101 - there is something to show it to
    tower = model.vision_tower
    tokens = projectors.tokens_out(str(model.family.projector_type(model.config)), tower.tokens)
    if image.size is None or tokens is None:
        return tokens
    tiling = model.family.tiling(model.config)
    return tiling.tokens(image.size, len(image.pixels), tower.grid, tower.tile_size, tokens)


def _tokens_of(model: VitaModel, images: tuple[Picture, Picture]) -> list[Tensor]:
    """Return the tokens of each image, computed together."""
    one, other = images
    pixels = torch.cat([one.pixels, other.pixels])
    if one.size is None or other.size is None:
        return model.image_tokens(pixels)
    return model.image_tokens(pixels, [len(one.pixels), len(other.pixels)], [one.size, other.size])


def _text(length: int, vocab: int) -> Tensor:
    """Token ids that are the same everywhere, spread over the vocabulary."""
    return (torch.arange(length) * 7919 + 11) % vocab


def text_alone(model: VitaModel, length: int) -> Tensor:
    """Return the logits of the text in a batch of its own: beside other rows sums are rounded anew.

    Mixtral's experts take the tokens of all rows together.
    """
    ids = _text(length, model.language_model.config.vocab_size)[None]
    with torch.inference_mode():
        return model.logits_of(model.embed_tokens(ids))[0].cpu()
