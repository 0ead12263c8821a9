"""Explain why names do not bind: what wrote them instead of the names that a loader looks for."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from vita_ckpt.core.anatomy import parts, towers

# A component of a name that a wrapper adds, and what the wrapper is.
_WRAPPERS: Final = {
    "_orig_mod": "a torch.compile wrapper",
    "module": "a DataParallel or DeepSpeed wrapper",
    "_fsdp_wrapped_module": "an FSDP wrapper",
    "_checkpoint_wrapped_module": "an activation checkpoint wrapper",
    "base_layer": "PEFT layers that were not merged",
    "modules_to_save": "PEFT modules that were not merged",
    "base_model": "a PEFT wrapper",
}
_FUSED_EXPERTS: Final = (".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")


def diagnose(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Return the likely cause of a mismatch of names; empty if there is none that is known."""
    for name in unexpected:
        for component in name.split("."):
            if component in _WRAPPERS:
                return f"{_WRAPPERS[component]} is in the names, such as {name}"
    if any(name.endswith(_FUSED_EXPERTS) for name in unexpected):
        return "transformers 5 wrote Mixtral's experts fused"
    if _lacks_level(missing, unexpected):
        return "transformers 5.6 or newer wrote the tower's names, without vision_model."
    return ""


def _lacks_level(missing: Collection[str], unexpected: Collection[str]) -> bool:
    """Return whether unexpected tower names are missing ones without a family's prefix."""
    there = set(unexpected)
    for family in towers.FAMILIES.values():
        if "vision_model." not in family.stored_prefix:
            continue
        with_level = parts.TOWER_MODULE + family.stored_prefix
        without = with_level.replace("vision_model.", "")
        if any(without + n.removeprefix(with_level) in there for n in missing):
            return True
    return False
