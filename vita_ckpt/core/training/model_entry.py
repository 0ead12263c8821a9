"""Find the model among the entries of a flattened training state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

# The keys under which a model's state dict stands, the likeliest one first.
_MODEL: Final = ("model", "state_dict", "module", "model_state_dict")
_OPTIMIZER: Final = ("optimizer", "optim", "optimizers", "optimizer_state_dict")
_DEEPEST: Final = 2


def model_entries(paths: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the entries of the model, and their names in its state dict.

    ``paths`` are the keys that lead to each entry. A model stands under ``model`` or the like, one
    or two keys deep; or else its tensors stand at the top, beside those of an optimizer.
    """
    for depth in range(1, _DEEPEST + 1):
        for key in _MODEL:
            found = {
                entry: ".".join(path[depth:])
                for entry, path in paths.items()
                if len(path) > depth and path[depth - 1] == key and not _is_optimizer(path[:depth])
            }
            if found:
                return found
    return {
        entry: path[0]
        for entry, path in paths.items()
        if len(path) == 1 and not path[0].startswith(tuple(f"{key}." for key in _OPTIMIZER))
    }


def optimizer_entries(paths: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the entries of optimizers."""
    return [
        entry
        for entry, path in paths.items()
        if _is_optimizer(path[:_DEEPEST]) or path[0].startswith(tuple(f"{k}." for k in _OPTIMIZER))
    ]


def trained_names(names: Iterable[str], optimizer: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of a model that have moments, by the keys that lead to an optimizer's.

    A name is a key of its own, as in ``state``, ``<name>``, ``exp_avg``, or inside one, as in
    ``state.<name>.exp_avg``.
    """
    keys = {key for path in optimizer for key in path}
    keys |= {key.removeprefix("state.").rpartition(".")[0] for key in keys}
    return tuple(name for name in names if name in keys)


def _is_optimizer(path: Sequence[str]) -> bool:
    return any(key in _OPTIMIZER for key in path)
