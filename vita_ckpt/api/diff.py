"""Compare two checkpoints: every byte of what both have, and how far the values are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vita_ckpt.api.fetch import downloaded, fetched
from vita_ckpt.api.locate import StrPath, as_checkpoint
from vita_ckpt.api.ranks import agree_on, told_to_all
from vita_ckpt.checks.diff import Difference, compare_checkpoints, compared_files
from vita_ckpt.core.anatomy.parts import part_of
from vita_ckpt.core.checkpoint import Checkpoint, File, Tensor, TensorRef, parameters
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.distance import Distance
from vita_ckpt.core.dtype import PACKED
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.relocation import are_remote, remote_refs
from vita_ckpt.core.team import ALONE, Team
from vita_ckpt.storage.hub.content_hash import same_content
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.tensors import compare

if TYPE_CHECKING:
    from vita_ckpt.model.ranks import Ranks

Pairs = dict[str, compare.Pair]


def diff(
    a: Checkpoint | StrPath,
    b: Checkpoint | StrPath,
    *,
    values: bool = False,
    only: Sequence[str] = (),
    fetch: bool = False,
    on_progress: OnProgress = unwatched,
    stores: Stores | None = None,
    ranks: Ranks | None = None,
) -> Difference:
    """Compare ``b`` with ``a``: config keys, files, and tensors, byte by byte.

    In which files tensors lie and in which order, and what an index says, makes no difference.
    With ``values`` the tensors that both have in one shape are compared as numbers, in float64,
    whatever their dtypes (but F4 and F6). ``only`` are globs of what may change, and of which
    something must: of tensor names, ``config:KEY`` or ``file:PATH``; the result's ``breaches`` say
    where they do not hold. Raises InputError if one side cannot be read, StaleInputError if a file
    changes while it is read.

    Of what is on the hub headers and configs are read, which with the hub's digests often say that
    tensors are the same; the others are ``unread`` in the result. ``fetch`` and ``only`` fetch
    them, ``values`` downloads both sides. ``on_progress`` is told what is being compared, and how
    far that is: see :mod:`vita_ckpt.core.progress`.

    With the ``ranks`` of :func:`join_ranks` every process of a launcher makes the same call. They
    share the bytes that are to be read, and all return the same difference or raise the same error.
    """
    stores = Stores() if stores is None else stores
    team = ALONE if ranks is None else ranks
    with told_to_all(ranks):
        with team.agreement():
            first, second = as_checkpoint(a, stores), as_checkpoint(b, stores)
            if values:
                first, second = downloaded(first, stores), downloaded(second, stores)
        agree_on(ranks, first, second)
        comparison = _Comparison(fetch or bool(only), on_progress, stores, team)
        return comparison.difference(first, second, values=values, only=only)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """How two checkpoints are compared: what may be fetched, who is told, who shares the work."""

    fetch: bool
    on_progress: OnProgress
    stores: Stores
    team: Team

    def difference(
        self, first: Checkpoint, second: Checkpoint, *, values: bool, only: Sequence[str]
    ) -> Difference:
        """Compare all that two checkpoints have."""
        shared = {
            n: (t, second.tensors[n]) for n, t in first.tensors.items() if n in second.tensors
        }
        alike = {
            name: (old, new)
            for name, (old, new) in shared.items()
            if (old.dtype, old.shape) == (new.dtype, new.shape)
        }
        other_tensors, unread_tensors = self._differing(alike)
        other_files, unread_files = self._other_files(first, second)
        changed = other_tensors | (shared.keys() - alike.keys())
        return compare_checkpoints(
            first,
            second,
            other_tensors=other_tensors,
            other_files=other_files,
            distances=self._distances(shared, changed) if values else None,
            only=(only,) if isinstance(only, str) else only,
            unread=tuple(sorted(unread_tensors | unread_files)),
        )

    def _differing(self, pairs: Pairs) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names of the pairs that differ, and of those that a fetch could decide."""
        far = {name: pair for name, pair in pairs.items() if are_remote(pair)}
        near = {name: pair for name, pair in pairs.items() if name not in far}
        known = {name: _same(*pair) for name, pair in far.items()}
        differ = frozenset(name for name, same in known.items() if same is False)
        unknown = frozenset(name for name, same in known.items() if same is None)
        if not self.fetch or not unknown:
            return differ | self._compared(near), unknown
        refs = frozenset().union(*(remote_refs(_sides(pairs[name])) for name in unknown))
        with fetched(refs, self.stores) as here:
            near |= {n: (here.tensor(pairs[n][0]), here.tensor(pairs[n][1])) for n in unknown}
            return differ | self._compared(near), frozenset()

    def _compared(self, pairs: Pairs) -> frozenset[str]:
        step = Tally(self.on_progress, "comparing", _size(pairs) // self.team.size)
        return compare.differing(pairs, team=self.team, progress=step)

    def _distances(self, shared: Pairs, changed: frozenset[str]) -> dict[str, Distance]:
        """Measure all pairs of one shape; equal ones are read only for the norm of their part."""
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
        size = sum(max(old.nbytes, new.nbytes) for old, new in measured.values())
        step = Tally(self.on_progress, "measuring", size // self.team.size)
        return unread | compare.distances(measured, team=self.team, progress=step)

    def _other_files(self, a: Checkpoint, b: Checkpoint) -> tuple[frozenset[str], frozenset[str]]:
        """Return the names of the files of both that differ, and of those that were not compared.

        A file is compared as a tensor of bytes.
        """
        old, new = compared_files(a), compared_files(b)
        found: frozenset[str] = frozenset()
        pairs: Pairs = {}
        for name in old.keys() & new.keys():
            before, after = old[name], new[name]
            if isinstance(before, str) or isinstance(after, str):
                if _content(before, self.stores) != _content(after, self.stores):
                    found |= {name}
            elif before.size != after.size:
                found |= {name}
            else:
                pairs[name] = _bytes_of(before), _bytes_of(after)
        differ, unread = self._differing(pairs)
        return found | differ, unread


def _size(pairs: Pairs) -> int:
    return sum(before.nbytes for before, _ in pairs.values())


def _sides(pair: compare.Pair) -> dict[str, Tensor]:
    return dict(zip("ab", pair, strict=True))


def _same(before: Tensor, after: Tensor) -> bool | None:
    """Return whether the hub's digests call two tensors or files the same; None if undecided.

    At least one of them is on the hub.
    """
    if not isinstance(before, TensorRef) or not isinstance(after, TensorRef):
        return None
    if before == after:
        return True
    a, b = before.source, after.source
    if all(side.nbytes == side.source.size for side in (before, after)):
        return same_content(a, b)
    places = [(ref.offset, ref.strides, ref.source.digest) for ref in (before, after)]
    # Of two files that are not the same, nothing is known about what is in them.
    return (same_content(a, b) or None) if places[0] == places[1] else None


def _bytes_of(file: File) -> TensorRef:
    return TensorRef(file, 0, "U8", (file.size,))


def _content(file: File | str, stores: Stores) -> bytes:
    if isinstance(file, str):
        return file.encode()
    with stores.open(file.path) as source:
        return source.read(source.file.size, 0)
