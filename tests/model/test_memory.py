"""The memory that is estimated is the memory that torch takes."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from fixtures.builder import TowerSpec, write_tower
from tests.conftest import GOLDEN
from vita_ckpt import inspect, load_model


@pytest.mark.parametrize("case", ["A2", "A7", "U1"])
def test_the_cache_of_a_model(case: str) -> None:
    base = GOLDEN / case / "base"
    memory = inspect(base, dtype="float32", batch=2).memory
    assert memory is not None
    model = load_model(base, device="cpu", dtype="float32")
    cache: Any = DynamicCache()
    with torch.inference_mode():
        embeds = model.embed_tokens(torch.zeros(2, 10, dtype=torch.long))
        model.logits_of(embeds, cache)
    layers = getattr(cache, "layers", None)
    pairs = (
        list(zip(cache.key_cache, cache.value_cache, strict=True))
        if layers is None
        else [(layer.keys, layer.values) for layer in layers]
    )
    taken = sum(tensor.nbytes for pair in pairs for tensor in pair)
    assert memory.kv_cache_per_1000_tokens == taken * 100


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most bytes that the results of operations take at a time."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._sizes = {storage._cdata: 0 for storage in self._known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


@pytest.mark.parametrize(("family", "model"), [("clip", "CLIP"), ("siglip", "Siglip")])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_activations_of_a_tower(family: str, model: str, batch: int, tmp_path: Path) -> None:
    if not getattr(getattr(transformers, f"{model}VisionModel"), "_supports_sdpa", False):
        pytest.skip("this version has eager attention only, which takes more")
    sizes = TowerSpec(family, width=128, layers=6, mlp=512, patch_size=8, image_size=96)
    path = write_tower(tmp_path / "tower", sizes)
    tower = getattr(transformers, f"{model}VisionModel").from_pretrained(path)
    pixels = torch.zeros(batch, 3, 96, 96)
    live = Live([*tower.parameters(), *tower.buffers(), pixels])
    with torch.no_grad(), live:
        kept = tower(pixels, output_hidden_states=True)
    memory = inspect(path, batch=batch).memory
    assert memory is not None
    assert memory.tower_activations is not None
    assert len(kept.hidden_states) == 7
    # CLIP's activation function needs its inner state three times.
    assert 0.75 < memory.tower_activations / live.peak < 1.1
