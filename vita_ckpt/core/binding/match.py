"""Match stored tensors with those that are built, by whole names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, COUNTER
from vita_ckpt.core.anatomy.families import TowerSource
from vita_ckpt.core.binding.loaders import Loader
from vita_ckpt.core.binding.modules import is_tied
from vita_ckpt.core.binding.result import Binding, PartBinding, PartSource, Shapes, Stop, Tensors
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dtype import is_real
from vita_ckpt.core.tensor_match import KeyMismatch

# What every loader drops without harm: tables that are computed anew when the model is built.
_HARMLESS: Final = (".rotary_emb.inv_freq", ".embeddings.position_ids")
# The released code builds no state predictor: with its tensors or without, the model is the same.
_PREDICTS_STATES: Final = "vita-fo-Qwen2"
# What every causal language model has its layers below (base_model_prefix).
_BASE_PREFIX: Final = "model"
# No name starts with it.
_NOTHING: Final = "\0"
_PREDICTOR: Final = "predictor_head."


def is_harmless(name: str) -> bool:
    """Return whether every loader drops a tensor of this name, and the model is the same."""
    return name.endswith(_HARMLESS)


def match(
    loader: Loader,
    config: Mapping[str, Any],
    tensors: Tensors,
    wanted: Mapping[str, Shapes],
    stop: Stop | None,
    source: TowerSource = TowerSource.CHECKPOINT,
    unread: Collection[str] = (),
) -> Binding:
    """Match stored tensors with the built ones, part by part."""
    places = {name: shape for shapes in wanted.values() for name, shape in shapes.items()}
    tower_is_read = source is not TowerSource.DIRECTORY
    if not tower_is_read:
        for name in wanted.get(parts.VISION_TOWER, ()):
            del places[name]
    is_base = not any(name.startswith(_BASE_PREFIX) for name in tensors)
    if is_base and stop is None and loader.is_old:
        # 4.41.1 takes names without model. for a base model, which has no head.
        head = next((name for name in tensors if name in places), None)
        if head is not None:
            detail = f"{head} beside names without model.: taken for corrupt"
            stop = Stop("foreign-prefix", detail)
    rest = {n: t for n, t in tensors.items() if n not in unread} if unread else tensors
    found, left_out, strange = _place(loader, config, rest, places, is_base=is_base)
    left_out += unread
    stored = {place: name for name, place in found.items()}
    bound: dict[str, PartBinding] = {}
    for part, shapes in wanted.items():
        read: Shapes = shapes if part != parts.VISION_TOWER or tower_is_read else {}
        bound[part] = _bind_part(read, tensors, stored, strange.pop(part, []))
    if parts.VISION_TOWER in bound:
        bound[parts.VISION_TOWER] = _tower_bound(bound, wanted, tensors, is_read=tower_is_read)
    if parts.AUDIO_ENCODER in bound:
        bound[parts.AUDIO_ENCODER] = _audio_bound(bound[parts.AUDIO_ENCODER])
    if parts.IMAGE_NEWLINE in bound and bound[parts.IMAGE_NEWLINE].mismatch.missing:
        newline = replace(bound[parts.IMAGE_NEWLINE], source=PartSource.UNFILLED)
        bound[parts.IMAGE_NEWLINE] = newline
    for part, names in strange.items():
        mismatch = KeyMismatch((), tuple(names), ())
        bound[part] = PartBinding({}, mismatch, PartSource.NOT_BUILT)
    return Binding(
        bound, found, tuple(left_out), stop, loader.family is not None, family=loader.family
    )


def _place(
    loader: Loader,
    config: Mapping[str, Any],
    tensors: Tensors,
    places: Collection[str],
    *,
    is_base: bool,
) -> tuple[dict[str, str], list[str], dict[str, list[str]]]:
    """Return what binds by its stored name, what is harmless, and what is unexpected by part."""
    found: dict[str, str] = {}
    left_out: list[str] = []
    strange: dict[str, list[str]] = {}
    for name in tensors:
        if name in places:
            found[name] = name
        elif is_base and f"{_BASE_PREFIX}.{name}" in places:
            found[name] = f"{_BASE_PREFIX}.{name}"
        elif _is_left_out(loader, config, name):
            left_out.append(name)
        else:
            strange.setdefault(_part_of(name), []).append(name)
    return found, left_out, strange


def _bind_part(
    wanted: Shapes, tensors: Tensors, stored: Mapping[str, str], unexpected: Iterable[str]
) -> PartBinding:
    missing: list[str] = []
    mismatched: list[tuple[str, Shape, Shape]] = []
    integers: list[str] = []
    for place, shape in wanted.items():
        name = stored.get(place)
        if name is None:
            missing.append(place)
            continue
        tensor = tensors[name]
        if tensor.shape != shape:
            mismatched.append((name, shape, tensor.shape))
        elif not is_real(tensor.dtype) and not name.endswith(COUNTER):
            integers.append(name)
    lacks_all = bool(missing) and len(missing) == len(wanted)
    return PartBinding(
        wanted,
        KeyMismatch(tuple(missing), tuple(unexpected), tuple(mismatched)),
        PartSource.RANDOM if lacks_all else PartSource.CHECKPOINT,
        tuple(integers),
    )


def _tower_bound(
    bound: Mapping[str, PartBinding],
    wanted: Mapping[str, Shapes],
    tensors: Tensors,
    *,
    is_read: bool,
) -> PartBinding:
    """Return the tower's binding with where its values come from: nothing draws them at random."""
    part = bound[parts.VISION_TOWER]
    shapes = wanted[parts.VISION_TOWER]
    if not is_read:
        return PartBinding(shapes, part.mismatch, PartSource.TOWER_DIRECTORY)
    own = shapes or [name for name in tensors if name.startswith(parts.TOWER_MODULE)]
    filled = bool(own) and len(part.mismatch.missing) < len(own)
    source = PartSource.CHECKPOINT if filled else PartSource.UNFILLED
    return PartBinding(shapes, part.mismatch, source, part.integers)


def _audio_bound(part: PartBinding) -> PartBinding:
    """Return the audio encoder's binding with where its values come from: final.pt's are not read.

    One that nothing determines lacks all of its tensors.
    """
    filled = len(part.mismatch.missing) < len(part.wanted)
    if part.wanted:
        return replace(part, source=PartSource.CHECKPOINT if filled else PartSource.UNFILLED)
    mismatch = replace(part.mismatch, missing=(AUDIO_PREFIX + "*",))
    return replace(part, mismatch=mismatch, source=PartSource.UNFILLED)


def _is_left_out(loader: Loader, config: Mapping[str, Any], name: str) -> bool:
    """Return whether the loader drops a tensor without harm."""
    if name == parts.LM_HEAD:
        return loader.gives_module or is_tied(config)
    if name.startswith(_PREDICTOR) and config.get("model_type") == _PREDICTS_STATES:
        return True
    if loader.family is not None and name.startswith(loader.family.dropped or _NOTHING):
        return True
    return is_harmless(name)


def _part_of(name: str) -> str:
    """Return the part among whose unexpected tensors a name is reported."""
    part = parts.part_of(name)
    if part in (parts.OTHER, parts.LORA):
        return parts.LANGUAGE_MODEL
    return parts.AUDIO_ENCODER if part == parts.AUDIO_ADAPTER else part
