"""Plan conversions: the same model under other names, in another dtype or other weight files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Final

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.towers.tensors import expected_shapes
from vita_ckpt.core.binding.bind import bind, bind_to
from vita_ckpt.core.binding.modules import is_tied
from vita_ckpt.core.binding.result import Binding
from vita_ckpt.core.checkpoint import Checkpoint, Pieces, Shape, Tensor, TensorRef, cast
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.dtype import BITS, can_cast
from vita_ckpt.core.names import library_spellings, listed_shapes, lone_tower, upstream_names
from vita_ckpt.core.options import Names, Tie
from vita_ckpt.core.plan import (
    AddTensor,
    DropTensor,
    Edit,
    Plan,
    Record,
    ReplaceTensor,
    SetConfig,
    WeightFiles,
)
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.quantisation import quantisation_of
from vita_ckpt.core.remedies import validate
from vita_ckpt.core.requirements import LAYOUTS, refuse_training_state
from vita_ckpt.core.spelling import did_you_mean, globs_of_nothing
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import InputError, UsageError
from vita_ckpt.surgery.preconditions import require_binding

_TORCH_NAMES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FLOATS: Final = ("F64", "F32", "F16", "BF16")


def plan_convert(
    checkpoint: Checkpoint,
    *,
    names: Names | None = None,
    dtype: str | None = None,
    only: Collection[str] = (),
    keep: Collection[str] = (),
    weight_files: WeightFiles,
    tie: Tie = "auto",
    head_is_table: bool | None = None,
) -> Plan:
    """Return a plan that writes a checkpoint, or a tower, in another form; the model is the same.

    ``names`` are those of the loader that the result is for: it must find all that it builds then.
    ``dtype`` is what floating tensors are converted to, of the parts ``only`` if there are any, but
    not those whose stored or new names match a glob of ``keep``. ``head_is_table`` says whether a
    stored ``lm_head`` equals the embeddings, None if that is not known.

    Raises InputError if the names do not become the loader's, UsageError for a part that is none.
    """
    refuse_training_state(checkpoint)
    _check_base(checkpoint)
    _check_parts(only)
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    reasons: dict[str, str] = {}
    origins: dict[str, tuple[str, ...]] = {name: (name,) for name in tensors}
    if names is not None:
        tensors, origins = _to_upstream(checkpoint, reasons)
    settings, notes = _tie(checkpoint, tensors, origins, reasons, tie, head_is_table)
    if names is not None:
        _require(_plan(checkpoint, tensors, reasons, settings))
        notes += _unexpected(checkpoint, tensors)
    if names == "transformers":
        tensors, origins = _to_library(checkpoint, tensors, origins, reasons)
    if dtype is not None:
        quantised = quantisation_of(checkpoint)
        packed = {
            name
            for name, stored in origins.items()
            if quantised is not None and any(map(quantised.is_part, stored))
        }
        if packed:
            notes.append(f"{len(packed)} tensors of codes and scales stay: none is dequantised")
        wanted = {name: tensor for name, tensor in tensors.items() if name not in packed}
        converted = _cast_all(wanted, origins, reasons, dtype, only, keep)
        notes += _kept_dtypes(converted, wanted, dtype)
        called = {*tensors, *(name for stored in origins.values() for name in stored)}
        notes += [f"--keep {sentence}" for sentence in globs_of_nothing(keep, called)]
        tensors |= converted
        settings += _dtype_settings(checkpoint, dtype, only)
    elif keep or only:
        option = "--keep" if keep else "--part"
        notes += [f"{option} limits --dtype, which is not given: no tensor is converted"]
    plan = _plan(checkpoint, tensors, reasons, settings)
    asked = {"names": names, "dtype": dtype, "parts": sorted(only), "keep": sorted(keep)}
    form = {"format": weight_files.format, "max_shard_size": weight_files.max_shard_size}
    given = {key: value for key, value in {**asked, **form}.items() if value not in (None, [])}
    record = Record(arguments={**given, "tie": tie}, needs_alignment=needs_alignment(checkpoint))
    return replace(plan, record=record, weight_files=weight_files, notes=tuple(notes))


def head_and_table(
    checkpoint: Checkpoint, names: Names | None
) -> tuple[TensorRef, TensorRef] | None:
    """Return a stored head beside the embeddings that the config ties it to; None without one."""
    if not is_tied(checkpoint.config or {}):
        return None
    refs = checkpoint.refs
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in refs}
    if names is not None:
        shapes = {name: ref.shape for name, ref in refs.items()}
        found = upstream_names(checkpoint.config or {}, shapes)
    stored = {pieces[0]: name for name, pieces in found.items()}
    if parts.LM_HEAD not in stored or parts.EMBED_TOKENS not in stored:
        return None
    return refs[stored[parts.LM_HEAD]], refs[stored[parts.EMBED_TOKENS]]


def _check_base(checkpoint: Checkpoint) -> None:
    if checkpoint.layout not in ("safetensors", "torch"):
        raise InputError(
            "not-a-checkpoint",
            checkpoint.root,
            expected="a directory with a model's weights, or a tower's",
            got=LAYOUTS.get(checkpoint.layout, checkpoint.layout),
            hint="merge-lora merges a run, extract-projector writes its projector as another file",
        )


def _check_parts(only: Collection[str]) -> None:
    for part in only:
        if part not in parts.LABELS:
            raise UsageError(
                "unknown-part",
                part,
                expected=f"one of {', '.join(parts.LABELS)}",
                hint=did_you_mean(part, parts.LABELS),
            )


def _plan(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    reasons: Mapping[str, str],
    settings: Collection[SetConfig],
) -> Plan:
    """Return the plan whose target has these tensors."""
    base = checkpoint.tensors
    edits: list[Edit] = []
    for name, tensor in tensors.items():
        if name not in base:
            edits.append(AddTensor(name, tensor, reasons[name]))
        elif base[name] != tensor:
            edits.append(ReplaceTensor(name, tensor, reasons[name]))
    edits += [DropTensor(n, reasons.get(n, "under another name")) for n in base if n not in tensors]
    return Plan("convert", checkpoint, (*edits, *settings))


def _to_upstream(
    checkpoint: Checkpoint, reasons: dict[str, str]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Return the tensors under upstream's names, and which stored ones each comes from."""
    refs = checkpoint.refs
    shapes = {name: ref.shape for name, ref in refs.items()}
    tensors: dict[str, Tensor] = {}
    origins: dict[str, tuple[str, ...]] = {}
    for stored, pieces in upstream_names(checkpoint.config or {}, shapes).items():
        views = _views(refs[stored], len(pieces)) if len(pieces) > 1 else (refs[stored],)
        for name, view in zip(pieces, views, strict=True):
            tensors[name], origins[name] = view, (stored,)
            if len(pieces) > 1:
                reasons[name] = f"a part of {stored}"
                reasons[stored] = f"split into {len(pieces)} tensors"
            elif name != stored:
                reasons[name] = f"was {stored}"
                reasons[stored] = f"is now {name}"
    return tensors, origins


