"""Names of tensors in training state: without wrappers, and as PEFT has them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, TypeVar

from vita_ckpt.core.anatomy.parts import PEFT_PREFIX
from vita_ckpt.core.anatomy.wrappers import ANYWHERE, FLAT, IN_FRONT
from vita_ckpt.errors import MalformedFileError, UsageError

# The count of an averaged model, beside its tensors.
_AVERAGED: Final = "n_averaged"

_DELTA: Final = re.compile(
    r"(?P<front>.*\.)(?P<kind>lora_[A-Za-z_]+)\.(?P<adapter>[^.]+)(?P<rest>\.weight|\.bias)?",
    re.ASCII,
)
_SAVED: Final = re.compile(r"(?P<front>.*\.)modules_to_save\.(?P<adapter>[^.]+)\.(?P<rest>.*)")
_V = TypeVar("_V")


def without_wrappers(tensors: Mapping[str, _V], path: str) -> dict[str, _V]:
    """Return tensors under their unwrapped names, without the count of an averaged model.

    A ``module.`` in front is a wrapper's if it is in front of all of them: of one wrapper, or of
    two if one of them averages. Raises MalformedFileError for parameters that FSDP has flattened,
    and for two tensors of one name.
    """
    origins = {name: _without_inner(name) for name in tensors}
    wrappers, front = 1, f"{IN_FRONT}."
    while wrappers:
        others = {o: name for o, name in origins.items() if name != _AVERAGED}
        if not others or not all(name.startswith(front) for name in others.values()):
            break
        wrappers -= len(others) == len(origins)
        origins = {o: _without_inner(name.removeprefix(front)) for o, name in others.items()}
    found: dict[str, _V] = {}
    for origin, name in origins.items():
        if FLAT in name.split("."):
            raise MalformedFileError(
                "flattened-parameters",
                f"{path}: {origin}",
                expected="parameters with names and shapes",
                got="a vector of several parameters, as FSDP keeps them inside",
                hint="save with use_orig_params=True, or a full or sharded state dict",
            )
        if name in found:
            raise MalformedFileError(
                "duplicate-tensor", f"{path}: {origin}", expected="each tensor once", got=name
            )
        found[name] = tensors[origin]
    return found


def _without_inner(name: str) -> str:
    return ".".join(level for level in name.split(".") if level not in ANYWHERE)


def is_delta(name: str) -> bool:
    """Return whether a tensor belongs to a LoRA adapter, by its name in a PEFT model."""
    return _DELTA.fullmatch(name) is not None


def is_of_peft(names: Collection[str]) -> bool:
    """Return whether names are those of a PEFT model with LoRA deltas."""
    return any(name.startswith(PEFT_PREFIX) and is_delta(name) for name in names)


def adapter_names(names: Collection[str], path: str) -> dict[str, str]:
    """Return the names that PEFT's adapter file has for the tensors that belong into it.

    These are LoRA's, without the name of the adapter, and the modules that are trained whole.
    Raises UsageError if there are several adapters.
    """
    found: dict[str, str] = {}
    adapters: set[str] = set()
    for name in names:
        if (match := _DELTA.fullmatch(name)) is not None:
            rest = match["rest"] or ""
            if match["kind"] == "lora_magnitude_vector":
                rest = ""
            found[name] = f"{match['front']}{match['kind']}{rest}"
        elif (match := _SAVED.fullmatch(name)) is not None:
            found[name] = match["front"] + match["rest"]
        else:
            continue
        adapters.add(match["adapter"])
    if len(adapters) > 1:
        raise UsageError(
            "several-adapters",
            path,
            expected="one LoRA adapter",
            got=", ".join(sorted(adapters)),
            hint="write a FILE.safetensors, which keeps every name",
        )
    return found
