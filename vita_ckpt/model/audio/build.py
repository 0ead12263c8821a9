"""Build an audio encoder with its adapter and prompt, and run it on recordings."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from vita_ckpt.core.anatomy.audio.settings import AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import COUNTER
from vita_ckpt.errors import UsageError
from vita_ckpt.model.audio.adapters import ADAPTERS
from vita_ckpt.model.audio.encoder import Encoder
from vita_ckpt.model.precision import exact_convolutions


class AudioEncoderWithAdapter(nn.Module):
    """An audio encoder, its adapter and its prompt, weights not set.

    The names of its ``state_dict()`` are upstream's below ``model.audio_encoder.``. ``settings``
    must be complete; ``prompt`` is the number of prompt embeddings.
    """

    def __init__(self, settings: AudioEncoder, prompt: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.prompt = prompt
        self.encoder = Encoder(settings)
        self.adpter = ADAPTERS[settings.adapter.type](settings.adapter)
        if prompt:
            self.prompt_embeddings = nn.Embedding(prompt, settings.adapter.out_width)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return next(self.parameters()).dtype

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Map features [B, T, n] of ``lengths`` [B] frames to embeddings [B, prompt + T', out].

        Embeddings of padded frames are among them. Raises UsageError for features that the encoder
        cannot take.
        """
        bins = self.settings.mel_bins
        frames = features.shape[1] if features.dim() == 3 else 0
        if features.dim() != 3 or features.shape[2] != bins or self.settings.frames_out(frames) < 1:
            raise UsageError(
                "features-do-not-fit-encoder",
                "audio_features",
                expected=f"[B, T, {bins}], with 7 frames or more",
                got=str(list(features.shape)),
            )
        if lengths.shape != features.shape[:1] or int(lengths.max()) > frames:
            raise UsageError(
                "features-do-not-fit-encoder",
                "audio_lengths",
                expected=f"[{len(features)}] lengths of up to {frames} frames",
                got=str(lengths.tolist()),
            )
        with exact_convolutions():
            hidden, mask = self.encoder(features, lengths, self.dtype)
            embeds: Tensor = self.adpter(hidden, mask)
        if not self.prompt:
            return embeds
        rows = self.prompt_embeddings(torch.arange(self.prompt, device=embeds.device))
        return torch.cat([rows.expand(len(embeds), -1, -1), embeds], dim=1)

    def forget_counters(self, stored: Collection[str]) -> None:
        """Remove the counters of batch norms but for ``stored`` ones: only training reads them."""
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm1d) and name + COUNTER not in stored:
                module.register_buffer(COUNTER.removeprefix("."), None)
