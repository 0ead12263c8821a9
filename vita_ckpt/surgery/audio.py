"""Plan merges, swaps and extractions of audio encoders and adapters (AUDIO §7)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final, Literal

from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.audio.directory import GLOBAL_CMVN, TRAIN, WEIGHTS
from vita_ckpt.core.anatomy.audio.settings import AudioAdapter, AudioEncoder
from vita_ckpt.core.anatomy.audio.tensors import (
    ADAPTER,
    AUDIO_PREFIX,
    CMVN,
    COUNTER,
    PROMPT,
    STATISTICS,
    adapter_of_shapes,
    adapter_shapes,
    expected_shapes,
    is_statistic,
    prompt_rows,
)
from vita_ckpt.core.checkpoint import EMPTY, Checkpoint, RandomInit, Shape, Tensor, TensorRef
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.plan import (
    AddTensor,
    DropTensor,
    Edit,
    Plan,
    PutFile,
    Record,
    ReplaceTensor,
    SetConfig,
)
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.remedies import validate
from vita_ckpt.core.requirements import vita_config
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.surgery.donors import get_w, without_inner_wrappers
from vita_ckpt.surgery.projector import (
    dominant_dtype,
    language_dtype,
    put_tensor,
    tensors_below,
)

KEYWORD: Final = "audio_encoder.adpter"
_ADAPTER_PREFIX: Final = AUDIO_PREFIX + ADAPTER


@dataclass(frozen=True, slots=True)
class AudioModelArgs:
    """Upstream's ``model_args``, with what they name already opened.

    ``audio_encoder`` is the checkpoint of a directory's ``final.pt``, ``settings`` those of its
    ``train.yaml``. ``mm_audio_encoder`` is the string for the config. The adapter is taken from
    ``pretrain_audio_mlp_adapter``; without it, ``adapter`` decides whether it is kept or drawn at
    random with ``seed``. None keeps it where it still fits, takes that of ``final.pt`` where not,
    and is an error where neither fits.
    """

    audio_encoder: Checkpoint
    settings: AudioEncoder
    mm_audio_encoder: str
    pretrain_audio_mlp_adapter: Checkpoint | None = None
    adapter: Literal["keep", "reinit"] | None = None
    seed: int = 0


def plan_extract_audio_adapter(checkpoint: Checkpoint) -> Plan:
    """Return a plan for a file that holds only the audio adapter of ``checkpoint`` (any layout).

    Names are upstream's, ``model.audio_encoder.adpter.project.weight``; running statistics are
    among them. Raises AdapterError if there is no adapter, or one of no known type.
    """
    weights = _adapter_of(checkpoint)
    adapter = adapter_of_shapes(_shapes(weights))
    if adapter is None:
        raise _unknown(checkpoint, weights)
    return Plan(
        operation="extract-audio-adapter",
        base=EMPTY,
        edits=tuple(
            AddTensor(_ADAPTER_PREFIX + name, tensor, "audio adapter")
            for name, tensor in weights.items()
        ),
        donors=(checkpoint,),
        notes=(f"audio adapter: {adapter}",),
    )


def plan_merge_audio_adapter(
    base: Checkpoint, adapter: Checkpoint, settings: AudioEncoder | None = None
) -> Plan:
    """Return a plan that puts the audio adapter of ``adapter`` into ``base``.

    ``adapter`` is anything that holds one: the trainer's file or run, a full checkpoint. Its names,
    read with :func:`~vita_ckpt.surgery.donors.get_w`, and shapes must be those of the base's
    adapter, by ``settings`` or by its tensors. The trainer writes no running statistics of batch
    norms: those of the base are kept, and that is said. Tensors have the base's dtypes.

    Raises InputError for a base that is not a VITA checkpoint or has no audio encoder, and
    AdapterError for an adapter that does not fit.
    """
    vita_config(base)
    old = _below(base, _ADAPTER_PREFIX)
    known = settings.adapter if settings is not None else adapter_of_shapes(_shapes(old))
    if known is None or not any(name.startswith(AUDIO_PREFIX) for name in base.tensors):
        raise InputError(
            "audio-absent",
            base.root,
            expected="a base with an audio encoder",
            got="no tensors of one" if not old else "tensors of no known adapter",
            hint="vita-ckpt swap-audio-encoder puts one in",
        )
    edits, notes = _merge(base, adapter, known)
    plan = Plan(
        operation="merge-audio-adapter",
        base=base,
        edits=tuple(edits),
        donors=(adapter,),
        notes=notes,
        record=Record(roles=("adapter",), needs_alignment=needs_alignment(base)),
    )
    return _require_adapter(plan, known)


def initialize_audio_modules(base: Checkpoint, args: AudioModelArgs) -> Plan:
    """Return a plan that gives ``base`` the audio encoder of ``args``, as upstream should.

    Upstream itself loads the base's old audio tensors over the new encoder. Here the old ones are
    removed, and those of ``final.pt`` added under upstream's names in the base's dtype; feature
    statistics keep their own. Running statistics that an adapter's file lacks are kept from the
    base. A base without audio gets an encoder.

    Raises InputError for an invalid base, a ``final.pt`` that lacks tensors of the encoder, or one
    for a language model of another width; AdapterError for an adapter that does not fit; UsageError
    where a choice is needed.
    """
    config = vita_config(base)
    settings, donor = args.settings, args.audio_encoder
    _check_width(base, settings)
    if not args.mm_audio_encoder or not args.mm_audio_encoder.isprintable():
        raise UsageError("invalid-audio-path", args.mm_audio_encoder, expected="a printable path")
    wanted = expected_shapes(settings, prompt_rows(config))
    own = {n: s for n, s in wanted.items() if not n.startswith(ADAPTER) and n != PROMPT}
    refs = donor.refs
    compare(own, {name: refs[name].shape for name in own if name in refs}).refuse(
        donor.root,
        f"every tensor of the encoder that {TRAIN} describes",
        f"{WEIGHTS} belongs to another encoder, or is incomplete",
    )
    dtype = _audio_dtype(base)
    names = {AUDIO_PREFIX + name for name in wanted}
    edits: list[Edit] = [
        DropTensor(name, "a tensor of the old audio encoder")
        for name in tensors_below(base, AUDIO_PREFIX)
        if name not in names
    ]
    edits += [
        put_tensor(
            base,
            AUDIO_PREFIX + name,
            refs[name],
            _kept(base, name, refs[name], dtype),
            "audio encoder",
        )
        for name in own
    ]
    if PROMPT in wanted:
        _require_prompt(base, wanted[PROMPT])
    if config.get("mm_audio_encoder") != args.mm_audio_encoder:
        edits.append(SetConfig("mm_audio_encoder", args.mm_audio_encoder, "the new audio encoder"))
    adapter_edits, notes = _adapter(base, args, dtype)
    # An adapter's file drops nothing: what the new type does not have is dropped above.
    edits += adapter_edits
    donors = {"audio_encoder": donor}
    if args.pretrain_audio_mlp_adapter is not None:
        donors["adapter"] = args.pretrain_audio_mlp_adapter
    ignored = [n for n in refs if n not in wanted]
    plan = Plan(
        operation="swap-audio-encoder",
        base=base,
        edits=tuple(edits),
        donors=tuple(donors.values()),
        notes=(f"audio encoder: {settings}", *notes, *_ignored(ignored), *_chunks(settings)),
        record=Record(
            roles=tuple(donors),
            arguments={
                "mm_audio_encoder": args.mm_audio_encoder.rpartition("/")[2],
                **({"adapter": args.adapter} if args.adapter is not None else {}),
            },
            seed=args.seed if args.adapter == "reinit" else None,
            needs_alignment=needs_alignment(base),
        ),
    )
    return _require_adapter(plan, settings.adapter)


def plan_extract_audio_encoder(
    checkpoint: Checkpoint, settings: AudioEncoder, texts: Mapping[str, str]
) -> Plan:
    """Return a plan for a directory with the audio encoder of ``checkpoint``, as upstream loads it.

    ``settings`` and ``texts`` (``train.yaml`` and ``global_cmvn``) are those of the directory that
    the checkpoint was made with. ``final.pt`` holds the adapter and the feature statistics too.
    Raises InputError if the tensors are not those that the settings describe.
    """
    own = _below(checkpoint, AUDIO_PREFIX)
    wanted = {
        name: shape
        for name, shape in expected_shapes(settings, prompt_rows(checkpoint.config or {})).items()
        if not name.endswith(COUNTER) or name in own
    }
    compare(wanted, _shapes(own)).refuse(
        checkpoint.root,
        f"exactly the audio tensors that {TRAIN} describes",
        "--audio-encoder names the directory that they were trained with",
    )
    edits: list[Edit] = [AddTensor(name, tensor, "audio encoder") for name, tensor in own.items()]
    edits += [PutFile(name, texts[name], "the encoder's settings") for name in (TRAIN, GLOBAL_CMVN)]
    note = f"audio encoder: {settings}, audio adapter: {settings.adapter}"
    return Plan("extract-audio-encoder", EMPTY, tuple(edits), (checkpoint,), (note,))


def _merge(
    base: Checkpoint, adapter: Checkpoint, known: AudioAdapter
) -> tuple[list[Edit], tuple[str, ...]]:
    """Return the edits that put an adapter's tensors into ``base``, and notes about them."""
    weights = _adapter_of(adapter)
    wanted = adapter_shapes(known)
    found = {name: tensor.shape for name, tensor in weights.items()}
    needed = {name: s for name, s in wanted.items() if name in found or not is_statistic(name)}
    misfit = compare(needed, found)
    if misfit:
        try:
            misfit.refuse(adapter.root, f"the tensors of the base's adapter, {known}")
        except InputError as error:
            raise AdapterError(
                "audio-adapter-does-not-fit",
                adapter.root,
                expected=error.expected,
                got=error.got,
                hint="the adapter was trained with another encoder or language model",
            ) from error
    dtype = _audio_dtype(base)
    edits = [
        put_tensor(
            base,
            _ADAPTER_PREFIX + name,
            tensor,
            _kept(base, ADAPTER + name, tensor, dtype),
            "audio adapter",
        )
        for name, tensor in weights.items()
    ]
    missing = [name for name in wanted if name not in found and name.endswith(STATISTICS)]
    notes = [f"audio adapter: {known}"]
    if missing:
        notes.append(
            f"{len(missing)} running statistics are kept: the adapter's file has none, as the "
            f"trainer writes it ({', '.join(missing)})"
        )
    left = [name for name in adapter.tensors if KEYWORD not in name]
    if left:
        notes.append(f"left out of the adapter: {len(left)} other tensors")
    return edits, tuple(notes)


