"""Read what a plan is asked for: checkpoints, choices, dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.core import kinds
from vita_ckpt.core.address import is_remote, parse_address
from vita_ckpt.core.anatomy.parts import LM_HEAD, TOWER_PREFIX
from vita_ckpt.core.anatomy.towers import tower_of_config, tower_of_shapes
from vita_ckpt.core.checkpoint import Checkpoint, RemoteFile, TensorRef
from vita_ckpt.core.plan import (
    Plan,
)
from vita_ckpt.core.quantisation import describe, quantisation_of
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.tower import (
    read_given_config,
    read_tower_config,
)
from vita_ckpt.storage.reading.training.find import state_beside
from vita_ckpt.storage.reading.training.state import open_training_state
from vita_ckpt.storage.tensors.compare import are_equal
from vita_ckpt.surgery.donors import KEYWORD


def open_projector(
    given: Checkpoint | StrPath, stores: Stores, key: str | None = None
) -> Checkpoint:
    """Return what a projector is taken from.

    A step of a LoRA run holds the adapter alone: its projector is in the training state beside it.
    """
    opened = as_checkpoint(given, stores, key)
    if opened.layout != "lora" or any(KEYWORD in name for name in opened.tensors):
        return opened
    found = state_beside(stores.store_of(opened.root), opened.root)
    return opened if found is None else open_training_state(found, stores)


@contextmanager
def or_a_choice(given: Checkpoint | StrPath) -> Iterator[None]:
    """Make the error for a path that is not there name the words that could be in its place."""
    try:
        yield
    except InputError as error:
        if error.code != "not-found" or isinstance(given, Checkpoint):
            raise
        hint = did_you_mean(os.fspath(given), ("keep", "reinit"), error.hint)
        raise error.replaced(expected="keep, reinit, or the path of a file", hint=hint) from error


def noted(plan: Plan) -> Plan:
    """Return the plan with notes about two configs that it changes, and about quantised inputs."""
    notes: list[str] = []
    if plan.base.serving_config is not None:
        notes.append(
            f"{plan.base.config_file} is VITA's config, config.json a server's: what is set in the "
            "one is set in the other where it has the key"
        )
    for checkpoint in (plan.base, *plan.donors):
        found = quantisation_of(checkpoint)
        if found is not None:
            notes.append(f"{checkpoint.root} is quantised: {describe(checkpoint, found)}")
    return replace(plan, notes=(*plan.notes, *notes))


def refuse_swapped(
    base: Checkpoint, adapter: Checkpoint, command: Callable[[str, str], str]
) -> None:
    """Raise UsageError if the adapter is given as the base, and the base as the adapter.

    ``command`` words the call with a base and an adapter.
    """
    adapters = (kinds.PROJECTOR, kinds.LORA_RUN, kinds.AUDIO_ADAPTER)
    models = (*kinds.WHOLE, kinds.LANGUAGE_MODEL)
    found = kinds.kind_of(base).name, kinds.kind_of(adapter).name
    if found[0] in adapters and found[1] in models:
        raise UsageError(
            "base-and-adapter-swapped",
            base.root,
            expected="--base CHECKPOINT --adapter RUN",
            got=f"a {found[0]} as the base, and a {found[1]} as the adapter",
            hint=command(adapter.root, base.root),
        )


def path_for_config(tower: Checkpoint | StrPath, donor: Checkpoint) -> str:
    """Return the string that upstream will look a tower up by: the path as it was given.

    Of weights in a directory that has a config it is the directory, which is what upstream opens.
    """
    named = (donor.config or {}).get("mm_vision_tower")
    if isinstance(named, str) and named:  # another VITA checkpoint
        return named
    path = donor.root if isinstance(tower, Checkpoint) else os.fspath(tower)
    if is_remote(donor.root):  # what transformers and upstream's loaders take
        address = parse_address(donor.root)
        path = "/".join(filter(None, (address.repository, address.below)))
    shapes = {name: tensor.shape for name, tensor in donor.tensors.items()}
    found = tower_of_shapes(shapes)
    if found is not None and found.traits.lone_file:
        return os.path.join(path, donor.shards[0].name) if donor.shards[0].name else path
    if donor.layout == "file" and donor.config is not None:
        return os.path.dirname(path) or os.curdir
    return path


def tower_config_of(
    donor: Checkpoint, tower_config: str | None, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the config of a tower, standalone or in a model, whatever that is wrapped in."""
    if tower_config is not None:
        return read_given_config(tower_config, stores)
    inside = {
        TOWER_PREFIX + name.partition(TOWER_PREFIX)[2]: tensor
        for name, tensor in donor.tensors.items()
        if f".{TOWER_PREFIX}" in f".{name}"
    }
    if inside:
        return read_tower_config(replace(donor, tensors=inside), stores)
    own = donor.config
    return own if own is not None and tower_of_config(own) is not None else None


def check_choice(value: object, known: Sequence[object], option: str) -> None:
    """Raise UsageError if the value of an option is none of those that are known."""
    if value not in known:
        names = ", ".join(str(one) for one in known if one is not None)
        raise UsageError(
            "unknown-choice",
            option,
            expected=f"one of {names}",
            got=str(value),
            hint=did_you_mean(str(value), names.split(", ")),
        )


def have_same_bytes(head: TensorRef | None, table: TensorRef | None) -> bool | None:
    """Return whether two tensors have the same bytes; None if one is not there, or remote."""
    if head is None or table is None:
        return None
    if (head.dtype, head.shape) != (table.dtype, table.shape):
        return False
    if isinstance(head.source, RemoteFile) or isinstance(table.source, RemoteFile):
        return None
    return are_equal({LM_HEAD: (head, table)})
