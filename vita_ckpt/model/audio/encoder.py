"""Implement the audio encoder in torch under its stored names (AUDIO §5)."""

from __future__ import annotations

from math import log
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from vita_ckpt.core.anatomy.audio.settings import AudioEncoder, Subsampling, Transformer
from vita_ckpt.errors import UsageError

# The score of what is not attended to: float16's lowest value, in every dtype.
_MASKED: Final = -65504.0

# Rows of upstream's position tables; a recording must have fewer frames after the subsampling.
_ROWS: Final = {"abs-enc": 1500, "rel-enc": 5000}


class Encoder(nn.Module):
    """Feature statistics and components, in the order of the settings.

    A parameter is read only in the forward of the module that owns it.
    """

    def __init__(self, settings: AudioEncoder) -> None:
        super().__init__()
        self.global_cmvn = _Cmvn(settings.mel_bins)
        self.enc = nn.ModuleList(
            _Subsampling(component)
            if isinstance(component, Subsampling)
            else _Transformer(component)
            for component in settings.components
        )

    def forward(
        self, features: Tensor, lengths: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Map features [B, T, n] to [B, t, width] in ``dtype`` and their mask, bool [B, t].

        ``lengths`` [B] are the frames of each recording; the others are padding, which is run too.
        """
        mask = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        hidden = self.global_cmvn(features).to(dtype)
        for component in self.enc:
            hidden, mask = component(hidden, mask)
        return hidden, mask


class _Cmvn(nn.Module):
    """Normalise features by float32 statistics, whatever the dtype of the weights."""

    mean: Tensor
    istd: Tensor

    def __init__(self, mel_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(mel_bins, dtype=torch.float32))
        self.register_buffer("istd", torch.ones(mel_bins, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        normal: Tensor = (features.to(torch.float32) - self.mean) * self.istd
        return normal


class _Subsampling(nn.Module):
    """Two convolutions of stride 2, then a linear layer over channels and frequencies."""

    def __init__(self, component: Subsampling) -> None:
        super().__init__()
        self.core = _Convolutions(component)

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.core(hidden), mask[:, 2::2][:, 2::2]


class _Convolutions(nn.Module):
    def __init__(self, component: Subsampling) -> None:
        super().__init__()
        wide, bins = component.out_width, ((component.in_width - 1) // 2 - 1) // 2
        self.conv = nn.Sequential(
            nn.Conv2d(1, wide, 3, 2), nn.ReLU(), nn.Conv2d(wide, wide, 3, 2), nn.ReLU()
        )
        self.out = nn.Sequential(nn.Linear(wide * bins, wide))

    def forward(self, hidden: Tensor) -> Tensor:
        channels = self.conv(hidden.unsqueeze(1))  # [B, width, t, bins]
        frames: Tensor = self.out(channels.transpose(1, 2).flatten(2))
        return frames


class _Transformer(nn.Module):
    """Blocks with positions; dynamic chunks run with the configured size."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        width = component.width
        self.positions = component.positions
        self.scale = width**0.5
        self.chunk = component.chunk or 0
        self.left_chunks = -1 if component.left_chunks is None else component.left_chunks
        layers: list[nn.Module] = []
        if component.input_layer == "linear":
            layers = [nn.Linear(component.in_width, width), nn.LayerNorm(width), nn.ReLU()]
        self.embed = nn.Sequential(*layers)
        self.encoders = nn.ModuleList(_Block(component) for _ in range(component.blocks))
        self.after_norm = nn.LayerNorm(width) if component.pre_norm else nn.Identity()

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        frames = hidden.shape[1]
        if frames >= _ROWS[self.positions]:
            raise UsageError(
                "audio-too-long",
                "audio_features",
                expected=f"fewer than {_ROWS[self.positions]} frames after the subsampling",
                got=str(frames),
                hint="cut the recording into pieces",
            )
        hidden = self.embed(hidden) * self.scale
        places = _sinusoids(frames, hidden.shape[2]).to(hidden.device, hidden.dtype)
        if self.positions == "abs-enc":
            hidden = hidden + places
        seen = mask[:, None, :] & self._chunks(frames, mask.device)
        for block in self.encoders:
            hidden = block(hidden, seen, places)
        return self.after_norm(hidden), mask

    def _chunks(self, frames: int, device: torch.device) -> Tensor:
        """Return which frames [t] attend to which [t] by their chunks."""
        places = torch.arange(frames, device=device)
        if self.chunk <= 0:
            return torch.ones(frames, frames, dtype=torch.bool, device=device)
        number = places // self.chunk
        first = torch.zeros_like(places)
        if self.left_chunks >= 0:
            first = ((number - self.left_chunks) * self.chunk).clamp(min=0)
        last = (number + 1) * self.chunk
        return (places >= first[:, None]) & (places < last[:, None])


class _Block(nn.Module):
    """Attention and feed-forward, with norms before or after them."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        width = component.width
        self.pre_norm = component.pre_norm
        self.concat_after = component.concat_after
        self.self_attn = _Attention(component)
        self.feed_forward = _FEED_FORWARDS[component.feed_forward](component)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        if component.concat_after:
            self.concat_linear = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        normal = self.norm1(hidden) if self.pre_norm else hidden
        mixed = self.self_attn(normal, seen, places)
        if self.concat_after:
            mixed = self.concat_linear(torch.cat([normal, mixed], dim=-1))
        hidden = hidden + mixed
        if not self.pre_norm:
            hidden = self.norm1(hidden)
            hidden = self.norm2(hidden + self.feed_forward(hidden))
        else:
            hidden = hidden + self.feed_forward(self.norm2(hidden))
        return hidden


class _Attention(nn.Module):
    """Attention whose relative scores use a key's absolute position, as upstream's do."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        width = component.width
        self.heads = component.heads or 1
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.is_relative = component.positions == "rel-enc"
        if self.is_relative:
            self.linear_pos = nn.Linear(width, width, bias=False)
            self.pos_bias_u = nn.Parameter(torch.zeros(self.heads, width // self.heads))
            self.pos_bias_v = nn.Parameter(torch.zeros(self.heads, width // self.heads))

    def forward(self, hidden: Tensor, seen: Tensor, places: Tensor) -> Tensor:
        """Map [B, t, width]; ``seen`` is bool [B, t, t], ``places`` [t, width]."""
        query, key, value = (
            self._split(layer(hidden)) for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        if self.is_relative:
            position = self._split(self.linear_pos(places[None]))
            scores = (query + self.pos_bias_u[:, None]) @ key.transpose(-2, -1)
            scores = scores + (query + self.pos_bias_v[:, None]) @ position.transpose(-2, -1)
        else:
            scores = query @ key.transpose(-2, -1)
        scores = scores / (query.shape[-1] ** 0.5)
        hidden_from = ~seen[:, None]
        weights = scores.masked_fill(hidden_from, _MASKED).softmax(dim=-1)
        mixed = weights.masked_fill(hidden_from, 0.0) @ value
        result: Tensor = self.linear_out(mixed.transpose(1, 2).flatten(2))
        return result

    def _split(self, hidden: Tensor) -> Tensor:
        """Map [B, t, width] to [B, heads, t, head width]."""
        return hidden.view(*hidden.shape[:2], self.heads, -1).transpose(1, 2)


class _Linear(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        self.w_1 = nn.Linear(component.width, component.units)
        self.w_2 = nn.Linear(component.units, component.width)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.w_2(functional.relu(self.w_1(hidden)))
        return result


class _Convolution(nn.Module):
    """Two convolutions over time, padded on both sides, with a ReLU between them."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        width, units, kernel = component.width, component.units, component.kernel
        padding = (kernel - 1) // 2
        self.w_1 = nn.Conv1d(width, units, kernel, padding=padding)
        self.w_2 = nn.Conv1d(units, width, kernel, padding=padding)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.w_2(functional.relu(self.w_1(hidden.transpose(1, 2))))
        return result.transpose(1, 2)


class _CausalConvolution(nn.Module):
    """A depthwise convolution padded on the left and a pointwise one, a ReLU, a linear layer."""

    def __init__(self, component: Transformer) -> None:
        super().__init__()
        width, units, kernel = component.width, component.units, component.kernel
        self.padding = kernel - 1
        self.w_1 = nn.Sequential(
            nn.Conv1d(width, width, kernel, groups=width), nn.Conv1d(width, units, 1)
        )
        self.w_2 = nn.Linear(units, width)

    def forward(self, hidden: Tensor) -> Tensor:
        padded = functional.pad(hidden.transpose(1, 2), (self.padding, 0))
        result: Tensor = self.w_2(functional.relu(self.w_1(padded)).transpose(1, 2))
        return result


_FEED_FORWARDS: Final[dict[str, type[_Linear | _Convolution | _CausalConvolution]]] = {
    "linear": _Linear,
    "conv1d": _Convolution,
    "conv1d-linear": _CausalConvolution,
}


def _sinusoids(frames: int, width: int) -> Tensor:
    """Return positions [t, width], float32: sines in even columns, cosines in odd ones."""
    places = torch.arange(frames, dtype=torch.float32)[:, None]
    columns = torch.arange(0, width, 2, dtype=torch.float32)
    angles = places * torch.exp(columns * -(log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