def _to_library(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Tensor],
    origins: Mapping[str, tuple[str, ...]],
    reasons: dict[str, str],
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """Return the tensors under the names of transformers 5.6."""
    found: dict[str, Tensor] = {}
    stored: dict[str, tuple[str, ...]] = {}
    for spelling in library_spellings({name: t.shape for name, t in tensors.items()}):
        name, pieces = spelling.name, spelling.pieces
        come_from = dict.fromkeys(origin for piece in pieces for origin in origins[piece])
        stored[name] = tuple(come_from)
        if len(pieces) == 1:
            found[name] = tensors[pieces[0]]
        else:
            whole = checkpoint.tensors.get(next(iter(come_from)))
            is_as_stored = len(come_from) == 1 and whole is not None
            found[name] = (
                whole
                if is_as_stored and whole is not None
                else _fused(checkpoint, name, spelling.shape, [tensors[p] for p in pieces])
            )
        for origin in come_from:
            if origin != name:
                reasons[origin] = f"is now {name}" if len(pieces) == 1 else f"fused into {name}"
        if stored[name] != (name,):
            reasons[name] = (
                f"was {stored[name][0]}"
                if len(come_from) == 1
                else f"{len(come_from)} tensors, fused"
            )
    return found, stored


def _fused(checkpoint: Checkpoint, name: str, shape: Shape, pieces: Collection[Tensor]) -> Pieces:
    own = tuple(piece for piece in pieces if isinstance(piece, TensorRef))
    dtypes = Counter(piece.dtype for piece in own)
    if len(dtypes) > 1:
        counted = ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.most_common())
        raise InputError(
            "dtypes-differ",
            f"{checkpoint.root}: {name}",
            expected="experts of one dtype, which are fused into one tensor",
            got=counted,
            hint="convert them to one dtype first: --names upstream --dtype DTYPE",
        )
    return Pieces(own, shape)


