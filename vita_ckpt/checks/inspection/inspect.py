"""Inspect a checkpoint: put together what its files, its config and its weights say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby
from math import prod
from typing import Any, Final

from vita_ckpt.checks.audio_summary import summarize_audio
from vita_ckpt.checks.inspection.facts import Facts, is_foreign
from vita_ckpt.checks.inspection.summary import Inspection, LoraSummary, PartSummary, ShardSummary
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.audio.directory import AudioDirectory
from vita_ckpt.core.anatomy.families import VITA, recognise
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.towers import Tower, TowerDirectory
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.checkpoint import (
    Checkpoint,
    File,
    Form,
    TensorRef,
    bytes_by_dtype,
    count_forms,
    refs_of,
)
from vita_ckpt.core.filenames import ADAPTER_CONFIG, CONFIG
from vita_ckpt.core.kinds import (
    LANGUAGE_MODEL,
    LORA_RUN,
    MULTIMODAL,
    TOWER,
    WHOLE,
    Kind,
    kind_of,
    part_as,
)
from vita_ckpt.core.memory import Memory, estimate
from vita_ckpt.core.provenance import needs_alignment


def inspect_checkpoint(
    checkpoint: Checkpoint,
    tower_directory: TowerDirectory | None = None,
    audio_directory: AudioDirectory | None = None,
    *,
    kind: str | None = None,
    dtype: str | None = None,
    batch: int = 1,
) -> Inspection:
    """Describe a checkpoint, adapter, run or tower, or what ``kind`` says, from its headers.

    ``dtype`` and ``batch`` are those of the memory that is estimated.
    """
    found = kind_of(checkpoint)
    if kind is not None and kind != found.name:
        checkpoint = part_as(checkpoint, kind)
        found = replace(found, name=kind, relative=None)
    kind = found.name
    if kind == MULTIMODAL and (tower_directory or _NOWHERE).path == checkpoint.root:
        tower_directory = None  # the model's own config describes its tower
    config, forms = checkpoint.config or {}, count_forms(checkpoint.tensors.values())
    sizes = bytes_by_dtype(forms)
    facts = Facts.of(checkpoint, tower_directory, audio_directory, found, forms)
    summaries = _parts(checkpoint, found)
    is_tower = kind == TOWER
    lines = {} if is_tower or is_foreign(found) else {key: facts.line(key) for key in facts.keys}
    backbone = facts.family.backbone(config)
    plain = of_plain_type(config.get("model_type"))
    told = recognise(config, checkpoint.tensors) if found.family not in (None, VITA) else None
    architectures = config.get("architectures")
    missing = tuple(_missing_files(checkpoint, kind, facts.tower))
    return Inspection(
        path=checkpoint.root,
        kind=kind,
        layout=checkpoint.layout,
        model_type=_text(config.get("model_type")),
        architectures=tuple(filter(None, map(_text, architectures)))
        if isinstance(architectures, list)
        else (),
        backbone=backbone.language_model if backbone else plain.name if plain else None,
        loader_name=backbone.loader_name if backbone else None,
        dtypes=tuple(sizes),
        tensors=len(checkpoint.tensors),
        parameters=sum(part.parameters for part in summaries),
        bytes=sum(sizes.values()),
        shards=_shards(checkpoint),
        parts=summaries,
        config=lines,
        tower=facts.tower,
        tower_directory=tower_directory,
        dispatch=facts.dispatch,
        projector=facts.projector,
        tokens_per_image=None if is_foreign(found) else facts.tokens_per_image(kind),
        audio=summarize_audio(facts.shapes, audio_directory),
        audio_directory=audio_directory,
        lora=_lora(checkpoint),
        needs_alignment=needs_alignment(checkpoint),
        disagreements=(
            *(facts.disagreements(kind, lines) if not is_foreign(found) else ()),
            *(f"no {name} beside the weights: no loader can use them" for name in missing),
        ),
        missing=missing,
        left_out=checkpoint.left_out,
        family=_family(found),
        family_evidence=None
        if told is None
        else told.evidence + (f"; {told.doubt}" if told.doubt else ""),
        tower_source=facts.tower_source if kind in WHOLE else None,
        features=facts.features_text if kind in WHOLE else None,
        tiles=facts.tiles if kind in WHOLE else None,
        quantisation=found.quantisation.method if found.quantisation is not None else None,
        config_file=checkpoint.config_file if checkpoint.config is not None else None,
        training=checkpoint.training,
        memory=_memory(checkpoint, forms, found, dtype, batch),
    )


def _memory(
    checkpoint: Checkpoint, forms: Mapping[Form, int], found: Kind, dtype: str | None, batch: int
) -> Memory | None:
    if found.name not in (*WHOLE, LANGUAGE_MODEL, TOWER) or found.quantisation is not None:
        return None
    scales = (found.family or VITA).s2_scales(checkpoint.config or {})
    return estimate(checkpoint, forms, dtype=dtype, batch=batch, scales=scales or ())


_NOWHERE: Final = TowerDirectory(None, None, None)


def _family(kind: Kind) -> str | None:
    """Return the family of a model or a run, if it is another than VITA."""
    if kind.relative is not None:
        return kind.relative.label
    known = kind.family is not None and kind.family is not VITA
    return kind.family.label if kind.family is not None and known else None


def _missing_files(checkpoint: Checkpoint, kind: str, tower: Tower | None) -> Iterator[str]:
    """Name the files that a directory of this kind needs beside its weights, and has not."""
    if checkpoint.layout in ("file", "state"):
        return
    is_eva = kind == TOWER and tower is not None and tower.traits.lone_file
    whole = (*WHOLE, LANGUAGE_MODEL, TOWER, MULTIMODAL)
    if kind in whole and checkpoint.config is None and not is_eva:
        yield CONFIG
    if kind == LORA_RUN and checkpoint.adapter_config is None:
        yield ADAPTER_CONFIG


def _shards(checkpoint: Checkpoint) -> tuple[ShardSummary, ...]:
    sources = (
        (tensor.source,)
        if isinstance(tensor, TensorRef)
        else {ref.source for ref in refs_of(tensor)}
        for tensor in checkpoint.tensors.values()
    )
    counts: Counter[File] = Counter()
    # Mostly one file after the other: each is looked up once for many tensors.
    for source, group in groupby(chain.from_iterable(sources)):
        counts[source] += len(list(group))
    return tuple(
        ShardSummary(shard.name, shard.format, shard.file.size, counts[shard.file])
        for shard in checkpoint.shards
    )


def names_by_part(checkpoint: Checkpoint, kind: Kind | None = None) -> dict[str, list[str]]:
    """Return the names of the tensors of each part, empty for a part that is not there."""
    kind = kind_of(checkpoint) if kind is None else kind
    is_tower = kind.name == TOWER
    groups: dict[str, list[str]] = {label: [] for label in parts.LABELS}
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    prefix = towers.tower_prefix(shapes) if is_tower else parts.TOWER_PREFIX
    part_of = kind.part_of
    for name in checkpoint.tensors:
        below = is_tower and name.startswith(prefix)
        groups[parts.VISION_TOWER if below else part_of(name)].append(name)
    return groups


def _parts(checkpoint: Checkpoint, kind: Kind) -> tuple[PartSummary, ...]:
    codes, tensors = kind.quantisation, checkpoint.tensors
    always = (parts.LANGUAGE_MODEL, parts.MM_PROJECTOR, parts.VISION_TOWER)
    found = []
    for part, names in names_by_part(checkpoint, kind).items():
        if not names and part not in always:
            continue
        forms = count_forms(tensors[name] for name in names)
        sizes = bytes_by_dtype(forms)
        elements = (
            (prod(shape) * count for (_, shape), count in forms.items())
            if codes is None
            else (codes.parameters(name, tensors[name]) for name in names)
        )
        found.append(
            PartSummary(
                name=part,
                tensors=len(names),
                parameters=sum(elements),
                bytes=sum(sizes.values()),
                dtypes=tuple(sizes),
                bytes_by_dtype=tuple(sizes.values()),
            )
        )
    return tuple(found)


def _lora(checkpoint: Checkpoint) -> LoraSummary | None:
    deltas = Counter(map(parts.part_of, checkpoint.tensors))[parts.LORA]
    if checkpoint.layout != "lora" and not deltas:
        return None
    config = checkpoint.adapter_config or {}
    rank, alpha = config.get("r"), config.get("lora_alpha")
    return LoraSummary(
        r=rank if type(rank) is int else None,
        lora_alpha=_finite(alpha),
        deltas=deltas,
        base_model=_text(config.get("base_model_name_or_path")),
        targets=_targets(config.get("target_modules")),
        **_changes(checkpoint),
    )


def _targets(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(sorted(name for name in listed if isinstance(name, str)))


def _changes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how much of its base a run changes, as far as the run alone tells."""
    from vita_ckpt.core.lora import read_names  # noqa: PLC0415 - of runs only

    tensors, names = checkpoint.tensors, read_names(checkpoint.tensors)
    changed: dict[str, int] = {}
    for module, delta in names.deltas.items():
        if delta.a is not None and delta.b is not None:
            a, b = tensors[delta.a].shape, tensors[delta.b].shape
            if a and b:
                changed[f"{module}.weight"] = a[-1] * b[0]
    wanted = bind(checkpoint.config or {}, {}).part(parts.LANGUAGE_MODEL).wanted
    total = sum(map(prod, wanted.values()))
    language = [n for name, n in changed.items() if parts.part_of(name) == parts.LANGUAGE_MODEL]
    projector = next(
        (o for n, o in names.trained.items() if n.startswith(parts.PROJECTOR_PREFIX)), None
    )
    files = {shard.file: shard.name for shard in checkpoint.shards}
    return {
        "modules": len(changed),
        "changes": sum(changed.values()),
        "share": sum(language) / total if total else None,
        "trained": len(names.trained),
        "projector_file": None
        if projector is None
        else files.get(refs_of(tensors[projector])[0].source),
    }


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _finite(value: Any) -> float | None:
    return value if type(value) in (int, float) and abs(value) < float("inf") else None
