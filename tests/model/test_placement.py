"""Where weights go, decided without a GPU, and that a model spread over devices runs the same."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from fixtures.builder import (
    FULL,
    Spec,
    TowerSpec,
    checkpoint_config,
    tower_config,
    write_checkpoint,
    write_tower,
)
from tests.conftest import BASES, GOLDEN
from vita_ckpt import Stores, UsageError, load_model, open_checkpoint
from vita_ckpt.model.placement import Placement, dispatch, offered, place
from vita_ckpt.model.vita import VitaModel, build
from vita_ckpt.model.weights import DeviceMap, Weights, device_of, load_resident, on_meta
from vita_ckpt.storage.reading.tower import read_tower_config

GB = 1 << 30
CPU = torch.device("cpu")
CPUS = [torch.device("cpu", index) for index in range(2)]
GPUS = [torch.device("cuda", index) for index in range(4)]


def test_devices_and_what_weights_may_take_there() -> None:
    free: dict[int | None, int] = {None: 50 * GB, 0: 10 * GB, 1: 20 * GB}

    def found(device: Any, memory: Any = None, count: int = 2) -> list[tuple[str, int]]:
        return [(str(d), n) for d, n in offered(device, memory or {}, count, free.__getitem__)]

    assert found("auto") == found("cuda") == [("cuda:0", 9 * GB), ("cuda:1", 18 * GB)]
    assert found("auto", count=0) == found("cpu") == [("cpu", 40 * GB)]
    assert list(offered("cpu", {}, 0, lambda _: 0)) == [(torch.device("cpu"), GB // 2)]
    assert found("cpu", {"cpu": "4GiB", 0: "1GB"}) == [("cpu", 4 * GB)]
    assert found("cuda:1") == found(torch.device("cuda", 1)) == [("cuda:1", 18 * GB)]
    assert found("cuda:1", {0: 5}) == [("cuda:1", 18 * GB)]
    assert found("auto", {"cpu": 0}) == found("auto")
    assert found("auto", {1: "3GB", 0: 7}) == [("cuda:1", 3 * 10**9), ("cuda:0", 7)]
    for device, memory, code in (
        ("cuda:2", None, "no-such-device"),
        ("cuda", {2: 5}, "no-such-device"),
        ("cuda", {-1: 5}, "no-such-device"),
        ("mps", None, "unknown-device"),
        ("tpux", None, "unknown-device"),
        ("cuda", {0: "lots"}, "invalid-max-memory"),
    ):
        with pytest.raises(UsageError, match=code):
            offered(device, memory or {}, 2, free.__getitem__)
    with pytest.raises(UsageError, match="no-such-device"):
        offered("cuda", {}, 0, free.__getitem__)


@pytest.fixture(scope="module")
def full() -> VitaModel:
    """VITA-1.5 on the meta device: 15.9 GB in bf16."""
    tower = tower_config(FULL.tower) | {"num_attention_heads": 16}
    with on_meta(torch.bfloat16):
        return VitaModel(checkpoint_config(FULL, "BF16"), tower)


def check(model: VitaModel, placement: Placement, room: list[tuple[torch.device, int]]) -> None:
    """Every tensor has a place, no device has more than it may, nothing whole is split."""
    assert placement.device_map is not None
    used = dict.fromkeys(dict(room), 0)
    layers: dict[str, set[torch.device]] = {}
    for name, tensor in model.state_dict().items():
        device = device_of(name, placement.device_map)
        used[device] += tensor.nbytes
        pieces = name.split(".")
        deep = 4 if "layers" in pieces[:4] and pieces[0] == "language_model" else 1
        layers.setdefault(".".join(pieces[:deep]), set()).add(device)
    assert all(used[device] <= size for device, size in room)
    del layers["language_model"]  # tables and the last norm
    assert all(len(devices) == 1 for devices in layers.values())


def test_the_first_device_that_holds_it_whole(full: VitaModel) -> None:
    def asked() -> Iterator[tuple[torch.device, int]]:
        yield GPUS[0], 10 * GB
        yield GPUS[1], 16 * GB
        raise AssertionError("the third was asked for nothing")

    assert place(full, asked()) == Placement(GPUS[1], {"": GPUS[1]})
    assert place(full, [(CPU, 16 * GB)]) == Placement(CPU, {"": CPU})


def test_devices_together(full: VitaModel) -> None:
    room = [(GPUS[0], 10 * GB), (GPUS[1], 8 * GB)]
    placement = place(full, room)
    check(full, placement, room)
    assert placement.device_map is not None
    assert device_of("language_model.model.embed_tokens", placement.device_map) == GPUS[0]
    assert device_of("language_model.lm_head", placement.device_map) == GPUS[1]
    one, two = {"": GPUS[0]}, dict(placement.device_map)
    assert set(two.values()) == set(GPUS[:2])
    assert device_of("language_model.lm_head", one) == GPUS[0]


def test_what_fits_nowhere_streams(full: VitaModel) -> None:
    for room in ([8, 6], [4, 4, 4], [0, 0], [10]):
        devices = list(zip(GPUS, (size * GB for size in room), strict=False))
        assert place(full, devices) == Placement(GPUS[0], None)
    assert place(full, [(CPU, GB)]) == Placement(CPU, None)


@given(st.lists(st.integers(0, 14 * GB), min_size=2, max_size=4))
def test_no_device_gets_more_than_it_may(full: VitaModel, sizes: list[int]) -> None:
    room = list(zip(GPUS, sizes, strict=False))
    placement = place(full, room)
    if placement.device_map is not None:
        check(full, placement, room)
    else:  # the first is left a layer, and every device may be left less than one
        largest = 1_200_000_000
        assert sum(sizes) < 16 * GB + largest * (len(sizes) + 1)


def in_two(model: VitaModel, devices: list[torch.device]) -> DeviceMap:
    """Table and first layer on one device, all else on another."""
    first, second = devices
    body = model.language_model.model
    found = {f"language_model.model.{name}": second for name, _ in body.named_children()}
    del found["language_model.model.layers"]
    found |= {f"language_model.model.layers.{n}": second for n in range(len(body.layers))}
    found |= dict.fromkeys(("language_model.lm_head", "vision_tower", "mm_projector"), second)
    for name in ("embed_tokens", "layers.0"):
        found[f"language_model.model.{name}"] = first
    return found


def spread(root: Path, devices: list[torch.device]) -> VitaModel:
    """A checkpoint loaded onto two devices."""
    checkpoint = open_checkpoint(root)
    model = build(checkpoint, read_tower_config(checkpoint, Stores()), torch.float32)
    found = in_two(model, devices)
    if devices == CPUS:  # tensors that have values forget the number of a processor
        found = dict.fromkeys(found, CPU)
    with Weights(checkpoint) as weights:
        load_resident(model, model.stored_names(), weights, found)
    dispatch(model, found)
    return model


def results(model: VitaModel, root: Path) -> list[torch.Tensor]:
    inputs = load_file(root.parent / "inputs.safetensors")
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    found = [
        model.encode_images(pixels),
        model.embed_multimodal(ids, pixels),
        model(input_ids=ids, pixel_values=pixels).logits,
        model(input_ids=inputs["text_input_ids"]).logits,
    ]
    cache = DynamicCache()
    embeds = model.embed_tokens(inputs["text_input_ids"][:, :3])
    with torch.no_grad():
        found += [model.logits_of(embeds[:, :2], cache), model.logits_of(embeds[:, 2:], cache)]
    assert {tensor.device for tensor in found} == {model.device}
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("case", ["A1", "A4", "A5", "A6"])
def test_a_spread_model_computes_the_same(case: str) -> None:
    """Both devices are the processor: accelerate's hooks run as they do between GPUs."""
    root = GOLDEN / case / "base"
    model = spread(root, CPUS)
    assert hasattr(model.language_model.model.layers[0], "_hf_hook")
    pairs = zip(results(model, root), results(load_model(root, device="cpu"), root), strict=True)
    assert all(torch.equal(found, wanted) for found, wanted in pairs)


