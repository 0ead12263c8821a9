"""Weight files are split as huggingface_hub splits them."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given
from hypothesis import strategies as st

from vita_ckpt.core.sharding import model_order, parse_size, shard_name, split
from vita_ckpt.errors import UsageError

# What the library calls the function that gives a tensor's size; renamed since the oldest version.
SIZE_OF = next(
    name
    for name in signature(split_state_dict_into_shards_factory).parameters
    if name in ("get_storage_size", "get_tensor_size")
)
SIZES = st.lists(st.integers(0, 40), max_size=30)


@given(sizes=SIZES, most=st.integers(1, 60))
def test_the_files_are_those_of_huggingface_hub(sizes: list[int], most: int) -> None:
    named = {f"t{number}": size for number, size in enumerate(sizes)}
    size_of: dict[str, Any] = {SIZE_OF: lambda size: size}
    theirs = split_state_dict_into_shards_factory(
        named,
        **size_of,
        filename_pattern="model{suffix}.safetensors",
        get_storage_id=lambda size: None,
        max_shard_size=most,
    )
    files = split(named, most)
    ours = {
        shard_name("safetensors", number, len(files)): names
        for number, names in enumerate(files, 1)
    }
    assert ours == (theirs.filename_to_tensors if sizes else {})


def test_sizes_and_names() -> None:
    assert [parse_size(text) for text in ("0", "17", "5GB", "200MB", "1kb", "2TB")] == [
        *(0, 17, 5 * 10**9, 200 * 10**6, 1000, 2 * 10**12)
    ]
    for text in ("", "GB", "-1", "1.5GB", "5GiB", "5 G"):
        with pytest.raises(UsageError, match="invalid-size"):
            parse_size(text)
    assert split({"a": 3, "b": 4}, 0) == [["a", "b"]]
    assert shard_name("torch", 1, 1) == "pytorch_model.bin"
    assert shard_name("torch", 2, 12) == "pytorch_model-00002-of-00012.bin"


def test_the_order_is_that_of_a_model() -> None:
    names = [
        "model.embed_tokens.weight",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.norm.weight",
        "model.mm_projector.0.weight",
        "model.vision_tower.vision_tower.encoder.layers.1.ls1",
        "strange",
        "9",
        "lm_head.weight",
    ]
    assert sorted(sorted(names), key=model_order) == sorted(names, key=model_order)
    in_order = sorted(names, key=model_order)
    assert in_order[:4] == names[:4]
    assert in_order[-1] == "lm_head.weight"
