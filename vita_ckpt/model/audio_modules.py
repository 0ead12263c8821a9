"""Implement the audio modules of a model: recordings become embeddings of its language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import prompt_rows
from vita_ckpt.errors import UsageError
from vita_ckpt.model.audio.build import AudioEncoderWithAdapter


class AudioModules(nn.Module):
    """A mixin with the audio encoder, its adapter and its prompt.

    ``config`` is the checkpoint's config. It is set before :meth:`build_audio_modules` is called.
    """

    config: dict[str, Any]
    audio_encoder: AudioEncoderWithAdapter | None

    @property
    def device(self) -> torch.device:
        """The device of a model's inputs and outputs."""
        raise NotImplementedError

    def build_audio_modules(self, settings: AudioEncoder | None) -> None:
        """Build the audio encoder of ``settings``, without weights; None builds none."""
        self.audio_encoder = None
        if settings is not None:
            prompt = prompt_rows(self.config)
            self.audio_encoder = AudioEncoderWithAdapter(settings, prompt).eval()

    def encode_audio(self, audio_features: Tensor, audio_lengths: Tensor) -> Tensor:
        """Return the embeddings [B, T', hidden] of recordings, a trained prompt's rows first.

        ``audio_features`` is float [B, T, n], n mel bins for each frame; ``audio_lengths`` int64
        [B], the frames of each recording that are no padding. T' is that of T frames. Raises
        UsageError for a model without an audio encoder, or features that it cannot take.
        """
        if self.audio_encoder is None:
            raise UsageError(
                "no-audio-modules",
                "audio_features",
                expected="a model with an audio encoder",
                got="none, or one whose train.yaml was not found",
                hint="name its directory as audio_encoder when the model is loaded",
            )
        features, lengths = audio_features.to(self.device), audio_lengths.to(self.device)
        embeds: Tensor = self.audio_encoder(features, lengths)
        return embeds.to(self.device)
