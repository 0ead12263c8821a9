"""Translate the names of a checkpoint's tensors from one loader's to another's.

Names are those that upstream's loader binds (transformers 4.41), or those of transformers 5.6 and
newer: no level ``vision_model.`` in CLIP and SigLIP, Mixtral's experts fused (``modeling_mixtral``:
``gate_up_proj`` [experts, 2 · inner, width], w1 above w3, and ``down_proj`` [experts, width,
inner]).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.wrappers import unwrapped
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.match import is_harmless
from vita_ckpt.core.binding.modules import built_projector, is_audio
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import InputError

Shapes = Mapping[str, Shape]

_MOE: Final = re.compile(
    r"(?P<layer>model\.layers\.[0-9]+)\.block_sparse_moe\."
    r"(gate\.weight|experts\.(?P<expert>[0-9]+)\.w(?P<matrix>[123])\.weight)",
    re.ASCII,
)

# How transformers' own LLaVA names the modules, before and since 4.52.
_LLAVA_HF: Final = (
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.", parts.TOWER_MODULE),
    ("multi_modal_projector.linear_1.", f"{parts.PROJECTOR_PREFIX}0."),
    ("multi_modal_projector.linear_2.", f"{parts.PROJECTOR_PREFIX}2."),
    ("model.multi_modal_projector.linear_1.", f"{parts.PROJECTOR_PREFIX}0."),
    ("model.multi_modal_projector.linear_2.", f"{parts.PROJECTOR_PREFIX}2."),
)

# Parts whose tensors follow from files that a checkpoint need not have.
_UNLISTED: Final = (parts.AUDIO_ENCODER, parts.AUDIO_ADAPTER, parts.STATE_PREDICTOR)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A tensor as transformers 5.6 stores it, and the upstream tensors that it consists of.

    ``pieces`` are names, stacked along the first axis: ``shape`` [n, rows, columns] for several,
    their own shape for a single one.
    """

    name: str
    shape: Shape
    pieces: tuple[str, ...]


