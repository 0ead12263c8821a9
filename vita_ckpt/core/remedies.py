"""Word the commands that hints name, each in one place."""

from __future__ import annotations


def ignore_index(root: str) -> str:
    """Return the command that takes the shards that are there, whatever a stale index says."""
    return f"vita-ckpt convert {root} --ignore-index --out OUT"


def merge_projector(base: str, adapter: str) -> str:
    """Return the command that puts a trained projector into a checkpoint."""
    return f"vita-ckpt merge-projector --base {base} --adapter {adapter} --out OUT"


def merge_lora(base: str, run: str) -> str:
    """Return the command that merges a LoRA run into its base."""
    return f"vita-ckpt merge-lora --base {base} --adapter {run} --out OUT"


def merge_unmerged(root: str) -> str:
    """Return the command that merges the adapter of an unmerged PEFT save into its own weights."""
    return f"vita-ckpt merge-lora --base {root} --out OUT"


def consolidate(state: str) -> str:
    """Return the command that makes a checkpoint, or a LoRA run, of a training state."""
    return f"vita-ckpt consolidate {state} --out OUT"


def set_path(root: str, key: str, path: str) -> str:
    """Return the command that gives a config another path."""
    return f"vita-ckpt set {root} {key}={path} --out OUT"


def install_model() -> str:
    """Return the command that installs what the model needs, from a clone of the project."""
    return "in the clone of vita-ckpt: pip install -e '.[model]'"
