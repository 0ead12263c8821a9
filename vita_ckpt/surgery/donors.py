"""Find the projector of a donor by the names of its tensors, whatever has wrapped it."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeVar

from vita_ckpt.core.anatomy import parts, projectors
from vita_ckpt.core.anatomy.wrappers import (
    ANYWHERE,
    FLAT,
    IN_FRONT,
    MODULES_TO_SAVE,
    ORIGINAL_MODULE,
)
from vita_ckpt.core.checkpoint import Checkpoint, Stored, source_of
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.quantisation import refuse_codes
from vita_ckpt.core.training_state import file_of_training_state
from vita_ckpt.errors import AdapterError, printable

KEYWORD: Final = "mm_projector"
# TinyLLaVA's: a module in a module.
_TINY_LLAVA: Final = "connector._connector"
_T = TypeVar("_T")
# How many names a message has.
_LISTED: Final = 4

# The projector of transformers' LLaVA, and the names of mlp2x_gelu.
_LLAVA_HF: Final = "multi_modal_projector"
_OF_LLAVA_HF: Final = {
    f"linear_{layer}.{kind}": f"{2 * (layer - 1)}.{kind}"
    for layer in (1, 2)
    for kind in ("weight", "bias")
}
# InternVL's projector: a LayerNorm, then linear layers.
_INTERNVL: Final = "mlp1"


@dataclass(frozen=True, slots=True)
class DonorProjector:
    """The projector of a donor: tensors by upstream's names, and the donor's names of these.

    ``others`` are the names of the donor's tensors that do not belong to a projector. ``notes`` say
    how names were understood that are not upstream's.
    """

    tensors: Mapping[str, Stored]
    origins: Mapping[str, str]
    others: tuple[str, ...]
    notes: tuple[str, ...]


def get_w(weights: Mapping[str, _T], keyword: str) -> dict[str, _T]:
    """Return the entries of ``weights`` whose names contain ``keyword``, named by what follows it.

    Equal to upstream's ``get_w`` on every well-formed file: the new name is the part after
    ``keyword + "."``. Raises AdapterError where upstream's would drop, mangle or overwrite an entry
    or fail: if the keyword occurs twice in a name or is not a whole component of it, if nothing
    follows it, or if two new names are equal.
    """
    found: dict[str, _T] = {}
    origins: dict[str, str] = {}
    for name, value in weights.items():
        if keyword not in name:
            continue
        before, _, after = name.partition(f"{keyword}.")
        whole = not before or before.endswith(".")
        if name.count(keyword) > 1 or not after or not whole:
            raise AdapterError(
                "ambiguous-key",
                name,
                expected=f"'{keyword}.' once, as a component, with a name behind it",
                hint="rename this tensor of the adapter",
            )
        if after in found:
            raise AdapterError(
                "ambiguous-key",
                name,
                expected=f"one tensor for {keyword}.{after}",
                got=f"also {printable(origins[after])}",
                hint="one would overwrite the other: save the adapter with the one that is meant",
            )
        found[after] = value
        origins[after] = name
    return found


def projector_of(checkpoint: Checkpoint) -> DonorProjector:
    """Return the projector of a donor.

    Understood are upstream's names ``mm_projector.*`` below any prefix, those of transformers'
    LLaVA, and a file of nothing but a projector whose names have no prefix. The names of wrappers
    (torch.compile, FSDP, activation checkpointing, DDP, PEFT's ``modules_to_save``) are left out.

    Raises AdapterError if there is no projector, an ambiguous one, one with empty tensors, or one
    of another family that no type of VITA can be.
    """
    refs = checkpoint.stored
    plain: dict[str, str] = {}
    left_out: Counter[str] = Counter()
    for name in refs:
        unwrapped, wrappers = _unwrapped(name)
        if unwrapped is None:
            continue
        if unwrapped in plain and _is_of_projector(unwrapped):
            if checkpoint.layout == "lora" and source_of(refs[plain[unwrapped]]) != source_of(
                refs[name]
            ):
                continue  # saved with the deltas and again beside them: a loader reads those last
            raise _ambiguous(f"{source_of(refs[name])}: {name}", plain[unwrapped])
        plain.setdefault(unwrapped, name)
        if _is_of_projector(unwrapped) or len(refs) < _FEW:
            left_out.update(wrappers)
    origins, notes = _upstream_names(checkpoint, plain)
    if not origins:
        origins, notes = _other_names(checkpoint, plain)
    if not origins:
        raise _no_projector(checkpoint)
    if left_out:
        notes = (f"left out of the names: {', '.join(sorted(left_out))}", *notes)
    refuse_codes(checkpoint, origins.values(), "a projector")
    tensors = {name: refs[origin] for name, origin in origins.items()}
    for name, tensor in tensors.items():
        if 0 in tensor.shape:
            raise AdapterError(
                "empty-tensor",
                f"{source_of(tensor)}: {origins[name]}",
                expected="a tensor with elements",
                got=f"shape {list(tensor.shape)}",
                hint="a ZeRO-3 run saved without gathering: gather the projector and save it again",
            )
    taken = set(origins.values())
    others = tuple(n for n in checkpoint.tensors if n not in taken and KEYWORD not in n)
    return DonorProjector(tensors, origins, others, notes)


# In a file of so few tensors every name is one of a projector.
_FEW: Final = 64


def without_inner_wrappers(donor: Checkpoint) -> Checkpoint:
    """Return a donor under names without the levels of wrappers inside its modules.

    What is in front of a part's names does not matter, so it stays. Raises AdapterError where two
    tensors get one name.
    """
    if not any(f".{word}." in f".{name}" for name in donor.tensors for word in ANYWHERE):
        return donor
    origins: dict[str, str] = {}
    for name in donor.tensors:
        bare = ".".join(level for level in name.split(".") if level not in ANYWHERE)
        if origins.setdefault(bare, name) != name:
            raise _ambiguous(f"{donor.root}: {name}", origins[bare])
    return replace(donor, tensors={bare: donor.tensors[name] for bare, name in origins.items()})


def _is_of_projector(name: str) -> bool:
    return KEYWORD in name or f".{_LLAVA_HF}." in f".{name}."


def _unwrapped(name: str) -> tuple[str | None, list[str]]:
    """Return a name without the names of wrappers, and these; None for PEFT's untrained copy."""
    words = name.split(".")
    if ORIGINAL_MODULE in words:
        return None, []
    kept: list[str] = []
    wrappers: list[str] = []
    skip_next = False
    for word in words:
        in_front = not kept or kept[-1] == KEYWORD
        if skip_next:
            wrappers[-1] += f".{word}"
            skip_next = False
        elif word == MODULES_TO_SAVE:
            wrappers.append(word)
            skip_next = True
        elif word in ANYWHERE or (word == IN_FRONT and in_front):
            wrappers.append(word)
        else:
            kept.append(word)
    return (".".join(kept), wrappers) if kept else (name, [])


def _upstream_names(
    checkpoint: Checkpoint, plain: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the donor's names by those below ``mm_projector.``."""
    try:
        stored = get_w({name: name for name in plain}, KEYWORD)
    except AdapterError as error:
        origin = plain[error.subject]
        file = source_of(checkpoint.tensors[origin])
        raise error.with_subject(f"{file}: {origin}") from error
    flat = next((plain[name] for name in stored.values() if FLAT in name.split(".")), None)
    if flat is not None:
        raise AdapterError(
            "flat-parameter",
            f"{source_of(checkpoint.tensors[flat])}: {flat}",
            expected="the tensors of a projector",
            got="FSDP's flat parameter, in which they lie one after another",
            hint="save it with a full state dict: FSDP.state_dict_type(…, FULL_STATE_DICT)",
        )
    return {after: plain[name] for after, name in stored.items()}, ()


def _other_names(
    checkpoint: Checkpoint, plain: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the names of a projector that has not upstream's, and how they were understood."""
    inner = _below(_LLAVA_HF, plain)
    if inner and inner.keys() <= _OF_LLAVA_HF.keys():
        config = checkpoint.config or {}
        activation = config.get("projector_hidden_act", "gelu")
        if activation != "gelu":
            raise _of_another_family(
                checkpoint, f"{_LLAVA_HF} with {activation!r} between its layers"
            )
        note = f"names: {_LLAVA_HF}.linear_1 and linear_2 are 0 and 2 of mlp2x_gelu"
        return {_OF_LLAVA_HF[name]: origin for name, origin in inner.items()}, (note,)
    if inner:
        raise _of_another_family(checkpoint, f"{_LLAVA_HF} of {', '.join(list(inner)[:6])}")
    inner = _below(_TINY_LLAVA, plain)
    if inner:
        kind = str((checkpoint.config or {}).get("connector_type", ""))
        shapes = {name: checkpoint.tensors[origin].shape for name, origin in inner.items()}
        if "relu" in kind or not projectors.candidates(shapes, projectors.EVERY_TYPE):
            raise _of_another_family(checkpoint, f"TinyLLaVA's connector {kind}".rstrip())
        return inner, (f"names: those below {_TINY_LLAVA}., as TinyLLaVA has them",)
    first = _below(_INTERNVL, plain).get("0.weight")
    if first is not None and len(checkpoint.tensors[first].shape) == 1:
        raise _of_another_family(checkpoint, f"InternVL's {_INTERNVL}, with a LayerNorm ({first})")
    bare = {name: checkpoint.tensors[origin].shape for name, origin in plain.items()}
    if len(bare) < _FEW and projectors.candidates(bare, projectors.EVERY_TYPE):
        note = f"names: without a prefix, those of a bare projector ({', '.join(list(bare)[:2])} …)"
        return dict(plain), (note,)
    return {}, ()


def _below(keyword: str, plain: Mapping[str, str]) -> dict[str, str]:
    """Return the donor's names by what follows a whole component of them."""
    found: dict[str, str] = {}
    for name, origin in plain.items():
        _, is_there, after = f".{name}".partition(f".{keyword}.")
        if is_there and after:
            found[after] = origin
    return found


def _of_another_family(checkpoint: Checkpoint, got: str) -> AdapterError:
    return AdapterError(
        "unknown-projector",
        checkpoint.root,
        expected="a projector that VITA can build",
        got=got,
        hint=f"no type of VITA computes that: it has {projectors.listed()}",
    )


def _ambiguous(subject: str, other: str) -> AdapterError:
    return AdapterError(
        "ambiguous-key",
        subject,
        expected="one tensor for each name, wrappers left out",
        got=f"also {printable(other)}",
        hint="one would overwrite the other: save it with the one that is meant",
    )


def _no_projector(checkpoint: Checkpoint) -> AdapterError:
    counts = Counter(parts.LABELS[parts.part_of(name)] for name in checkpoint.tensors)
    names = ", ".join(list(checkpoint.tensors)[:_LISTED])
    found = ", ".join(f"{count} {label}" for label, count in counts.items())
    total = len(checkpoint.tensors)
    return AdapterError(
        "adapter-no-projector",
        checkpoint.root,
        expected=f"tensors named model.{KEYWORD}.*",
        got=f"tensors: {found} ({names}{'…' if total > _LISTED else ''})"
        if found
        else "a file without a single tensor",
        hint="the trainer of VITA writes a run's projector to non_lora_trainables.bin, when it ends"
        if checkpoint.layout == "lora"
        else "it is a file of training state: give the directory that it lies in"
        if file_of_training_state(posixpath.basename(checkpoint.root)) is not None
        else "a tensor counts only below mm_projector., as model.mm_projector.0.weight does",
    )
