"""Comparing two checkpoints: every byte of what both have, and how far the values are apart."""

from __future__ import annotations

from collections.abc import Sequence

from vita_ckpt.api.reading import StrPath, as_checkpoint
from vita_ckpt.checks.difference import Difference, compare_checkpoints, compared_files
from vita_ckpt.core.anatomy.parts import part_of
from vita_ckpt.core.checkpoint import Checkpoint, LocalFile, TensorRef, parameters
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.dtype import PACKED
from vita_ckpt.storage import compare
from vita_ckpt.storage.source import opened, read_at

Pairs = dict[str, compare.Pair]


def diff(
    a: Checkpoint | StrPath,
    b: Checkpoint | StrPath,
    *,
    values: bool = False,
    only: Sequence[str] = (),
) -> Difference:
    """What distinguishes ``b`` from ``a``: config keys, files, and tensors, byte by byte.

    In which files tensors lie and in which order, and what an index says, makes no difference.
    With ``values`` the tensors that both have in one shape are compared as numbers, in float64,
    whatever their dtypes (but F4 and F6). ``only`` are globs of what may change, and of which
    something must: of tensor names, ``config:KEY`` or ``file:PATH``; the result's ``breaches`` say
    where they do not hold. Raises InputError if one side cannot be read, StaleInputError if a file
    changes meanwhile.
    """
    first, second = as_checkpoint(a), as_checkpoint(b)
    shared = {n: (t, second.tensors[n]) for n, t in first.tensors.items() if n in second.tensors}
    alike = {
        name: (old, new)
        for name, (old, new) in shared.items()
        if (old.dtype, old.shape) == (new.dtype, new.shape)
    }
    other_tensors = compare.differing(alike)
    changed = other_tensors | (shared.keys() - alike.keys())
    return compare_checkpoints(
        first,
        second,
        other_tensors=other_tensors,
        other_files=_other_files(first, second),
        distances=_distances(shared, changed) if values else None,
        only=(only,) if isinstance(only, str) else only,
    )


def _distances(shared: Pairs, changed: frozenset[str]) -> dict[str, Distance]:
    """The distances of all pairs of one shape; what is equal is read only for its part's norm."""
    pairs = {
        name: (old, new)
        for name, (old, new) in shared.items()
        if old.shape == new.shape and not {old.dtype, new.dtype} & {*PACKED}
    }
    changed_parts = {part_of(name) for name in changed & pairs.keys()}
    measured = {
        name: (old, new if name in changed else old)
        for name, (old, new) in pairs.items()
        if part_of(name) in changed_parts
    }
    unread = {name: Distance(elements=parameters(old)) for name, (old, _) in pairs.items()}
    return unread | compare.distances(measured)


def _other_files(a: Checkpoint, b: Checkpoint) -> set[str]:
    """The files of both that differ: a file is a tensor of bytes."""
    old, new = compared_files(a), compared_files(b)
    found: set[str] = set()
    pairs: Pairs = {}
    for name in old.keys() & new.keys():
        before, after = old[name], new[name]
        if isinstance(before, str) or isinstance(after, str):
            if _content(before) != _content(after):
                found.add(name)
        elif before.size != after.size:
            found.add(name)
        else:
            pairs[name] = _bytes_of(before), _bytes_of(after)
    return found | compare.differing(pairs)


def _bytes_of(file: LocalFile) -> TensorRef:
    return TensorRef(file, 0, "U8", (file.size,))


def _content(file: LocalFile | str) -> bytes:
    if isinstance(file, str):
        return file.encode()
    with opened(file.path) as (descriptor, seen):
        return read_at(descriptor, seen.size, 0, file.path)