def _adapter(
    base: Checkpoint, args: AudioModelArgs, dtype: str
) -> tuple[list[Edit], tuple[str, ...]]:
    """Return the edits of the adapter of a new encoder, and notes about them."""
    adapter = args.settings.adapter
    wanted = adapter_shapes(adapter)
    old = _below(base, _ADAPTER_PREFIX)
    fits = _fit(wanted, _shapes(old))
    given = _below(args.audio_encoder, ADAPTER)
    if args.pretrain_audio_mlp_adapter is not None:
        edits, notes = _merge(base, args.pretrain_audio_mlp_adapter, adapter)
        taken = {edit.name for edit in edits if isinstance(edit, AddTensor | ReplaceTensor)}
        lacking = [n for n in wanted if n.endswith(STATISTICS) and _ADAPTER_PREFIX + n not in taken]
        for name in lacking:
            if name in old and old[name].shape == wanted[name]:
                continue
            fresh = _drawn(base, name, wanted[name], dtype, args.seed, wanted)
            edits.append(fresh)
            notes = (*notes, f"{name} is that of an untrained norm: the base has none")
        return edits, notes
    if args.adapter == "reinit":
        edits = [
            _drawn(base, name, shape, dtype, args.seed, wanted)
            for name, shape in wanted.items()
            if not name.endswith(COUNTER)
        ]
        edits += [
            DropTensor(_ADAPTER_PREFIX + name, "counts batches of the old adapter")
            for name in old
            if name in wanted and name.endswith(COUNTER)
        ]
        note = f"audio adapter: {adapter}, drawn anew (seed {args.seed}): it needs training"
        return edits, (note,)
    if fits:
        return [], (f"audio adapter: {adapter}, kept: it was trained with the encoder it was with",)
    if args.adapter is None and _fit(wanted, _shapes(given)):
        edits = [
            put_tensor(base, _ADAPTER_PREFIX + n, t, _kept(base, ADAPTER + n, t, dtype), WEIGHTS)
            for n, t in given.items()
            if isinstance(t, TensorRef)
        ]
        return edits, (f"audio adapter: {adapter}, that of {WEIGHTS}",)
    raise UsageError(
        "audio-adapter-choice-needed",
        base.root,
        expected=f"a {adapter} adapter for this encoder",
        got="another one" if old else "no adapter",
        hint="--adapter FILE takes a trained one, --adapter reinit draws one anew, to be trained",
    )