def _views(ref: TensorRef, count: int) -> Iterator[TensorRef]:
    """Yield the parts of a fused tensor [experts, rows, columns], in the order of its elements."""
    experts, rows, columns = ref.shape
    each = count // experts
    high = rows // each
    strides = ref.strides or (rows * columns, columns, 1)
    width = BITS[ref.dtype] // 8
    for number in range(count):
        expert, part = divmod(number, each)
        start = (expert * strides[0] + part * high * strides[1]) * width
        yield TensorRef(
            ref.source,
            ref.offset + start,
            ref.dtype,
            (high, columns),
            None if ref.strides is None else strides[1:],
        )


def _require(plan: Plan) -> None:
    """Raise InputError unless the loader finds all that it builds, under the names of ``plan``."""
    target, root = plan.target(), plan.base.root
    config = target.config or {}
    shapes = {name: tensor.shape for name, tensor in target.tensors.items()}
    tower = lone_tower(config)
    if tower is not None:
        prefix = tower.traits.standalone_prefix
        wanted = {prefix + name: shape for name, shape in expected_shapes(config).items()}
        bound = bind_to(wanted, target.tensors)
        label = f"every tensor of the {tower.traits.label} tower"
        _refuse(bound, compare(wanted, shapes), root, label)
        return
    bound = bind(config, target.tensors)
    if not bound.part(parts.LANGUAGE_MODEL).wanted:
        raise InputError(
            "names-not-determined",
            root,
            expected="a config.json that determines the tensors of a model: a VITA checkpoint's, "
            "its language model's or a tower's",
            got=f"model_type {config.get('model_type')!r}",
            hint="--names needs one; without --names all names stay as they are",
        )
    require_binding(plan)
    _refuse_hidden(shapes, root)
    listed = listed_shapes(config)
    projector = {n: s for n, s in listed.items() if n.startswith(parts.PROJECTOR_PREFIX)}
    expected = "every tensor of the projector of the config"
    _refuse(bound, compare(projector, shapes), root, expected)


def _refuse_hidden(shapes: Mapping[str, Shape], root: str) -> None:
    """Raise InputError for a part of the model that is there under a prefix of unknown meaning.

    Without a stored tower a loader takes the one of the directory, which has other weights.
    """
    for name in shapes:
        levels = name.split(".")
        own = (".".join(levels[at:]) for at in range(1, len(levels)))
        inner = next((n for n in own if parts.part_of(n) not in (parts.OTHER, parts.LORA)), None)
        if parts.part_of(name) == parts.OTHER and inner is not None and inner not in shapes:
            raise InputError(
                "weights-do-not-fit",
                f"{root}: {name}",
                expected=f"{inner} under a name that a loader binds, or one that a wrapper gave it",
                got=f"a prefix {name.removesuffix(inner)} of unknown meaning",
                hint="loaders would leave it out",
            )