def test_tied_embeddings_are_shared_on_one_device_and_copied_to_two(tmp_path: Path) -> None:
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", Spec(tied=True)))
    model = build(checkpoint, read_tower_config(checkpoint, Stores()), torch.float32)
    for devices, shared in (({"": CPU}, True), (in_two(model, CPUS), False)):
        with Weights(checkpoint) as weights:
            load_resident(model, model.stored_names(), weights, devices)
        table = model.language_model.model.embed_tokens.weight
        head = model.language_model.lm_head.weight
        assert torch.equal(table, head)
        assert (table.data_ptr() == head.data_ptr()) == shared


@pytest.mark.parametrize("case", ["A1", "A2", "A3", "A5", "A6"])
def test_no_operation_mixes_devices(case: str) -> None:
    """With tensors that have a device and no values: torch refuses what mixes two devices.

    Mixtral's routing depends on values.
    """
    checkpoint = open_checkpoint(GOLDEN / case / "base")
    model = build(checkpoint, read_tower_config(checkpoint, Stores()), torch.float32)
    found = in_two(model, CPUS)
    with FakeTensorMode(), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate compares addresses
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    place_ = device_of(f"{path}.{name}", found)
                    empty = torch.empty(parameter.shape, device=place_)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        dispatch(model, found)
        tower = model.vision_tower
        assert tower is not None
        pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
        assert tower(pixels).device == CPUS[1]
        images = model.encode_images(pixels)
        assert images.device == model.device == CPUS[0]
        assert model.language_model.lm_head.weight.device == CPUS[1]
        logits = model.logits_of(images)
        assert (logits.device, logits.dtype) == (CPUS[0], torch.float32)


