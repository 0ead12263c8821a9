"""Recognise quantised weights: the method, which tensors are codes, and what they stand for.

A code is worth nothing without its scale: taken alone, or converted, it is another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any, Final

from vita_ckpt.core.checkpoint import Checkpoint, Tensor
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.errors import AdapterError, InputError

_WORD: Final = 32  # bits of the words that GPTQ, AWQ and compressed-tensors pack codes into

_LABELS: Final = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "compressed-tensors": "compressed-tensors",
}
# What stands beside the codes of a module, by the end of its name.
_BITSANDBYTES_4: Final = (
    ".absmax",
    ".quant_map",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)
_AIDS: Final = {
    ".qweight": (".qzeros", ".scales", ".g_idx"),
    ".weight_packed": (
        ".weight_scale",
        ".weight_shape",
        ".weight_zero_point",
        ".weight_g_idx",
        ".weight_global_scale",
        ".input_global_scale",
        ".input_scale",
    ),
}
_SCALES: Final = (".weight_scale", ".weight_scale_inv", ".SCB")
_BESIDE_SCALES: Final = (
    *_SCALES,
    ".weight_format",
    ".input_scale",
    ".output_scale",
    ".activation_scale",
    ".weight_zero_point",
    ".k_scale",
    ".v_scale",
)
_CODE_DTYPES: Final = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I32")


@dataclass(frozen=True, slots=True)
class Quantisation:
    """The quantisation of a checkpoint.

    ``method`` is its name as people know it, with the bits where they are known. ``codes`` maps
    each tensor of codes to the number of parameters that it stands for, ``aids`` are the tensors
    that give codes their values (scales, zeros, states) and are no parameters themselves.
    """

    method: str
    codes: Mapping[str, int]
    aids: frozenset[str]

    def parameters(self, name: str, tensor: Tensor) -> int:
        """Return how many parameters a tensor of the checkpoint stands for."""
        if name in self.aids:
            return 0
        return self.codes.get(name, prod(tensor.shape))

    @property
    def modules(self) -> frozenset[str]:
        """The names of the modules whose weights are codes."""
        return frozenset(name.rpartition(".")[0] for name in self.codes)

    def is_part(self, name: str) -> bool:
        """Return whether a tensor is quantised, or gives one that is its values."""
        return name in self.codes or name in self.aids


def quantisation_of(checkpoint: Checkpoint) -> Quantisation | None:
    """Return the quantisation of a checkpoint by its config and its names; None if it has none."""
    names = checkpoint.tensors
    settings = _settings(checkpoint.config)
    if settings is None:
        # What no name ends with, a single look at all of them tells.
        text = "\n".join((*names, ""))
        ends = (".qweight", ".weight_packed", *_SCALES, *_BITSANDBYTES_4)
        if not any(f"{end}\n" in text for end in ends):
            return None
    bits = _bits(settings or {})
    codes: dict[str, int] = {}
    aids: set[str] = set()
    methods: list[str] = []
    for name, tensor in names.items():
        found = _codes(name, tensor, names, bits)
        if found is not None:
            method, codes[name], beside = found
            methods.append(method)
            aids |= beside
    if not codes and settings is None:
        return None
    return Quantisation(_method(settings, methods), codes, frozenset(aids))


def refuse_codes(checkpoint: Checkpoint, names: Iterable[str], what: str) -> None:
    """Raise AdapterError ``quantised-part`` if one of ``names`` is quantised in ``checkpoint``."""
    found = quantisation_of(checkpoint)
    name = next((n for n in names if found is not None and found.is_part(n)), None)
    if found is not None and name is not None:
        raise AdapterError(
            "quantised-part",
            f"{checkpoint.root}: {name}",
            expected=f"{what} in a floating dtype",
            got=f"codes or scales of {found.method}",
            hint="codes without their scales are other numbers: take it from the checkpoint that "
            "was quantised, or save it dequantised",
        )


def refuse_quantised(checkpoint: Checkpoint, what: str) -> None:
    """Raise InputError ``quantised-weights`` if ``checkpoint`` is quantised."""
    found = quantisation_of(checkpoint)
    if found is not None:
        raise InputError(
            "quantised-weights",
            checkpoint.root,
            expected=f"weights in a floating dtype, {what}",
            got=describe(checkpoint, found),
            hint="take the checkpoint that was quantised",
        )


def describe(checkpoint: Checkpoint, found: Quantisation) -> str:
    """Return the method and the true number of parameters in words."""
    total = sum(found.parameters(name, tensor) for name, tensor in checkpoint.tensors.items())
    return f"{found.method}, {total:,} parameters"


def _settings(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    for key in ("quantization_config", "compression_config"):
        settings = (config or {}).get(key)
        if isinstance(settings, Mapping):
            return settings
    return None


def _bits(settings: Mapping[str, Any]) -> int | None:
    for key in ("bits", "w_bit", "num_bits"):
        value = settings.get(key)
        if type(value) is int and value in (1, 2, 3, 4, 8):
            return value
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        value = weights.get("num_bits") if isinstance(weights, Mapping) else None
        if type(value) is int and value in (1, 2, 3, 4, 8):
            return value
    return None


def _codes(  # noqa: PLR0911 - one for each method
    name: str, tensor: Tensor, names: Mapping[str, Tensor], bits: int | None
) -> tuple[str, int, set[str]] | None:
    """Return the method, the parameters and the aids of a tensor that holds codes, or None."""
    for suffix, ends in _AIDS.items():
        if name.endswith(suffix):
            module = name.removesuffix(suffix)
            beside = {module + end for end in ends if module + end in names}
            if suffix == ".qweight":
                return _packed(module, tensor, names, bits, beside)
            count = _whole_shape(module, tensor, names, bits)
            return "compressed-tensors", count, beside
    if not name.endswith(".weight") or tensor.dtype not in _CODE_DTYPES:
        return None
    module = name.removesuffix(".weight")
    states = {name + end for end in _BITSANDBYTES_4 if name + end in names}
    if states:
        return "bitsandbytes, 4 bits", 2 * prod(tensor.shape), states
    beside = {module + end for end in _BESIDE_SCALES if module + end in names}
    if module + ".SCB" in beside:
        return "bitsandbytes, 8 bits", prod(tensor.shape), beside
    if beside & {module + end for end in _SCALES}:
        method = "FP8" if tensor.dtype.startswith("F8") else "compressed-tensors"
        return method, prod(tensor.shape), beside
    return None


def _packed(
    module: str,
    tensor: Tensor,
    names: Mapping[str, Tensor],
    bits: int | None,
    beside: set[str],
) -> tuple[str, int, set[str]]:
    """Return what codes in 32-bit words stand for: GPTQ packs rows, AWQ columns."""
    scales, zeros = names.get(module + ".scales"), names.get(module + ".qzeros")
    known = _bits_of_zeros(scales, zeros) or bits or 4
    is_awq = (
        scales is not None
        and len(scales.shape) == len(tensor.shape) == 2
        and tensor.shape[1] != scales.shape[1]
    )
    method = "AWQ" if is_awq else "GPTQ"
    return f"{method}, {known} bits", prod(tensor.shape) * _WORD // known, beside


def _bits_of_zeros(scales: Tensor | None, zeros: Tensor | None) -> int | None:
    if scales is None or zeros is None or len(scales.shape) != 2 or len(zeros.shape) != 2:
        return None
    if not scales.shape[1] or zeros.dtype != "I32":
        return None
    found, rest = divmod(_WORD * zeros.shape[1], scales.shape[1])
    return found if not rest and found in (1, 2, 3, 4, 8) else None


def _whole_shape(module: str, tensor: Tensor, names: Mapping[str, Tensor], bits: int | None) -> int:
    """Return what a ``weight_packed`` stands for.

    FP4 is packed two to a byte; integers are packed into words along the last dimension, each row
    filled up to a whole word.
    """
    if tensor.dtype == "U8":
        return 2 * prod(tensor.shape)
    per_word = _WORD // (bits or 4)
    return prod(tensor.shape) * per_word


def _method(settings: Mapping[str, Any] | None, methods: list[str]) -> str:
    common = max(set(methods), key=methods.count) if methods else ""
    said = str((settings or {}).get("quant_method", "")).lower()
    if said == "bitsandbytes" or (settings and not said and "load_in_4bit" in settings):
        if common.startswith("bitsandbytes"):
            return common
        four = (settings or {}).get("load_in_4bit") is True
        eight = (settings or {}).get("load_in_8bit") is True
        return "bitsandbytes" + (", 4 bits" if four else ", 8 bits" if eight else "")
    label = _LABELS.get(said, said)
    if not label:
        return common or "an unnamed method"
    bits = common.partition(", ")[2] or (
        "" if (b := _bits(settings or {})) is None else f"{b} bits"
    )
    return f"{label}, {bits}" if bits and label != "FP8" else label