def _refuse(bound: Binding, mismatch: KeyMismatch, root: str, expected: str) -> None:
    cause = "; ".join(cause.what for cause in diagnose(bound, root))
    KeyMismatch(mismatch.missing, (), mismatch.mismatched).refuse(
        root, expected, cause or f"{validate(root)} lists what does not fit"
    )


def _unexpected(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> list[str]:
    config = checkpoint.config or {}
    names = bind(config, tensors).part(parts.LANGUAGE_MODEL).mismatch.unexpected
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"no loader binds {names[0]}{more}: kept under the name that is stored"]


def _tie(
    checkpoint: Checkpoint,
    tensors: dict[str, Tensor],
    origins: dict[str, tuple[str, ...]],
    reasons: dict[str, str],
    tie: Tie,
    head_is_table: bool | None,
) -> tuple[list[SetConfig], list[str]]:
    """Drop or add the head as ``tie`` says; return what follows in the config, and what is said."""
    ties = is_tied(checkpoint.config or {})
    table, head = tensors.get(parts.EMBED_TOKENS), tensors.get(parts.LM_HEAD)
    untied = SetConfig("tie_word_embeddings", False, "the head is a tensor of its own")
    if not ties or table is None or tie == "keep":
        return [], []
    if tie == "untie":
        if head is None:
            tensors[parts.LM_HEAD] = table
            origins[parts.LM_HEAD] = origins[parts.EMBED_TOKENS]
            reasons[parts.LM_HEAD] = "a copy of the embeddings, which it was tied to"
        return [untied], []
    if head is None:
        return [], []
    if head_is_table:
        stored = origins[parts.LM_HEAD][0]
        del tensors[parts.LM_HEAD], origins[parts.LM_HEAD]
        reasons[stored] = "the embeddings, which it is tied to"
        return [], []
    if head_is_table is None:
        return [], [f"{parts.LM_HEAD} is kept: it was not compared with the embeddings"]
    return [], [
        f"{parts.LM_HEAD} differs from the embeddings and is kept, but tie_word_embeddings is "
        "true: loaders drop it; --tie untie makes them use it"
    ]


def _cast_all(
    tensors: Mapping[str, Tensor],
    origins: Mapping[str, tuple[str, ...]],
    reasons: dict[str, str],
    dtype: str,
    only: Collection[str],
    keep: Collection[str],
) -> dict[str, Tensor]:
    """Return the tensors that are converted."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == dtype or not can_cast(tensor.dtype, dtype):
            continue
        if only and parts.part_of(name) not in only:
            continue
        called = (name, *origins.get(name, ()))
        if any(fnmatchcase(one, glob) for one in called for glob in keep):
            continue
        found[name] = cast(tensor, dtype)
        before = reasons.get(name)
        what = f"{tensor.dtype} to {dtype}"
        reasons[name] = f"{before}; {what}" if before else what
    return found


def _kept_dtypes(
    converted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], dtype: str
) -> list[str]:
    """Say which floating dtypes stay because nothing here converts them."""
    odd = Counter(
        tensor.dtype
        for name, tensor in tensors.items()
        if name not in converted and tensor.dtype.startswith("F") and tensor.dtype not in _FLOATS
    )
    return [
        f"{count} tensors stay {kind}: no conversion to {dtype} is defined"
        for kind, count in odd.items()
    ]


def _dtype_settings(checkpoint: Checkpoint, dtype: str, only: Collection[str]) -> list[SetConfig]:
    """Return what the config says of the dtype, where most of the model has it now."""
    config = checkpoint.config
    if config is None or (only and parts.LANGUAGE_MODEL not in only):
        return []
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    value = _TORCH_NAMES[dtype]
    return [SetConfig(k, value, "the dtype of the weights") for k in keys if config.get(k) != value]
