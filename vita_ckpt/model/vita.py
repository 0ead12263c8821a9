"""Compose vision tower, projector and language model as upstream does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.settings import AudioEncoder, tokens_for_llm
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX
from vita_ckpt.core.anatomy.families import VITA, ImageCount, ModelFamily
from vita_ckpt.core.anatomy.language_tensors import LANGUAGE_MODELS
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.errors import UsageError
from vita_ckpt.model.audio_modules import AudioModules
from vita_ckpt.model.language import (
    build_language_model,
    check_language_values,
    embedding_scale,
    stored_name,
)
from vita_ckpt.model.vision_modules import VisionModules
from vita_ckpt.model.weights import Streaming, Weights, on_meta

if TYPE_CHECKING:
    from vita_ckpt.model.pipeline import Later

IMAGE_TOKEN: Final = -200
AUDIO_TOKEN: Final = -500

# The number of lm_head's rows that are multiplied at once while streaming.
_HEAD_ROWS: Final = 16384


@dataclass(frozen=True)
class Output:
    """The result of a forward pass: ``logits`` [B, T', vocab], float32."""

    logits: Tensor


class VitaModel(VisionModules, AudioModules):
    """A multimodal model for text and images, of VITA also for recordings.

    It is built by :func:`~vita_ckpt.model.load.load_model`. ``config`` is the checkpoint's config.
    T is the number of tokens of a row with its placeholders, T' the number after images and
    recordings are inserted.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tower_config: Mapping[str, Any] | None,
        audio: AudioEncoder | None = None,
        attn: str | None = None,
        family: ModelFamily = VITA,
    ) -> None:
        super().__init__()
        self.config = dict(config)
        self.family = family
        self.language_model: Any = build_language_model(config, attn)
        self._backbone = check_language_values(config)
        self._scale = embedding_scale(config)
        self.build_vision_modules(tower_config, attn)
        self.build_audio_modules(audio)
        self._streaming: Streaming | None = None
        # What runs the layers that are not here, if the model is one stage of several.
        self.later: Later | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        table: Tensor = self.language_model.model.embed_tokens.weight
        return table.dtype

    @property
    def device(self) -> torch.device:
        """The device of inputs and outputs, also if the model is spread over several devices."""
        if self._streaming is not None:
            return self._streaming.device
        table: Tensor = self.language_model.model.embed_tokens.weight
        return table.device

    @property
    def streams(self) -> bool:
        """Whether weights are read from the files while running."""
        return self._streaming is not None

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        audio_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        audio_lengths_for_llm: Tensor | None = None,
        tiles_per_image: Sequence[int] | Tensor | None = None,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Output:
        """Return the logits of a batch.

        ``input_ids`` is int64 [B, T], with -200 for each image and -500 for each recording.
        ``pixel_values`` is float [N, 3, H, W], one image for each placeholder in the order of the
        rows, or None; of images in tiles it is all tiles, with ``tiles_per_image``, ``image_sizes``
        and ``modalities`` as in :meth:`image_tokens`. ``audio_features`` is float [M, F, n], n mel
        bins for each frame, with ``audio_lengths`` [M] frames that are no padding (by default all),
        or None; ``audio_lengths_for_llm`` [M] is how many embeddings of each recording are taken,
        by default as many as upstream computes from its length. Padded positions are attended to,
        as upstream does without a mask.
        """
        embeds = self.embed_multimodal(
            input_ids,
            pixel_values,
            audio_features,
            audio_lengths,
            audio_lengths_for_llm,
            tiles_per_image,
            image_sizes,
            modalities,
        )
        return Output(self.logits_of(embeds))

    def logits_of(self, inputs_embeds: Tensor, cache: Any = None) -> Tensor:
        """Return the logits [B, T', vocab], float32, of embeddings [B, T', hidden].

        ``cache`` is the library's ``DynamicCache``. It holds the keys and values of earlier tokens,
        and those of these tokens are added. With a cache only the logits of the last position are
        returned, [B, 1, vocab].
        """
        if self._scale is not None:
            inputs_embeds = inputs_embeds * torch.tensor(self._scale, dtype=inputs_embeds.dtype)
        hidden = self.hidden_of(inputs_embeds, cache)
        if self.later is not None:
            return self.later(hidden, cache)
        if cache is not None:
            hidden = hidden[:, -1:]
        logits: Tensor = self.language_model.lm_head(hidden)
        return logits.to(self.device, torch.float32)

    def hidden_of(self, inputs_embeds: Tensor, cache: Any = None) -> Tensor:
        """Return what the layers that are here make of embeddings [B, T', hidden]."""
        hidden: Tensor = self.language_model.model(
            inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return hidden

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings [..., hidden] of token ids [...].

        Raises UsageError ``token-out-of-range`` for an id outside the vocabulary.
        """
        ids = input_ids.to(self.device)
        rows = self.language_model.config.vocab_size
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= rows):
            bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
            what = "an audio placeholder" if bad == AUDIO_TOKEN else f"token id {bad}"
            raise UsageError(
                "token-out-of-range",
                "input_ids",
                expected=f"ids below {rows}, and images and recordings for placeholders",
                got=what,
                hint="give audio_features for -500, pixel_values for -200",
            )
        embeds: Tensor = self.language_model.model.embed_tokens(ids)
        return embeds

    def embed_multimodal(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        audio_features: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        audio_lengths_for_llm: Tensor | None = None,
        tiles_per_image: Sequence[int] | Tensor | None = None,
        image_sizes: Sequence[Sequence[int]] | Tensor | None = None,
        modalities: Sequence[str] | None = None,
    ) -> Tensor:
        """Return embeddings [B, T', hidden], with each placeholder replaced by what it stands for.

        The arguments are those of :meth:`forward`. Images and recordings are assigned to
        placeholders in row order, each once. A row without a placeholder of either kind consumes
        one of that kind too, as upstream does, if there are any. LLaVA and Bunny leave out images
        that are too many; LLaVA-NeXT does too, and takes the last one again if one is missing. Of a
        recording's embeddings the first ``audio_lengths_for_llm`` are taken, and
        ``audio_prompt_num`` more. Rows are cut at ``tokenizer_model_max_length`` and then padded
        with zero vectors to the longest row, on the side given by ``tokenizer_padding_side``.
        Raises UsageError unless the numbers of images and recordings are those needed.
        """
        if pixel_values is None and audio_features is None:
            return self.embed_tokens(input_ids)
        given: dict[int, Iterator[Tensor]] = {}
        if pixel_values is not None:
            tokens = self.image_tokens(pixel_values, tiles_per_image, image_sizes, modalities)
            given[IMAGE_TOKEN] = iter(_enough(input_ids, tokens, self.family.image_count))
        if audio_features is not None:
            needed, placeholders = _needed(input_ids, AUDIO_TOKEN)
            if needed != len(audio_features):
                raise _misfit(AUDIO_TOKEN, needed, placeholders, len(audio_features))
            recordings = self._recordings(audio_features, audio_lengths, audio_lengths_for_llm)
            given[AUDIO_TOKEN] = iter(recordings)
        return self._pad([self._splice(ids, given) for ids in input_ids.to(self.device)])

    def _recordings(
        self, features: Tensor, lengths: Tensor | None, lengths_for_llm: Tensor | None
    ) -> list[Tensor]:
        """Return the embeddings of each recording that upstream puts among those of text."""
        if lengths is None:
            lengths = torch.full(features.shape[:1], features.shape[1])
        taken = (
            [tokens_for_llm(frames) for frames in lengths.tolist()]
            if lengths_for_llm is None
            else lengths_for_llm.tolist()
        )
        if len(taken) != len(features) or any(count < 0 for count in taken):
            raise UsageError(
                "features-do-not-fit-encoder",
                "audio_lengths_for_llm",
                expected=f"a length for each of {len(features)} recordings",
                got=str(taken),
            )
        number = self.config.get("audio_prompt_num")
        prompt = number if type(number) is int else 0
        embeds = self.encode_audio(features, lengths)
        return [rows[: count + prompt] for rows, count in zip(embeds, taken, strict=True)]

    def _splice(self, ids: Tensor, given: Mapping[int, Iterator[Tensor]]) -> Tensor:
        """Return the embeddings [T', hidden] of one row of ids [T]."""
        pieces: list[Tensor] = []
        start = 0
        for place, token in enumerate(ids.tolist()):
            if token in given:
                pieces += [self.embed_tokens(ids[start:place]), next(given[token])]
                start = place + 1
        for token, embeds in given.items():
            if not bool((ids == token).any()):
                next(embeds)
        return torch.cat([*pieces, self.embed_tokens(ids[start:])])

    def _pad(self, rows: Sequence[Tensor]) -> Tensor:
        limit = self.config.get("tokenizer_model_max_length")
        if type(limit) is int:
            rows = [row[: min(limit, len(row))] for row in rows]
        longest = max(len(row) for row in rows)
        left = self.config.get("tokenizer_padding_side") == "left"
        padded: list[Tensor] = []
        for row in rows:
            zeros = row.new_zeros(longest - len(row), row.shape[1])
            padded.append(torch.cat([zeros, row] if left else [row, zeros]))
        return torch.stack(padded)

    def stored_names(self) -> dict[str, str]:
        """Map the names of the model's ``state_dict`` to those of the checkpoint."""
        return {name: self._stored_name(name) for name in self.state_dict()}

    def _stored_name(self, name: str) -> str:
        part, _, rest = name.partition(".")
        if part == "vision_tower" and self.vision_tower is not None:
            return parts.TOWER_MODULE + self.vision_tower.checkpoint_name(rest)
        if part == "audio_encoder":
            return AUDIO_PREFIX + rest
        if part == "mm_projector":
            return parts.PROJECTOR_PREFIX + rest
        if part == "language_model":
            return self._head_name if rest == parts.LM_HEAD else stored_name(self._backbone, rest)
        if part == "image_newline":
            return parts.NEWLINE
        return name

    @property
    def _head_name(self) -> str:
        tied = LANGUAGE_MODELS[self._backbone].is_tied(self.config)
        return parts.EMBED_TOKENS if tied else parts.LM_HEAD

    def stream(
        self, weights: Weights, dtype: torch.dtype, device: torch.device, observe: Any = None
    ) -> None:
        """Read the weights from the files while running, module by module."""
        names = self.stored_names()
        whole = (parts.EMBED_TOKENS, self._head_name)
        lent = {name: stored for name, stored in names.items() if stored not in whole}
        streaming = Streaming(self, lent, weights, dtype, device, observe)
        # The two tables are never fully in memory.
        language_model = self.language_model
        language_model.model.embed_tokens.forward = partial(streaming.rows, parts.EMBED_TOKENS)
        language_model.lm_head.forward = partial(streaming.linear, self._head_name, rows=_HEAD_ROWS)
        self._streaming = streaming

    def end(self) -> None:
        """Tell the stages that run elsewhere, if there are any, that nothing follows."""
        if self.later is not None:
            self.later.stop()

    def observe_rest(self) -> None:
        """Call the observer of a stream with the tensors that no pass has read whole."""
        if self._streaming is not None:
            self._streaming.observe_rest(self.stored_names().values())


def build(
    checkpoint: Checkpoint,
    tower_config: Mapping[str, Any] | None,
    dtype: torch.dtype,
    attn: str | None = None,
    audio: AudioEncoder | None = None,
    family: ModelFamily = VITA,
) -> VitaModel:
    """Build the model of a checkpoint on the meta device, with its unstored buffers real.

    ``audio`` are the settings of the audio encoder to run, None builds none. ``family`` is the
    family whose loader reads the checkpoint.
    """
    with on_meta(dtype):
        model = VitaModel(
            checkpoint.config or {},
            tower_config,
            audio,
            attn,
            family,
        )
    if model.audio_encoder is not None:
        model.audio_encoder.forget_counters(
            [name.removeprefix(AUDIO_PREFIX) for name in checkpoint.tensors]
        )
    return model.eval()


def _needed(input_ids: Tensor, token: int) -> tuple[int, list[int]]:
    """Return how many images or recordings a batch takes, and each row's placeholders."""
    placeholders = [int((row == token).sum()) for row in input_ids]
    return sum(max(count, 1) for count in placeholders), placeholders


def _enough(input_ids: Tensor, images: list[Tensor], count: ImageCount) -> list[Tensor]:
    """Return the images that a batch takes, as a family deals with another number of them."""
    needed, placeholders = _needed(input_ids, IMAGE_TOKEN)
    given = len(images)
    repeats = count is ImageCount.LAST_AGAIN and given == needed - 1 and placeholders[-1]
    if repeats and given:
        return [*images, images[-1]]
    if given == needed or (given > needed and count is not ImageCount.EXACT):
        return images
    raise _misfit(IMAGE_TOKEN, needed, placeholders, given)


def _misfit(token: int, needed: int, placeholders: list[int], given: int) -> UsageError:
    of_image = token == IMAGE_TOKEN
    what = "image" if of_image else "recording"
    return UsageError(
        "images-do-not-fit-placeholders" if of_image else "recordings-do-not-fit-placeholders",
        "pixel_values" if of_image else "audio_features",
        expected=f"{needed} {what}s for rows with {placeholders} placeholders",
        got=f"{given}",
        hint=f"a row without a placeholder takes one {what} too",
    )
