"""Watch weights go by: progress, what is read, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite, isnan
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.progress import OnProgress, Tally
from vita_ckpt.core.report import Finding
from vita_ckpt.model.vita import VitaModel

# The largest value of float16, into which upstream's loader casts everything.
FLOAT16_MAX: Final = 65504.0


class Loading:
    """Tells of every weight that goes by which layer it belongs to, and how many bytes are left."""

    def __init__(
        self, sizes: Mapping[str, int], on_progress: OnProgress, purpose: str = ""
    ) -> None:
        self._what = f"{purpose}, loading" if purpose else "loading"
        layers = [layer for name in sizes if (layer := _layer_of(name)) is not None]
        self._layers = max(layers, default=-1) + 1
        self._step = Tally(on_progress, self._what, sum(sizes.values()))

    def __call__(self, stored: str, tensor: Tensor) -> None:
        """A weight on its way into its module."""
        layer = _layer_of(stored)
        of = "" if layer is None else f" layer {layer + 1} of {self._layers}"
        self._step.what = self._what + of
        self._step(tensor.nbytes)


def sizes_of(
    checkpoint: Checkpoint, renamed: Mapping[str, str] = MappingProxyType({})
) -> dict[str, int]:
    """Return the bytes of every tensor, by the name that it binds to."""
    return {renamed.get(name, name): t.nbytes for name, t in checkpoint.tensors.items()}


def _layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None outside of the layers."""
    number = name.removeprefix(parts.LAYERS_PREFIX).partition(".")[0]
    return int(number) if name.startswith(parts.LAYERS_PREFIX) and number.isdecimal() else None


class Watch:
    """Sees every weight and every module's output go by, and remembers what float16 cannot hold."""

    def __init__(self, sizes: Mapping[str, int], on_progress: OnProgress) -> None:
        self._sizes = sizes
        self._on_progress = on_progress
        self.expect("")
        self._weights: dict[str, float] = {}
        self._activations: dict[str, float] = {}
        self._stopped = False
        self.bytes_read = 0

    @property
    def seen(self) -> tuple[dict[str, float], dict[str, float]]:
        """The weights and the activations that float16 cannot hold, in the order of the run."""
        return self._weights, self._activations

    def add(self, seen: Iterable[tuple[dict[str, float], dict[str, float]]]) -> None:
        """Add what the ranks saw, by rank, which is the order of the run."""
        for weights, activations in seen:
            self._weights = {**weights, **self._weights}
            self._activations = {**self._activations, **activations}

    def __call__(self, stored: str, tensor: Tensor) -> None:
        """A weight on its way into its module."""
        self.bytes_read += tensor.nbytes
        self._loading(stored, tensor)
        if self._stopped:
            return
        largest = _largest_of(tensor)
        if not largest <= FLOAT16_MAX:
            self._weights.setdefault(stored, largest)  # a large matrix comes in parts

    def expect(self, purpose: str) -> None:
        """Tell from now on how far another pass over the weights is."""
        self._loading = Loading(self._sizes, self._on_progress, purpose)

    def follow(self, model: VitaModel) -> None:
        """Look at the output of every module that has weights of its own."""
        for name, stored in model.stored_names().items():
            owner = model.get_submodule(name.rpartition(".")[0])
            if stored.endswith((".weight", "_embedding")):
                owner.register_forward_hook(self._see(stored.removesuffix(".weight")))

    def stop(self) -> None:
        """Look no more: another pass takes the same weights, and looking takes time."""
        self._stopped = True

    def findings(self) -> list[Finding]:
        """What was seen: weights in the order of the files, activations in that of the run."""
        weights = {name: self._weights[name] for name in self._sizes if name in self._weights}
        found: list[Finding] = []
        for kind, seen, hint in (
            ("weight", weights, "upstream's loader makes it infinite"),
            (
                "activation",
                self._activations,
                "upstream runs in float16: it becomes infinite there",
            ),
        ):
            for name, value in seen.items():
                finite = isfinite(value)
                found.append(
                    Finding(
                        f"float16-{kind}" if finite else f"{kind}-not-finite",
                        "error",
                        name,
                        f"{kind} of {value:g}, float16 holds {FLOAT16_MAX:g}"
                        if finite
                        else f"{kind} is {value:g}",
                        hint if finite else "",
                    )
                )
        return found

    def _see(self, name: str) -> Any:
        def hook(_module: Any, _arguments: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor) and not self._stopped:
                largest = _largest_of(tensor)
                if not largest <= FLOAT16_MAX:
                    self._activations.setdefault(name, largest)

        return hook


def _largest_of(tensor: Tensor) -> float:
    """The largest magnitude, NaN if there is one; one pass without a copy."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    low_value, high_value = float(low), float(high)
    return low_value if isnan(low_value) else max(-low_value, high_value)
