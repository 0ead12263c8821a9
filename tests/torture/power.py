"""Power cuts: every directory that a disk may hold once the power is back, from a trace alone.

Data of a file lasts from the sync of that file on, an entry from the sync of its directory on. Of
what is not lasting yet any part may be there or not, in any order, and a write may be torn.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Final

from tests.torture.disk import Data, Disk, Effect, Move, Nodes, Synced, Tree, syncs_needed

# As many effects that do not last yet are dropped in every combination; above it a sample is.
EXHAUSTIVE: Final = 12

_KEEP, _DROP, _HALF, _ZEROS = range(4)
_Fates = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Crash:
    """A directory after a power cut when ``point`` effects had happened; ``last`` is the end."""

    point: int
    last: bool
    nodes: Nodes
    tree: Tree


def crashes(disk: Disk, *, samples: int = 200, seed: int = 0, every: int = 1) -> Iterator[Crash]:
    """Every distinct state that a cut at some point may leave, those at the end for themselves.

    ``samples`` are drawn, with ``seed``, of the combinations at each point that has more pending
    effects than EXHAUSTIVE, and of torn writes. Points are those before a sync and the end: what
    may be there at any other is a combination of theirs. Of those points ``every`` one is taken,
    counted from the end.
    """
    random_ = random.Random(seed)
    effects = disk.effects
    end = len(effects)
    seen: set[bytes] = set()
    points = sorted({*(i for i, e in enumerate(effects) if isinstance(e, Synced)), end})
    for point in reversed(points[::-every]):
        last = point == end
        if last:
            seen = set()
        pending = pending_at(effects, point)
        first = pending[0] if pending else point
        settled = disk.start.copy()
        for effect in effects[:first]:
            settled.apply(effect)
        rest = {index: place for place, index in enumerate(pending)}
        for fates in _fates([effects[index] for index in pending], samples, random_):
            nodes = settled.copy()
            for index in range(first, point):
                fate = fates[rest[index]] if index in rest else _KEEP
                if fate != _DROP:
                    nodes.apply(_torn(effects[index], fate))
            tree = nodes.tree()
            key = _key(tree)
            if key not in seen:
                seen.add(key)
                yield Crash(point, last, nodes, tree)


def pending_at(effects: list[Effect], point: int) -> list[int]:
    """Which of the first ``point`` effects a cut may still undo."""
    missing = {i: set(syncs_needed(effect)) for i, effect in enumerate(effects[:point])}
    for effect in effects[:point]:
        if not isinstance(effect, Synced):
            continue
        for index in range(effect.covers):
            if effect.node is None:
                missing[index].clear()
            else:
                missing[index].discard(effect.node)
    return [index for index, nodes in missing.items() if nodes]


def unsynced_when_moved(disk: Disk) -> list[str]:
    """What a rename of a directory published although a cut could have taken it away."""
    found: list[str] = []
    nodes = disk.start.copy()
    for point, effect in enumerate(disk.effects):
        if isinstance(effect, Move):
            inside = {effect.node: "", **{n: path for path, n in nodes.below(effect.node)}}
            for index in pending_at(disk.effects, point):
                late = syncs_needed(disk.effects[index]) & inside.keys()
                found += [f"{disk.effects[index]!r}"[:200] for _ in late]
        nodes.apply(effect)
    return found


def _fates(pending: list[Effect], samples: int, random_: random.Random) -> Iterable[_Fates]:
    """What may become of pending effects, each in turn."""
    count = len(pending)
    torn = [index for index, effect in enumerate(pending) if isinstance(effect, Data)]
    kept, dropped = (_KEEP,) * count, (_DROP,) * count
    single = (
        (*others[:index], fate, *others[index + 1 :])
        for index in torn
        for fate in (_HALF, _ZEROS)
        for others in (kept, dropped, (*kept[:index], *dropped[index:]))
    )
    if count <= EXHAUSTIVE:
        whole: Iterable[_Fates] = product((_KEEP, _DROP), repeat=count)
    else:
        whole = chain(
            ((*kept[:index], *dropped[index:]) for index in range(count + 1)),
            ((*kept[:index], _DROP, *kept[index + 1 :]) for index in range(count)),
            ((*dropped[:index], _KEEP, *dropped[index + 1 :]) for index in range(count)),
            (tuple(random_.choices((_KEEP, _DROP), k=count)) for _ in range(samples)),
        )
    mixed = (
        tuple(
            random_.choice((_KEEP, _DROP, _HALF, _ZEROS) if index in torn else (_KEEP, _DROP))
            for index in range(count)
        )
        for _ in range(samples if torn else 0)
    )
    return chain(whole, single, mixed)


def _torn(effect: Effect, fate: int) -> Effect:
    if not isinstance(effect, Data) or fate == _KEEP:
        return effect
    if fate == _HALF:
        return replace(effect, data=effect.data[: len(effect.data) // 2])
    return replace(effect, data=bytes(len(effect.data)))


def _key(tree: Tree) -> bytes:
    """A digest of a tree."""
    digest = hashlib.blake2b(digest_size=16)
    for path, content in sorted(tree.items()):
        data = content.encode() if isinstance(content, str) else content
        digest.update(f"{path}\0{type(content).__name__}{len(data or b'')}\0".encode())
        digest.update(data or b"")
    return digest.digest()