def test_convolutions_are_exact_in_float32() -> None:
    """torch lets cuDNN round them to ten bits, too few to agree with the CPU."""
    model = load_model(GOLDEN / "A1" / "base", device="cpu")
    seen: list[bool] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert model.vision_tower is not None
    assert torch.backends.cudnn.allow_tf32
    model.vision_tower(torch.zeros(1, 3, 56, 56))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("case", BASES)
@pytest.mark.parametrize("streams", [False, True], ids=["resident", "streamed"])
def test_buffers_that_no_file_holds_follow_the_weights(case: str, streams: bool) -> None:
    """The meta device stands in for a GPU, where a buffer left on the CPU stops the pass."""
    root = GOLDEN / case / ("swapped_by_upstream" if case == "A8" else "base")
    checkpoint = open_checkpoint(root)
    model = build(checkpoint, read_tower_config(checkpoint, Stores()), torch.float32)
    there = torch.device("meta")
    assert any(not buffer.is_meta for buffer in model.buffers())
    with Weights(checkpoint) as weights:
        if streams:
            model.stream(weights, torch.float32, there)
        else:
            load_resident(model, model.stored_names(), weights, {"": there})
    stored = model.state_dict().keys()
    left = [name for name, one in model.named_buffers() if name not in stored and not one.is_meta]
    assert left == []


def nmse(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted) ** 2).sum() / (wanted**2).sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", BASES)
@pytest.mark.parametrize("memory", [None, {0: 0}], ids=["resident", "streamed"])
def test_a_gpu_agrees_with_the_cpu(case: str, memory: Any) -> None:
    root = GOLDEN / case / ("swapped_by_upstream" if case == "A8" else "base")
    model = load_model(root, device="cuda", max_memory=memory)
    assert model.streams == (memory is not None)
    root = GOLDEN / case / root.name
    pairs = zip(results(model, root), results(load_model(root, device="cpu"), root), strict=True)
    assert all(nmse(found, wanted) < 1e-9 for found, wanted in pairs)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("case", ["A1", "A4", "A5", "A6"])
def test_two_gpus_agree_with_the_cpu(case: str) -> None:
    root = GOLDEN / case / "base"
    pairs = zip(
        results(spread(root, GPUS[:2]), root),
        results(load_model(root, device="cpu"), root),
        strict=True,
    )
    assert all(nmse(found, wanted) < 1e-9 for found, wanted in pairs)
