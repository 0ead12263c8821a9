"""Read, compute and update the digests of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from vita_ckpt.core.checkpoint import Checkpoint
from vita_ckpt.core.digest import digest
from vita_ckpt.core.filenames import MANIFEST
from vita_ckpt.core.manifest import FileDigest, Manifest, decode
from vita_ckpt.core.plan import Plan
from vita_ckpt.core.progress import OnProgress, Tally, unwatched
from vita_ckpt.core.team import ALONE, Team
from vita_ckpt.errors import MalformedFileError, StaleInputError
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.tensors.digests import file_digests, tensor_digests
from vita_ckpt.storage.writing.layout import PatchedShard, WrittenShard, WrittenText

_LARGEST_MANIFEST: Final = 64 << 20


def read_manifest(checkpoint: Checkpoint, stores: Stores) -> Manifest | None:
    """Return the manifest of a checkpoint; None if it has none.

    Raises MalformedFileError if any byte differs from what was written.
    """
    file = checkpoint.files.get(MANIFEST)
    if file is None:
        return None
    with stores.open(file.path) as source:
        data = source.read(min(source.file.size, _LARGEST_MANIFEST), 0)
    try:
        return decode(data)
    except ValueError as error:
        raise MalformedFileError(
            "invalid-manifest",
            file.path,
            expected="a manifest, every byte as --digest wrote it",
            got=str(error),
            hint="it is damaged: remove it, and --digest makes a new one of what is there now",
        ) from error


def current_manifest(checkpoint: Checkpoint, stores: Stores) -> Manifest | None:
    """Return the manifest of a checkpoint for a surgery to update; None if it has none.

    Raises MalformedFileError as :func:`read_manifest`, and StaleInputError if sizes, headers or
    configs show that it describes other files. Its digests would then report the result as damaged.
    """
    manifest = read_manifest(checkpoint, stores)
    if manifest is None:
        return None
    shards = {shard.name: shard.file for shard in checkpoint.shards}
    seen = {n: f for n, f in (shards | dict(checkpoint.files)).items() if n != MANIFEST}
    for name, file in seen.items():
        known = manifest.files.get(name)
        if known is None:
            continue
        is_read = file.digest and (name.endswith(".json") or known.tensors is not None)
        if known.size != file.size or (is_read and known.sha256 != file.digest):
            raise StaleInputError(
                "stale-manifest",
                file.path,
                expected=f"the file that {MANIFEST} describes",
                got="one that has changed since",
                hint=f"remove {MANIFEST}: --digest makes a new one of what is there now",
            )
    return manifest


def measure(
    checkpoint: Checkpoint,
    names: Collection[str] | None = None,
    on_progress: OnProgress = unwatched,
    *,
    team: Team = ALONE,
) -> Manifest:
    """Compute the present digests of a checkpoint's files, all of them or those in ``names``.

    Every byte of them is read, each by one of ``team``. Raises InputError as :func:`file_digests`
    and :func:`tensor_digests` do.
    """

    def wanted(name: str) -> bool:
        return name != MANIFEST and (names is None or name in names)

    shards = [shard for shard in checkpoint.shards if wanted(shard.name)]
    whole = {name: file.path for name, file in checkpoint.files.items() if wanted(name)}
    whole |= {s.name: s.file.path for s in shards if s.format != "safetensors"}
    safetensors = {s.file: s.name for s in shards if s.format == "safetensors"}
    refs = {n: ref for n, ref in checkpoint.refs.items() if ref.source in safetensors}
    size = sum(ref.nbytes for ref in refs.values())
    size += sum(file.size for name, file in checkpoint.files.items() if name in whole)
    size += sum(shard.file.size for shard in shards if shard.name in whole)
    step = Tally(on_progress, "digesting", size // team.size)
    found = tensor_digests(refs, step, team=team)
    files: dict[str, FileDigest] = {}
    for file, shard in safetensors.items():
        held = {name: found[name] for name, ref in refs.items() if ref.source == file}
        files[shard] = FileDigest(file.size, file.digest, held)
    return Manifest({**files, **file_digests(whole, step, team=team)})


def manifest_of(
    plan: Plan,
    known: Manifest | None,
    untouched: Iterable[str],
    shards: Iterable[WrittenShard | PatchedShard],
    texts: Iterable[WrittenText],
    written: Mapping[str, str],
    on_progress: OnProgress = unwatched,
) -> Manifest:
    """Return the manifest of a plan's result: known digests are reused, others are computed.

    ``untouched`` are the files of the base that stay unchanged; ``written`` are the digests of the
    tensors that the plan names.
    """
    base, target = plan.base, plan.target()
    before = known.files if known is not None else {}
    edited = {edit.name for edit in plan.tensor_edits}  # its digest, if known, is of other bytes
    before_it = known.tensors if known is not None else {}
    digests = {n: d for n, d in before_it.items() if n not in edited} | dict(written)
    files = {name: before[name] for name in untouched if name in before}
    files |= measure(base, [n for n in untouched if n not in before], on_progress).files
    for shard in shards:
        size, header, names = _described(shard)
        missing = {n: target.tensors[n] for n in names if n not in digests}
        step = Tally(on_progress, "digesting", sum(tensor.nbytes for tensor in missing.values()))
        digests |= tensor_digests(missing, step)
        files[shard.name] = FileDigest(size, header, {n: digests[n] for n in names})
    files |= {text.name: FileDigest(len(text.data), digest(text.data)) for text in texts}
    return Manifest(files)


def _described(shard: WrittenShard | PatchedShard) -> tuple[int, str, Iterable[str]]:
    """Return size, digest of the header, and names of the tensors of a written shard."""
    if isinstance(shard, PatchedShard):
        header = digest(shard.header[8:]) if shard.header else shard.file.digest
        return shard.file.size, header, shard.names
    encoded, size = shard.header()
    return len(encoded) + size, digest(encoded[8:]), [name for name, _ in shard.entries]
