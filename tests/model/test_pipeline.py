"""Stages, one after the other, are the model: bit for bit."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache

from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_tower
from tests.builders import lively
from tests.conftest import BASES, GOLDEN
from vita_ckpt.model.load import load_model
from vita_ckpt.model.pipeline import split
from vita_ckpt.model.vita import VitaModel

STREAM: Any = {"cpu": 0}


def stages(
    root: Path, size: int, memory: Any, observed: list[str] | None = None
) -> list[VitaModel]:
    def observe(name: str, _: Tensor) -> None:
        if observed is not None:
            observed.append(name)

    return [
        load_model(root, device="cpu", max_memory=memory, stage=(rank, size), observe=observe)
        for rank in range(size)
    ]


def through(models: list[VitaModel], hidden: Tensor, caches: list[Any]) -> Tensor:
    for model, cache in zip(models, caches, strict=True):
        hidden = model.hidden_of(hidden, cache)
    if caches[0] is not None:
        hidden = hidden[:, -1:]
    logits: Tensor = models[-1].language_model.lm_head(hidden)
    return logits.to(torch.float32)


@torch.inference_mode()
def assert_equal(root: Path, size: int, memory: Any, ids: Tensor, pixels: Tensor | None) -> None:
    """Without a cache, and two tokens with one."""
    whole = load_model(root, device="cpu", max_memory=memory)
    models = stages(root, size, memory)

    def embeds(model: VitaModel) -> Tensor:
        return model.embed_tokens(ids) if pixels is None else model.embed_multimodal(ids, pixels)

    assert torch.equal(embeds(models[0]), embeds(whole))
    expected = whole(input_ids=ids, pixel_values=pixels).logits
    assert torch.equal(through(models, embeds(whole), [None] * size), expected)
    cache, caches = DynamicCache(), [DynamicCache() for _ in models]
    token = embeds(whole)
    for _ in range(3):
        expected = whole.logits_of(token, cache)
        assert torch.equal(through(models, token, caches), expected)
        token = whole.embed_tokens(expected[:, -1].argmax(-1, keepdim=True))


@pytest.mark.parametrize("case", BASES[:7])
@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_stages_are_the_model(case: str, size: int, memory: Any) -> None:
    inputs = load_file(GOLDEN / case / "inputs.safetensors")
    root = GOLDEN / case / "base"
    assert_equal(root, size, memory, inputs["input_ids"], inputs["pixel_values"])


@pytest.mark.parametrize("model_type", ["vita-Qwen2", "vita-Mistral"])
def test_windows_and_tied_tables(tmp_path: Path, model_type: str) -> None:
    """Some layers of Qwen2 slide and some do not: a stage has its own ones."""
    config = {
        "sliding_window": 4,
        "use_sliding_window": True,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    }
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    spec = Spec(model_type=model_type, layers=3, config=config)
    root = lively(write_checkpoint(tmp_path / "c", spec))
    assert_equal(root, 3, None, torch.arange(9)[None], None)


@pytest.mark.parametrize("memory", [None, STREAM], ids=["resident", "streamed"])
def test_every_tensor_is_read_by_one_rank(tmp_path: Path, memory: Any) -> None:
    observed: list[str] = []
    for model in stages(GOLDEN / "A1" / "base", 2, memory, observed):
        model.observe_rest()
    expected = load_model(GOLDEN / "A1" / "base", device="cpu").stored_names().values()
    assert sorted(observed) == sorted(set(expected))


SIZES = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@given(st.integers(0, 50), SIZES, st.integers(0, 50), st.integers(2, 5))
def test_no_split_has_a_smaller_largest_stage(
    before: int, layers: list[int], after: int, size: int
) -> None:
    found = split(before, layers, after, size)
    assert [index for stage in found for index in stage] == list(range(len(layers)))
    assert len(found) == size

    def largest(ends: list[int]) -> int:
        sums = [sum(layers[start:end]) for start, end in pairwise([0, *ends, len(layers)])]
        sums[0] += before
        sums[-1] += after
        return max(sums)

    def every(count: int, start: int) -> list[list[int]]:
        if count == 0:
            return [[]]
        return [
            [end, *rest] for end in range(start, len(layers) + 1) for rest in every(count - 1, end)
        ]

    assert largest([stage.stop for stage in found[:-1]]) == min(map(largest, every(size - 1, 0)))
