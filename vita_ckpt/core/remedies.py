"""Word the commands that hints name, each in one place."""

from __future__ import annotations

from collections.abc import Collection
from shlex import quote
from typing import Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.relatives import Relative

# The names by which extract-projector finds a projector.
_PROJECTORS: Final = ("mm_projector.", "multi_modal_projector.", "connector._connector.")


def ignore_index(root: str) -> str:
    """Return the command that takes the shards that are there, whatever a stale index says."""
    return f"vita-ckpt convert {quote(root)} --ignore-index --out OUT"


def merge_projector(base: str, adapter: str) -> str:
    """Return the command that puts a trained projector into a checkpoint."""
    return f"vita-ckpt merge-projector --base {quote(base)} --adapter {quote(adapter)} --out OUT"


def merge_lora(base: str, run: str) -> str:
    """Return the command that merges a LoRA run into its base."""
    return f"vita-ckpt merge-lora --base {quote(base)} --adapter {quote(run)} --out OUT"


def merge_unmerged(root: str) -> str:
    """Return the command that merges deltas that were saved unmerged, with their run's config."""
    return f"vita-ckpt merge-lora --base {quote(root)} --adapter-config FILE --out OUT"


def consolidate(state: str) -> str:
    """Return the command that makes a checkpoint, or a LoRA run, of a training state."""
    return f"vita-ckpt consolidate {quote(state)} --out OUT"


def mend_names(root: str) -> str:
    """Return the command that gives tensors the names that upstream's loader knows."""
    return f"vita-ckpt convert {quote(root)} --names upstream --out OUT"


def validate(root: str) -> str:
    """Return the command that says all that is wrong with a checkpoint."""
    return f"vita-ckpt validate {quote(root)}"


def set_path(root: str, key: str, path: str) -> str:
    """Return the command that gives a config another path."""
    return f"vita-ckpt set {quote(root)} {quote(f'{key}={path}')} --out OUT"


def take_out(relative: Relative, names: Collection[str]) -> str:
    """Return which parts of a model of another family can be taken out, and how.

    ``names`` are those of its tensors.
    """
    own = [name for name in names if relative.part_of(name) == parts.MM_PROJECTOR]
    understood = any(form in name for name in own for form in _PROJECTORS)
    if not any(relative.part_of(name) == parts.VISION_TOWER for name in names):
        if understood:
            return "extract-projector takes its projector out"
        return "no part of it can be taken out for VITA"
    if understood:
        return "extract-tower takes its tower out, extract-projector its projector"
    return "extract-tower takes its tower out" + (
        "; VITA has no projector type like its own" if own else ""
    )


def install_model() -> str:
    """Return the command that installs what the model needs, from a clone of the project."""
    return "in the clone of vita-ckpt: pip install -e '.[model]'"