def library_spellings(shapes: Shapes) -> tuple[Spelling, ...]:
    """Return how transformers 5.6 stores tensors; ``shapes`` are theirs by upstream's names."""
    fused: dict[str, dict[tuple[int, str], str]] = {}
    found: list[Spelling] = []
    for name, shape in shapes.items():
        match = _MOE.fullmatch(name)
        if match is None or match["expert"] is None:
            found.append(Spelling(_library_name(name), shape, (name,)))
            continue
        kind = "down_proj" if match["matrix"] == "2" else "gate_up_proj"
        whole = f"{match['layer']}.mlp.experts.{kind}"
        fused.setdefault(whole, {})[int(match["expert"]), match["matrix"]] = name
    for whole, pieces in fused.items():
        in_order = tuple(pieces[key] for key in sorted(pieces))
        experts = len({expert for expert, _ in pieces})
        rows, columns = shapes[in_order[0]]
        shape = (experts, rows * len(pieces) // experts, columns)
        found.append(Spelling(whole, shape, in_order))
    return tuple(found)


def upstream_names(config: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return upstream's names for every stored tensor: several for one that holds fused experts.

    ``shapes`` are those of all tensors under their stored names. A name is changed only where the
    result is one that the loader builds (:mod:`~vita_ckpt.core.binding`), or that of a part whose
    tensors no config lists. Whether nothing is missing then is for the caller to check. Raises
    InputError ``tensor-names-collide`` where two tensors would get one name.
    """
    known = listed_shapes(config)
    spelled = {s.name: s for s in library_spellings(known)}
    found: dict[str, tuple[str, ...]] = {}
    rest: list[str] = []
    for name, shape in shapes.items():
        pieces = _known_pieces(name, shape, known, spelled)
        if pieces is None:
            rest.append(name)
        else:
            found[name] = pieces
    found |= _tower_names(config, {name: shapes[name] for name in rest})
    for name in rest:
        if name not in found:
            found[name] = (_unlisted_name(name),)
    _refuse_collisions(found)
    return {name: found[name] for name in shapes}


def _known_pieces(
    name: str, shape: Shape, known: Shapes, spelled: Mapping[str, Spelling]
) -> tuple[str, ...] | None:
    for candidate in (name, *_candidates(name)):
        if candidate in known:
            return (candidate,)
        spelling = spelled.get(candidate)
        if spelling is not None and spelling.shape == shape:
            return spelling.pieces
    return None


def _candidates(name: str) -> Iterator[str]:
    """Yield what a tensor under another name may be called by upstream, the likeliest first."""
    bare = unwrapped(name)
    yield bare
    for prefix, own in _LLAVA_HF:
        if bare.startswith(prefix):
            yield own + bare.removeprefix(prefix)
    if bare.startswith("model."):
        yield bare.removeprefix("model.")  # a model in a model
    yield f"model.{bare}"  # the inner model alone


def listed_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the tensors of language model and projector that a config determines, and a head."""
    known = dict(bind(config, {}).part(parts.LANGUAGE_MODEL).wanted)
    if parts.EMBED_TOKENS in known:
        known.setdefault(parts.LM_HEAD, known[parts.EMBED_TOKENS])  # stored beside a tied table
    projector = built_projector(config) if "mm_vision_tower" in config else None
    if projector is not None:
        shapes = projectors.expected_shapes(projector)
        known |= {parts.PROJECTOR_PREFIX + name: shape for name, shape in shapes.items()}
        known |= bind(config, {}).part(parts.IMAGE_NEWLINE).wanted
    return known


def lone_tower(config: Mapping[str, Any]) -> towers.Tower | None:
    """Return the tower whose own config it is; None for a model, one with a tower in it too."""
    return None if "vision_config" in config else towers.tower_of_config(config)


def _tower_names(config: Mapping[str, Any], shapes: Shapes) -> dict[str, tuple[str, ...]]:
    """Return the names of the tower's tensors among ``shapes``, in a model or on their own."""
    if lone_tower(config) is not None:
        bare = {unwrapped(name): name for name in shapes}
        own = {name: shapes[stored] for name, stored in bare.items()}
        names = towers.standalone_names(own)
        return {bare[name]: (place,) for name, place in names.items()}
    below: dict[str, str] = {}
    clashing: dict[str, tuple[str, ...]] = {}
    for name in shapes:
        inside = next((c for c in _candidates(name) if c.startswith(parts.TOWER_MODULE)), None)
        if inside is None:
            continue
        own_name = inside.removeprefix(parts.TOWER_MODULE)
        if own_name in below:
            clashing |= {below[own_name]: (inside,), name: (inside,)}
        below.setdefault(own_name, name)
    _refuse_collisions(clashing)
    stored = towers.stored_names({own: shapes[name] for own, name in below.items()})
    return {below[own]: (parts.TOWER_MODULE + place,) for own, place in stored.items()}


def _unlisted_name(name: str) -> str:
    bare = unwrapped(name)
    if parts.part_of(bare) in _UNLISTED or is_harmless(bare):
        return bare
    candidates = (candidate for candidate in _candidates(name) if is_audio(candidate))
    return next(candidates, name)


def _library_name(name: str) -> str:
    match = _MOE.fullmatch(name)
    if match is not None:
        return f"{match['layer']}.mlp.gate.weight"
    for family in towers.FAMILIES.values():
        if family.transformers_class is None:
            continue
        for prefix in (parts.TOWER_MODULE + family.stored_prefix, family.standalone_prefix):
            if name.startswith(prefix):
                return prefix.removesuffix("vision_model.") + name.removeprefix(prefix)
    return name


def _refuse_collisions(names: Mapping[str, tuple[str, ...]]) -> None:
    taken: dict[str, str] = {}
    for stored, pieces in names.items():
        for piece in pieces:
            other = taken.setdefault(piece, stored)
            if other != stored:
                raise InputError(
                    "tensor-names-collide",
                    stored,
                    expected=f"one tensor that becomes {piece}",
                    got=f"{other} too",
                    hint="remove one of the two: which one is meant cannot be known",
                )
