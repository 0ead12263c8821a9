"""Decide where weights go: one device, several GPUs, or streamed from the files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import convert_file_size_to_int

from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import UsageError
from vita_ckpt.model.vita import VitaModel
from vita_ckpt.model.weights import DeviceMap, device_of
from vita_ckpt.storage.system import memory

# The share of the free memory that weights may take; the rest is for activations, and on the CPU
# for whatever else runs there.
_GPU_SHARE: Final = 0.9
_CPU_SHARE: Final = 0.8
# On the CPU this many bytes are taken in any case.
_RESIDENT_ON_CPU: Final = 512 << 20


@dataclass(frozen=True)
class Placement:
    """The devices of a model.

    ``device_map`` places its weights, and is None if they stream. ``device`` is the device to which
    streamed weights are moved.
    """

    device: torch.device
    device_map: DeviceMap | None


def place(model: VitaModel, offered: Iterable[tuple[torch.device, int]]) -> Placement:
    """Place a model on the first device that holds it whole, else on all of them together.

    ``offered`` yields devices with the bytes that weights may take there. Later devices are not
    queried if an earlier one suffices. Several devices are filled by accelerate in the order in
    which the model runs, with room for one layer left on the first. Decoder layers, the vision
    tower and the projector are never split.
    """
    state = model.state_dict()
    needed = sum({s: state[n].nbytes for n, s in model.stored_names().items()}.values())
    room: dict[torch.device, int] = {}
    for device, size in offered:
        room[device] = size
        if needed <= size:
            return Placement(device, {"": device})
    first, *others = room
    if not others:
        return Placement(first, None)
    whole = (
        model.language_model.model.layers[0],
        *(model.vision_tower, model.mm_projector, model.audio_encoder),
    )
    found = infer_auto_device_map(
        model,
        max_memory={device.index: size for device, size in room.items()},
        no_split_module_classes=[type(module).__name__ for module in whole],
        offload_buffers=True,  # nothing is offloaded: without it accelerate warns about buffers
    )
    if "disk" in found.values():
        return Placement(first, None)
    devices = {device.index: device for device in room}
    return Placement(first, {name: devices[index] for name, index in found.items()})


def offered(
    device: str | torch.device,
    max_memory: Mapping[Any, int | str],
    count: int,
    free: Callable[[int | None], int],
) -> Iterator[tuple[torch.device, int]]:
    """Return the devices that ``device`` names, with the bytes that weights may take there.

    ``"auto"`` and ``"cuda"`` are the GPUs that ``max_memory`` names, by default all ``count`` of
    them; ``"auto"`` is the CPU if there are no GPUs. ``free`` returns the free bytes of a GPU, or
    with None those of the CPU. It is called only when a device is drawn from the iterator, because
    the call itself takes GPU memory. Raises UsageError for a device that is not available and for
    invalid limits.
    """
    limits = {key: _bytes(key, size) for key, size in max_memory.items()}
    name = str(device)
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise _unknown(device) from error
    if where.type == "cpu":
        room = limits.get("cpu")
        if room is None:
            room = max(_RESIDENT_ON_CPU, int(free(None) * _CPU_SHARE))
        return iter([(where, room)])
    if where.type != "cuda":
        raise _unknown(device)
    named = [key for key in limits if isinstance(key, int)] or list(range(max(count, 1)))
    indices = named if where.index is None else [where.index]
    for index in indices:
        if not 0 <= index < count:
            raise UsageError(
                "no-such-device",
                f"cuda:{index}",
                expected="a GPU that torch sees",
                got=f"{count} of them",
                hint="use --device cpu",
            )
    return (
        (
            torch.device("cuda", index),
            limits[index] if index in limits else int(free(index) * _GPU_SHARE),
        )
        for index in indices
    )


def free_memory(index: int | None) -> int:
    """Return the free bytes of a GPU, or with None those of the CPU."""
    return memory.free_memory() if index is None else torch.cuda.mem_get_info(index)[0]


def dispatch(model: VitaModel, device_map: DeviceMap) -> None:
    """Add hooks that move every module's inputs to the device of its weights."""
    main = device_of("language_model.model.embed_tokens", device_map)
    # Each layer's keys and values stay on its device. The hooks are forced because they are needed
    # on any devices.
    cache = ["past_key_values", "past_key_value"]
    dispatch_model(model, dict(device_map), main_device=main, skip_keys=cache, force_hooks=True)


def _bytes(key: object, size: int | str) -> int:
    try:
        return int(size) if str(size).isdecimal() else int(convert_file_size_to_int(size))
    except ValueError as error:
        raise UsageError(
            "invalid-max-memory", f"{key}={size}", expected="bytes, or a size such as 4GB"
        ) from error


def _unknown(device: object) -> UsageError:
    return UsageError(
        "unknown-device",
        device,
        expected="auto, cpu, cuda or cuda:N",
        hint=did_you_mean(str(device).replace("gpu", "cuda"), ("auto", "cpu", "cuda")),
    )
