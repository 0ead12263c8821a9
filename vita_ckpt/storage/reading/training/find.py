"""Find the training state at a path: which directory holds it, and what wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.filenames import LORA_FILES, STEP
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.core.training.filenames import (
    DISTCP,
    DTENSOR,
    HF_SHARD,
    METADATA,
    MODEL_STATES,
    OPTIMIZER_STATES,
    UNIVERSAL,
)
from vita_ckpt.core.training.state import Engine
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.storage.reading.paths import find, is_directory, is_file
from vita_ckpt.storage.stores.base import Store

_LATEST: Final = ("latest", "latest_universal")
_LONGEST_TAG: Final = 255
# DeepSpeed's tags by default, the Trainer's and accelerate's steps, torchtitan's.
_TAG: Final = (
    r"global_?step_?[0-9]+(_universal)?|checkpoint-[0-9]+|step-[0-9]+|pytorch_model_fsdp_[0-9]+"
    r"|checkpoint|actor|model|sharded"
)
# The directories through which a path leads from a run to its state.
_MOST_LEVELS: Final = 4


@dataclass(frozen=True, slots=True)
class Place:
    """A training state: its directory or lone file, the names in it, and what wrote it."""

    root: str
    names: tuple[str, ...]
    engine: Engine


def find_state(store: Store, path: str | os.PathLike[str], tag: str | None = None) -> Place:
    """Return the training state at ``path``, or below it.

    Below a run, ``tag`` picks a state; else ``latest`` does, if it holds the plain name of a
    directory beside it; else the only state there is. Raises InputError if nothing is there, if
    several are, or if ``latest`` leads elsewhere.
    """
    root, entry = find(store, path)
    if not entry.is_directory:
        if tag is not None:
            raise UsageError("tag-of-a-file", f"--tag {tag}", expected="a directory with tags")
        folder, name = os.path.split(root)
        if engine_of([name]) is None:
            return Place(root, (), Engine.FILE)
        root = folder  # the file of one rank
    return _below(store, root, tag, _MOST_LEVELS)


def engine_of(names: Iterable[str]) -> Engine | None:
    """Return what wrote the training state in a directory of these names; None if there is none."""
    listed = set(names)
    if any(MODEL_STATES.fullmatch(n) or OPTIMIZER_STATES.fullmatch(n) for n in listed):
        return Engine.UNIVERSAL if UNIVERSAL in listed else Engine.DEEPSPEED
    if METADATA in listed or any(map(DISTCP.fullmatch, listed)):
        return Engine.DCP
    if any(map(HF_SHARD.fullmatch, listed)):
        return Engine.HF_SHARDS
    if any(map(DTENSOR.fullmatch, listed)):
        return Engine.DTENSOR
    return None


def states_below(store: Store, root: str, names: Iterable[str]) -> list[str]:
    """Return the names of directories in ``root`` that hold a training state, or lead to one."""
    return [
        name
        for name in names
        if re.fullmatch(_TAG, name, re.ASCII)
        and is_directory(store, os.path.join(root, name))
        and store.stays_below(root, f"{name}/x")
        and _leads_to_state(store, os.path.join(root, name), _MOST_LEVELS)
    ]


def latest_tag(store: Store, root: str, names: Iterable[str]) -> str | None:
    """Return the tag that ``latest`` in ``root`` names; None if there is no such file.

    Raises InputError unless it is the plain name of a directory in ``root``.
    """
    listed = set(names)
    for latest in _LATEST:
        path = os.path.join(root, latest)
        if latest not in listed or not is_file(store, path):
            continue
        with store.open(path) as source:
            raw = source.read(min(source.file.size, _LONGEST_TAG + 1), 0)
        tag = raw.decode("utf-8", "replace").strip()
        if not is_plain_name(tag) or not store.stays_below(root, f"{tag}/x"):
            raise InputError(
                "latest-leads-out",
                path,
                expected="the name of a directory beside it",
                got=repr(tag[:80]),
                hint="name the directory of the state itself",
            )
        if not is_directory(store, os.path.join(root, tag)):
            raise InputError(
                "missing-tag",
                path,
                expected=f"a directory {tag} beside it",
                got="nothing there",
                hint="copy the state too, or name another with --tag",
            )
        return tag
    return None


def state_beside(store: Store, root: str) -> str | None:
    """Return the training state in a directory that holds other weights; None if there is none."""
    if not is_directory(store, root):
        return None
    names = store.listing(root)
    tag = latest_tag(store, root, names)
    found = [tag] if tag is not None else states_below(store, root, names)
    return os.path.join(root, found[0]) if len(found) == 1 else None


def is_of_run(name: str) -> bool:
    """Return whether a directory of this name lies in a run, which holds what it does not."""
    return re.fullmatch(_TAG, name, re.ASCII) is not None


def is_plain_name(tag: str) -> bool:
    """Return whether a tag is the name of one directory: no path, nothing hidden or unprintable."""
    return (
        0 < len(tag) <= _LONGEST_TAG
        and not tag.startswith(".")
        and tag.isprintable()
        and not set(tag) & set("/\\\0")
    )


def _below(store: Store, root: str, tag: str | None, levels: int) -> Place:
    names = store.listing(root)
    if tag is not None:
        return _tagged(store, root, names, tag, levels)
    engine = engine_of(names)
    if engine is not None:
        return Place(root, tuple(names), engine)
    latest = latest_tag(store, root, names)
    if latest is not None and levels:
        return _below(store, os.path.join(root, latest), None, levels - 1)
    found = states_below(store, root, names)
    if len(found) == 1 and levels:
        return _below(store, os.path.join(root, found[0]), None, levels - 1)
    if found:
        raise InputError(
            "several-states",
            root,
            expected="one training state",
            got=", ".join(found[:8]),
            hint=f"pick one: --tag {found[-1]}, or name {os.path.join(root, found[-1])}",
        )
    store.check_known(f"{root}: training state")
    raise InputError(
        "not-a-training-state",
        root,
        expected="a training state: global_stepN, .metadata, shards of ranks, or a run with one",
        got=", ".join(names[:8]) or "an empty directory",
        hint="a LoRA run is taken as it is: merge-lora --adapter"
        if any(name in names for name in LORA_FILES)
        else "",
    )


def _tagged(store: Store, root: str, names: list[str], tag: str, levels: int) -> Place:
    if not is_plain_name(tag):
        raise UsageError(
            "unknown-tag", f"--tag {tag}", expected="the name of a directory", got="a path"
        )
    if tag in names and is_directory(store, os.path.join(root, tag)):
        return _below(store, os.path.join(root, tag), None, levels - 1)
    inner = [
        name
        for name in names
        if STEP.fullmatch(name) and is_directory(store, os.path.join(root, name, tag))
    ]
    if len(inner) == 1:
        return _below(store, os.path.join(root, inner[0], tag), None, levels - 2)
    known = states_below(store, root, names)
    raise UsageError(
        "unknown-tag",
        f"--tag {tag}",
        expected=f"one of {', '.join(known)}" if known else "a run with several states",
        got="no such directory",
        hint=did_you_mean(tag, known),
    )


def _leads_to_state(store: Store, root: str, levels: int) -> bool:
    names = store.listing(root)
    if engine_of(names) is not None:
        return True
    return levels > 0 and any(
        re.fullmatch(_TAG, name, re.ASCII)
        and is_directory(store, os.path.join(root, name))
        and _leads_to_state(store, os.path.join(root, name), levels - 1)
        for name in names
    )
