"""Cut a model into stages of layers, one for each rank, and run them one after the other.

The first stage has the embeddings, the tower and the projector, the last one the norm and the head.
Rank 0 leads: it sends hidden states on to the next rank, and gets the logits from the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vita_ckpt.core.anatomy import parts
from vita_ckpt.model.language import final_norm
from vita_ckpt.model.vita import VitaModel

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

# What rank 0 asks for: tokens without a cache, with a new one, with the one there is; the end of
# what is looked at, and that of the stages.
_PASS: Final = 0
_PREFILL: Final = 1
_STEP: Final = 2
_SETTLE: Final = 3
_STOP: Final = 4
# The length of what it says: which of these, and the hidden states' rows, length and dtype.
_ORDER: Final = 4
_DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_LAYERS: Final = "language_model.model.layers."


def cut(model: VitaModel, rank: int, size: int) -> None:
    """Leave in a model on the meta device only what rank ``rank`` of ``size`` runs.

    What stays keeps its names. The stages are cut so that the largest one has as few bytes as
    possible. No layer is split; with more ranks than layers, some have none.
    """
    language_model = model.language_model
    layers = language_model.model.layers
    own = split(*stage_bytes(model), size)[rank]
    for index in range(len(layers)):
        if index not in own:
            delattr(layers, str(index))  # the others keep their numbers
    # The library numbers a cache's layers from 0, and asks the first for the length.
    for number, layer in enumerate(layers.children()):
        layer.self_attn.layer_idx = number
    config = language_model.config
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in own] or config.layer_types
    if rank:
        language_model.model.embed_tokens = nn.Identity()
        for name, module in model.named_children():
            if module is not language_model:
                setattr(model, name, None)
    if rank < size - 1:
        setattr(language_model.model, final_norm(language_model.model), nn.Identity())
        language_model.lm_head = nn.Identity()


def stage_bytes(model: VitaModel) -> tuple[int, list[int], int]:
    """Return the bytes of what stands before the layers, of each layer, and of what follows."""
    layers = [0] * len(model.language_model.model.layers)
    before = after = 0
    for name, tensor in model.state_dict().items():
        size = tensor.numel() * tensor.element_size()
        if name.startswith(_LAYERS):
            layers[int(name.removeprefix(_LAYERS).partition(".")[0])] += size
        elif name.startswith("language_model.") and not name.endswith(parts.EMBED_TOKENS):
            after += size
        else:
            before += size
    return before, layers, after


def split(before: int, layers: Sequence[int], after: int, size: int) -> list[range]:
    """Return the layers of each of ``size`` >= 2 stages, so that the largest is as small as can be.

    ``before`` bytes are the first stage's besides, ``after`` the last one's.
    """
    ends = [0, *accumulate(layers)]

    def fill(limit: int) -> list[range] | None:
        """Give each stage as much as ``limit`` allows."""
        stages: list[range] = []
        start = 0
        for stage in range(size):
            room = limit - (before if stage == 0 else 0) - (after if stage == size - 1 else 0)
            if room < 0:
                return None
            end = start
            while end < len(layers) and ends[end + 1] - ends[start] <= room:
                end += 1
            stages.append(range(start, end))
            start = end
        return stages if start == len(layers) else None

    low, high = 0, before + ends[-1] + after
    while low < high:
        middle = (low + high) // 2
        if fill(middle) is None:
            low = middle + 1
        else:
            high = middle
    stages = fill(low)
    assert stages is not None  # noqa: S101 - the sum of all always does
    return stages


class Later:
    """The stages after the first, as rank 0 sees them: hidden states go in, logits come out."""

    def __init__(self, ranks: Ranks, model: VitaModel) -> None:
        self._ranks = ranks
        self._vocab = model.language_model.config.vocab_size
        self._cache: Any = None

    def __call__(self, hidden: Tensor, cache: Any) -> Tensor:
        """Return logits [B, T', vocab], float32, of hidden states [B, T', hidden].

        With a cache the later stages keep one of their own, and only the last position's logits
        come back, [B, 1, vocab].
        """
        what = _PASS if cache is None else _STEP if cache is self._cache else _PREFILL
        self._cache = cache
        batch, length, _ = hidden.shape
        self._say(what, batch, length, _DTYPES.index(hidden.dtype))
        self._ranks.send(hidden, 1)
        positions = length if cache is None else 1
        shape = (batch, positions, self._vocab)
        return self._ranks.receive(shape, torch.float32, hidden.device, self._ranks.size - 1)

    def settle(self) -> None:
        """Tell the later stages that what is looked at has passed."""
        self._say(_SETTLE)

    def stop(self) -> None:
        """Tell the later stages that nothing follows."""
        self._cache = None
        self._say(_STOP)

    def _say(self, what: int, *shape: int) -> None:
        order = [what, *shape]
        self._ranks.send(torch.tensor(order + [0] * (_ORDER - len(order))), 1)


def load_stage(ranks: Ranks | None, load: Callable[[], VitaModel]) -> VitaModel:
    """Load a model: this rank's stage if there are ranks; raise on every rank what fails on any.

    The model of rank 0 then runs through all stages, if the others :func:`follow`.
    """
    if ranks is None:
        return load()
    with ranks.monitor.loading(), ranks.agreement():
        model = load()
    for module in model.modules():
        module.register_forward_pre_hook(ranks.monitor.tick)
    if ranks.rank == 0:
        model.later = Later(ranks, model)
    return model


def follow(
    model: VitaModel,
    ranks: Ranks,
    device: torch.device,
    settle: Callable[[], object] | None = None,
) -> None:
    """Run the stage of another rank than 0 for as long as rank 0 leads.

    ``settle`` is called once what is looked at has passed.
    """
    cache: Any = None
    width = model.language_model.config.hidden_size
    with torch.inference_mode():
        while True:
            order = ranks.receive((_ORDER,), torch.int64, torch.device("cpu"), ranks.rank - 1)
            if not ranks.is_last:
                ranks.send(order, ranks.rank + 1)
            what, batch, length, dtype = order.tolist()
            if what == _STOP:
                return
            if what == _SETTLE:
                if settle is not None:
                    settle()
                continue
            shape = (batch, length, width)
            hidden = ranks.receive(shape, _DTYPES[dtype], device, ranks.rank - 1)
            cache = DynamicCache() if what == _PREFILL else cache if what == _STEP else None
            hidden = model.hidden_of(hidden, cache)
            if not ranks.is_last:
                ranks.send(hidden, ranks.rank + 1)
                continue
            if cache is not None:
                hidden = hidden[:, -1:]
            ranks.send(model.language_model.lm_head(hidden).to(torch.float32), 0)
