"""Implement the audio adapters in torch: every type that upstream builds (AUDIO §2, §5)."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from vita_ckpt.core.anatomy.audio.settings import AudioAdapter

_EPS: Final = 1e-3


class SubsamplingAdapter(nn.Module):
    """A convolution of stride 2, a norm, an activation and a linear layer: half the frames."""

    def __init__(self, adapter: AudioAdapter) -> None:
        super().__init__()
        wide = 2 * adapter.in_width
        self.padding = adapter.kernel - 1
        self.has_batch_norm = adapter.norm == "batch"
        self.activation = functional.gelu if adapter.activation == "gelu" else functional.relu
        self.conv1d2 = nn.Conv1d(adapter.in_width, wide, adapter.kernel, 2)
        norm = nn.BatchNorm1d if self.has_batch_norm else nn.LayerNorm
        self.bn2 = norm(wide, eps=_EPS)
        self.project = nn.Linear(wide, adapter.out_width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map [B, t, width] with its mask, bool [B, t], to [B, ⌈t/2⌉, out]."""
        padded = functional.pad(_cleared(hidden, mask), (0, self.padding))
        frames = self.conv1d2(padded)
        if self.has_batch_norm:
            frames = self.bn2(frames).transpose(1, 2)
        else:
            frames = self.bn2(frames.transpose(1, 2))
        result: Tensor = self.project(self.activation(frames))
        return result


class CnnAdapter(nn.Module):
    """Twice a causal convolution, a batch norm and a ReLU; then a linear layer."""

    def __init__(self, adapter: AudioAdapter) -> None:
        super().__init__()
        wide = adapter.in_width
        self.padding = adapter.kernel - 1
        self.conv1d1 = nn.Conv1d(wide, 2 * wide, adapter.kernel)
        self.bn1 = nn.BatchNorm1d(2 * wide, eps=_EPS)
        self.conv1d2 = nn.Conv1d(2 * wide, 4 * wide, adapter.kernel)
        self.bn2 = nn.BatchNorm1d(4 * wide, eps=_EPS)
        self.project = nn.Linear(4 * wide, adapter.out_width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map [B, t, width] with its mask, bool [B, t], to [B, t, out]."""
        frames = _cleared(hidden, mask)
        for convolution, norm in ((self.conv1d1, self.bn1), (self.conv1d2, self.bn2)):
            padded = functional.pad(frames, (self.padding, 0))
            frames = functional.relu(norm(convolution(padded)))
        result: Tensor = self.project(frames.transpose(1, 2))
        return result


class LinearAdapter(nn.Module):
    """A linear layer; padded frames are run like others."""

    def __init__(self, adapter: AudioAdapter) -> None:
        super().__init__()
        self.adpter = nn.Linear(adapter.in_width, adapter.out_width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map [B, t, width] to [B, t, out]."""
        result: Tensor = self.adpter(hidden)
        return result


ADAPTERS: Final[dict[str, type[SubsamplingAdapter | CnnAdapter | LinearAdapter]]] = {
    "subsampling": SubsamplingAdapter,
    "cnn": CnnAdapter,
    "linear": LinearAdapter,
}


def _cleared(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the frames as channels [B, width, t], with zeros in those of padding."""
    return hidden.masked_fill(~mask[..., None], 0.0).transpose(1, 2)