def _fit(wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> bool:
    """Return whether an adapter is whole; the counter of a batch norm may be missing."""
    return not compare(
        {name: s for name, s in wanted.items() if name in found or not name.endswith(COUNTER)},
        found,
    )


def _drawn(
    base: Checkpoint, own: str, shape: Shape, dtype: str, seed: int, shapes: Mapping[str, Shape]
) -> Edit:
    """Return the edit that draws a tensor of the adapter as torch initialises it."""
    name = _ADAPTER_PREFIX + own
    module, _, kind = own.rpartition(".")
    weight = shapes[f"{module}.weight"]
    bound = prod(weight[1:]) ** -0.5 if len(weight) > 1 else None
    drawn = RandomInit(dtype, shape, seed, name, bound, float(kind in ("weight", "running_var")))
    return (ReplaceTensor if name in base.tensors else AddTensor)(name, drawn, "drawn anew")


def _require_adapter(plan: Plan, known: AudioAdapter) -> Plan:
    """Return ``plan`` if its target has every tensor of the adapter."""
    found = _shapes(_below(plan.target(), _ADAPTER_PREFIX))
    wanted = {
        n: s for n, s in adapter_shapes(known).items() if n in found or not n.endswith(COUNTER)
    }
    compare(wanted, found).refuse(
        plan.base.root,
        f"every tensor of the audio adapter, {known}",
        f"{validate(plan.base.root)} lists what does not fit",
    )
    return plan


def _require_prompt(base: Checkpoint, shape: Shape) -> None:
    stored = base.tensors.get(AUDIO_PREFIX + PROMPT)
    if stored is None or stored.shape != shape:
        raise InputError(
            "weights-do-not-fit",
            base.root,
            expected=f"{AUDIO_PREFIX}{PROMPT} {list(shape)}, since audio_prompt_finetune is true",
            got="none" if stored is None else str(list(stored.shape)),
            hint="set audio_prompt_finetune to false first",
        )


def _check_width(base: Checkpoint, settings: AudioEncoder) -> None:
    embed = base.tensors.get(parts.EMBED_TOKENS)
    hidden = embed.shape[-1] if embed is not None else (base.config or {}).get("hidden_size")
    if type(hidden) is int and hidden != settings.adapter.out_width:
        raise InputError(
            "audio-adapter-width",
            base.root,
            expected=f"llm_embed_dim {hidden}, the language model's width, in {TRAIN}",
            got=str(settings.adapter.out_width),
            hint="the encoder was trained with another language model",
        )


def _adapter_of(checkpoint: Checkpoint) -> dict[str, TensorRef]:
    refs = without_inner_wrappers(checkpoint).refs
    stored = get_w({name: name for name in refs}, KEYWORD)
    weights = {name: refs[origin] for name, origin in stored.items()}
    if not weights:
        raise AdapterError(
            "adapter-no-audio-adapter",
            checkpoint.root,
            expected=f"tensors named {_ADAPTER_PREFIX}*",
            got=f"{', '.join(list(checkpoint.tensors)[:4])}…" if checkpoint.tensors else "nothing",
            hint="name audio_adpter.bin, its run, or a checkpoint with audio",
        )
    empty = next((name for name, tensor in weights.items() if 0 in tensor.shape), None)
    if empty is not None:
        raise AdapterError(
            "empty-tensor",
            f"{checkpoint.root}: {stored[empty]}",
            expected="a tensor with elements",
            got=f"shape {list(weights[empty].shape)}",
            hint="a ZeRO-3 run saved without gathering: gather the adapter and save it again",
        )
    return weights


def _unknown(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> AdapterError:
    return AdapterError(
        "unknown-audio-adapter",
        checkpoint.root,
        expected="the tensors of an audio adapter",
        got=", ".join(f"{name} {list(t.shape)}" for name, t in list(weights.items())[:4]),
    )


def _audio_dtype(base: Checkpoint) -> str:
    """Return the dtype for audio tensors that the base does not have."""
    audio = [t for n, t in tensors_below(base, AUDIO_PREFIX).items() if not _is_exact(n)]
    return dominant_dtype(audio) or language_dtype(base)


def _kept(base: Checkpoint, name: str, tensor: Tensor, dtype: str) -> str:
    """Return the dtype that a donor's tensor gets: the base's, or its own where that matters."""
    old = base.tensors.get(AUDIO_PREFIX + name)
    if old is not None:
        return old.dtype
    return tensor.dtype if _is_exact(name) else dtype


def _is_exact(name: str) -> bool:
    """Return whether a tensor keeps its dtype whatever that of the weights is."""
    return name.endswith((*CMVN, COUNTER))


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors_below(checkpoint, prefix).items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _ignored(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"left out of {WEIGHTS}: {len(names)} that the encoder has not, such as {names[0]}",)


def _chunks(settings: AudioEncoder) -> tuple[str, ...]:
    if not settings.dynamic_chunks:
        return ()
    return (
        f"transformer-dynamic-chunks is true in {TRAIN}: upstream draws the chunk's size at random",
    )
