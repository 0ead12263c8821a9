"""Plan surgeries: compute what each would make of checkpoints, from their headers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from types import NoneType
from typing import Any, Final

from vita_ckpt.api.inspect import as_checkpoint, check_key
from vita_ckpt.api.locate import StrPath, locate, open_checkpoint, whole
from vita_ckpt.checks.inspect import inspect_checkpoint
from vita_ckpt.core import kinds
from vita_ckpt.core.address import is_remote, parse_address
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.parts import EMBED_TOKENS, LM_HEAD, TOWER_PREFIX, VISION_TOWER, part_of
from vita_ckpt.core.anatomy.towers import tower_of_config, tower_of_shapes
from vita_ckpt.core.checkpoint import Checkpoint, File, RemoteFile, TensorRef, refs_of, uncast
from vita_ckpt.core.dtype import SPELLINGS, is_real
from vita_ckpt.core.filenames import CONFIG, TOKENIZER_FILES, shards_in_all
from vita_ckpt.core.lora import settings_of_deltas
from vita_ckpt.core.options import (
    FORMATS,
    NAMES,
    TIES,
    TRAINED_WEIGHTS,
    Format,
    Names,
    Tie,
    TrainedWeights,
)
from vita_ckpt.core.plan import (
    AddTensor,
    DropFile,
    Plan,
    PutFile,
    ReplaceTensor,
    SavedPlan,
    WeightFiles,
    choice_of,
    not_a_plan,
)
from vita_ckpt.core.quantisation import describe, quantisation_of
from vita_ckpt.core.remedies import merge_lora, merge_projector
from vita_ckpt.core.requirements import plain_language_model
from vita_ckpt.core.sharding import parse_size
from vita_ckpt.errors import AdapterError, InputError, UsageError
from vita_ckpt.storage.reading.audio import find_audio_encoder
from vita_ckpt.storage.reading.paths import Stores, is_file, read_json
from vita_ckpt.storage.reading.references import find_named_base, read_adapter_config
from vita_ckpt.storage.reading.tokenizer import (
    new_tokenizer_files,
    read_tokenizer_files,
    token_ids,
)
from vita_ckpt.storage.reading.tower import (
    find_tower,
    read_given_config,
    read_processor,
    read_tower_config,
)
from vita_ckpt.storage.reading.training_files import state_beside
from vita_ckpt.storage.reading.training_state import open_training_state
from vita_ckpt.storage.tensors.compare import are_equal
from vita_ckpt.surgery import config, conversion, embeddings, vision_modules
from vita_ckpt.surgery import consolidate as consolidation
from vita_ckpt.surgery import lora as lora_surgery
from vita_ckpt.surgery import projector as projector_surgery
from vita_ckpt.surgery.donors import KEYWORD
from vita_ckpt.surgery.embeddings import NewRows
from vita_ckpt.surgery.vision_modules import VisionModelArgs

_MOST_DIGITS: Final = 9  # of a row's number


def plan_extract_projector(
    checkpoint: Checkpoint | StrPath,
    *,
    bare: bool = False,
    key: str | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a file that holds the projector of ``checkpoint`` alone.

    ``checkpoint`` is anything that holds one: a checkpoint, the trainer's file or run, a LoRA run.
    Tensors are named as upstream does, ``model.mm_projector.0.weight``, or ``0.weight`` if
    ``bare``. ``key`` is the path of the state dict in a file of ``torch.save`` with several. Raises
    InputError if it cannot be read and AdapterError if it has no projector.
    """
    opened = _with_projector(checkpoint, Stores() if stores is None else stores, key)
    check_key(key, opened)
    plan = projector_surgery.plan_extract_projector(opened, bare=bare)
    return _noted(replace(plan, request={"bare": bare}))


def plan_merge_projector(
    base: Checkpoint | StrPath,
    adapter: Checkpoint | StrPath,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
    tower: Checkpoint | StrPath | None = None,
    key: str | None = None,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to put the projector of ``adapter`` into ``base``, and leave all else as it is.

    ``dtype`` (``"bf16"``, ``"float16"``, ``"F32"`` …) is what the projector is written in, by
    default the dtype of the base's. ``extras`` names other tensors of the adapter to take along,
    such as ``embed_tokens``. ``key`` is the path of the state dict in an adapter that is a file of
    ``torch.save`` with several.

    A base without a vision tower, such as a plain language model, becomes a VITA checkpoint, as
    upstream's "base model + projector" load makes of it: ``adapter`` is then a run with its
    ``config.json``, ``tower`` the vision tower, by default what that config names.

    What is taken of the adapter is read: NaN, infinities, matrices of zeros and integers are
    refused unless ``allow_bad_values``. Of an adapter on the hub only headers are read here.

    Raises InputError, AdapterError or CastError where these do not go together, and UsageError for
    an unknown dtype or an extra that is not there.
    """
    stores = Stores() if stores is None else stores
    base, adapter = as_checkpoint(base, stores), _with_projector(adapter, stores, key)
    check_key(key, adapter)
    _refuse_swapped(base, adapter, merge_projector)
    if tower is not None or _is_plain(base):
        if dtype is not None or extras:
            raise UsageError(
                "option-without-tower",
                "--dtype" if dtype is not None else "--with",
                expected="a base that has its vision tower already",
                hint="make the checkpoint first, then merge into it",
            )
        plan = _plan_assemble(base, adapter, tower, None, stores)
        return _with_values_checked(plan, adapter, allow_bad_values)
    code = _dtype(dtype)
    names = (extras,) if isinstance(extras, str) else extras
    plan = projector_surgery.plan_merge_projector(base, adapter, dtype=code, extras=names)
    plan = _noted(replace(plan, request={"dtype": code, "extras": sorted(names)}))
    return _with_values_checked(plan, adapter, allow_bad_values)


def plan_merge_lora(
    base: Checkpoint | StrPath | None = None,
    adapter: Checkpoint | StrPath | None = None,
    *,
    dtype: str | None = None,
    adapter_config: StrPath | None = None,
    lora_alpha: float | None = None,
    use_rslora: bool = False,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to merge a LoRA run into the checkpoint that it was trained on, as peft's merge does.

    ``adapter`` is the run, or a training state of one. ``base`` may be left out where the run names
    one that is found: by a relative path here or beside the run, or in the hub's cache. ``dtype``
    (``"bf16"``, ``"float16"`` …) is what the result is in, by default what the base is in; with
    ``"f16"`` it is what upstream's loader holds. ``allow_bad_values`` is that of
    :func:`plan_merge_projector`.

    Without ``adapter``, ``base`` is a checkpoint that was saved with its deltas unmerged. The
    run's ``adapter_config.json`` lies beside it, or is ``adapter_config``; without one,
    ``lora_alpha`` and ``use_rslora`` say how the deltas are scaled.

    Raises InputError, AdapterError or CastError where these do not go together, and UsageError for
    an unknown dtype or options that exclude each other.
    """
    stores = Stores() if stores is None else stores
    code = _dtype(dtype)
    if adapter is not None:
        if adapter_config is not None or lora_alpha is not None or use_rslora:
            raise UsageError(
                "options-exclude-each-other",
                "--adapter",
                expected="no --adapter-config, --lora-alpha or --rslora: those are for deltas in "
                "the checkpoint itself",
                got="both",
                hint="a run has its own adapter_config.json",
            )
        run = consolidation.lora_run_of(as_checkpoint(adapter, stores))
        opened = _base_of_run(run, stores) if base is None else as_checkpoint(base, stores)
        _refuse_swapped(opened, run, merge_lora)
        plan = lora_surgery.plan_merge_lora(
            opened, run, dtype=code, tokenizer=new_tokenizer_files(opened, run, stores)
        )
        plan = replace(plan, request={"dtype": code})
        return _with_values_checked(plan, run, allow_bad_values)
    if base is None:
        raise UsageError(
            "option-needed",
            "--adapter",
            expected="a LoRA run, or --base with deltas in it",
        )
    opened = as_checkpoint(base, stores)
    if opened.layout == "lora":
        raise UsageError(
            "base-and-adapter-swapped",
            opened.root,
            expected="--adapter RUN, with the --base that it was trained on",
            got="the run as the base",
            hint=merge_lora("CKPT", opened.root),
        )
    given = None if adapter_config is None else whole(adapter_config, stores)
    content = _lora_settings(opened, given, lora_alpha, use_rslora, stores)
    plan = lora_surgery.plan_merge_unmerged(opened, content, dtype=code)
    request = {
        "dtype": code,
        "adapter_config": given,
        "lora_alpha": lora_alpha,
        "use_rslora": use_rslora,
    }
    return replace(plan, request=request)


def _with_projector(
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


def plan_swap_tower(
    base: Checkpoint | StrPath,
    tower: Checkpoint | StrPath,
    *,
    tower_path: str | None = None,
    tower_config: StrPath | None = None,
    projector: Checkpoint | StrPath | None = None,
    projector_type: str | None = None,
    seed: int = 0,
    use_s2: bool | None = None,
    s2_scales: str | None = None,
    key: str | None = None,
    allow_bad_values: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to give ``base``, a VITA checkpoint or a plain language model, another tower.

    ``tower`` is a tower directory or file, a full CLIP, SigLIP or InternVL checkpoint, or another
    VITA checkpoint. ``tower_path`` is the string for the config, by default the path as it was
    given (of a VITA checkpoint, what its config names); upstream chooses the class by it.
    ``tower_config`` is the tower's config where it does not lie beside its weights.
    ``projector`` is ``"keep"``, ``"reinit"`` or an adapter; None keeps what still fits. What is
    drawn anew follows from ``seed``. ``use_s2`` None leaves S2 as it is. ``key`` is the path of the
    state dict in a tower or an adapter that is a file of ``torch.save`` with several.
    ``allow_bad_values`` is that of :func:`plan_merge_projector`.

    Raises InputError, AdapterError or CastError where these do not go together, UsageError where
    a choice is needed.
    """
    stores = Stores() if stores is None else stores
    donor = as_checkpoint(tower, stores, key)
    choice = projector if projector in ("keep", "reinit") else None
    adapter = (
        None if projector is None or choice is not None else _with_projector(projector, stores, key)
    )
    check_key(key, donor, *([adapter] if adapter is not None else []))
    path = tower_path if tower_path is not None else _path_for_config(tower, donor)
    given = None if tower_config is None else whole(tower_config, stores)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=path,
        tower_config=_config_of(donor, given, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=projector_type,
        pretrain_mm_mlp_adapter=adapter,
        projector=choice,  # type: ignore[arg-type]
        seed=seed,
        use_s2=use_s2,
        s2_scales=s2_scales,
    )
    plan = vision_modules.initialize_vision_modules(as_checkpoint(base, stores), args)
    request = {
        "tower_path": path,
        "tower_config": given,
        "projector": choice,
        "projector_type": projector_type,
        "seed": seed,
        "use_s2": use_s2,
        "s2_scales": s2_scales,
    }
    plan = _noted(replace(plan, request=request))
    return _with_values_checked(plan, args.pretrain_mm_mlp_adapter, allow_bad_values)


def plan_extract_tower(
    checkpoint: Checkpoint | StrPath,
    *,
    tower_config: StrPath | None = None,
    stores: Stores | None = None,
) -> Plan:
    """Plan a directory that holds the vision tower of ``checkpoint`` alone.

    It loads with transformers and as upstream's ``mm_vision_tower``. ``tower_config`` is the
    tower's ``config.json`` or its directory, by default what the checkpoint leads to. Raises
    InputError if there is no tower, or no config for it.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    vision_modules.refuse_quantised_tower(opened)
    given = None if tower_config is None else whole(tower_config, stores)
    plan = vision_modules.plan_extract_tower(
        opened, _config_of(opened, given, stores), read_processor(opened, stores)
    )
    return _noted(replace(plan, request={"tower_config": given}))


def plan_set(
    checkpoint: Checkpoint | StrPath, values: Mapping[str, Any], *, stores: Stores | None = None
) -> Plan:
    """Plan to set keys of a checkpoint's vision config, and touch no weight.

    ``vocab_size`` and ``tie_word_embeddings`` too, where the tensors agree. Raises UsageError for a
    key or a value that is none, InputError where they do not. What then disagrees with the weights
    and did not before is said in the plan's notes.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    is_same = None
    if values.get("tie_word_embeddings") is True:
        is_same = _are_same(opened.refs.get(LM_HEAD), opened.refs.get(EMBED_TOKENS))
    plan = config.plan_set(opened, values, head_is_table=is_same)
    before, after = (
        inspect_checkpoint(
            side, find_tower(side, stores), find_audio_encoder(side, stores)
        ).disagreements
        for side in (plan.base, plan.target())
    )
    notes = tuple(s for s in after if s not in before)
    return _noted(replace(plan, notes=notes, request={"values": dict(values)}))


def _noted(plan: Plan) -> Plan:
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


def _refuse_swapped(
    base: Checkpoint, adapter: Checkpoint, command: Callable[[str, str], str]
) -> None:
    """Raise UsageError if the adapter is given as the base, and the base as the adapter.

    ``command`` words the call with a base and an adapter.
    """
    adapters = (kinds.PROJECTOR, kinds.LORA_RUN, kinds.AUDIO_ADAPTER)
    models = (kinds.VITA, kinds.LANGUAGE_MODEL)
    found = kinds.kind_of(base).name, kinds.kind_of(adapter).name
    if found[0] in adapters and found[1] in models:
        raise UsageError(
            "base-and-adapter-swapped",
            base.root,
            expected="--base CHECKPOINT --adapter RUN",
            got=f"a {found[0]} as the base, and a {found[1]} as the adapter",
            hint=command(adapter.root, base.root),
        )


def plan_convert(
    checkpoint: Checkpoint | StrPath,
    *,
    names: Names | None = None,
    dtype: str | None = None,
    parts: Collection[str] = (),
    keep: Collection[str] = (),
    max_shard_size: int | str | None = None,
    format: Format = "safetensors",
    tie: Tie = "auto",
    ignore_index: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan to write the same model in another form: names, dtype, weight files.

    ``names`` are those of the loader it is for: ``"upstream"``, which VITA's loader binds, or
    ``"transformers"``, of transformers 5.6 and newer. What wrappers added to names goes away, and
    Mixtral's experts are split or fused. ``dtype`` (``"bf16"``, ``"f16"``, ``"f32"``) is what
    floating tensors are converted to, of the ``parts`` that are named if there are any, but not
    those whose names match a glob of ``keep``. ``max_shard_size`` is in bytes or a text such as
    ``"5GB"``, 0 for one file; None keeps each tensor in its file. ``tie`` says what becomes of a
    head that the config ties to the embeddings: ``"auto"`` drops one that equals them, ``"untie"``
    makes it a tensor of its own. ``ignore_index`` takes the weight files for what they are.

    Raises InputError where the result is not what that loader binds or two tensors would get one
    name, and UsageError for an option that is none.
    """
    stores = Stores() if stores is None else stores
    if isinstance(checkpoint, Checkpoint):
        opened = checkpoint
    else:
        opened = open_checkpoint(checkpoint, ignore_index=ignore_index, stores=stores)
    for value, known, option in (
        (names, (None, *NAMES), "--names"),
        (format, FORMATS, "--format"),
        (tie, TIES, "--tie"),
    ):
        _check_choice(value, known, option)
    code = _dtype(dtype)
    size = parse_size(max_shard_size) if isinstance(max_shard_size, str) else max_shard_size
    plan = conversion.plan_convert(
        opened,
        names=names,
        dtype=code,
        only=_texts(parts),
        keep=_texts(keep),
        weight_files=WeightFiles(format, size),
        tie=tie,
        head_is_table=_head_is_table(opened, names),
    )
    request = {
        "names": names,
        "dtype": code,
        "parts": sorted(_texts(parts)),
        "keep": sorted(_texts(keep)),
        "max_shard_size": size,
        "format": format,
        "tie": tie,
        "ignore_index": ignore_index,
    }
    notes = (*plan.notes, *_absent_shards(opened)) if ignore_index else plan.notes
    return replace(plan, request=request, notes=notes)


def plan_resize_embeddings(
    checkpoint: Checkpoint | StrPath,
    *,
    tokens: int | None = None,
    tokenizer: StrPath | None = None,
    init: str = "mean",
    seed: int = 0,
    multiple_of: int = 1,
    stores: Stores | None = None,
) -> Plan:
    """Plan another number of rows of ``embed_tokens`` and ``lm_head``, and ``vocab_size`` with it.

    The rows are for ``tokens`` tokens, or for those of a directory ``tokenizer``, whose files take
    the place of the checkpoint's; their number is padded to ``multiple_of``. New rows are the
    ``"mean"`` of the others, ``"zeros"``, drawn anew (``"normal"``, from ``seed``), or
    ``"copy:TOKEN"``, the row of a token or of a number. All others stay as they are.

    Raises UsageError for options that are none, InputError where the tokenizer has more tokens, or
    what it has is not known and rows would go.
    """
    stores = Stores() if stores is None else stores
    opened = as_checkpoint(checkpoint, stores)
    if (tokens is None) == (tokenizer is None):
        raise UsageError(
            "options-exclude-each-other",
            "--tokenizer",
            expected="either --tokens N or --tokenizer DIR",
            got="neither" if tokens is None else "both",
        )
    path = None if tokenizer is None else whole(tokenizer, stores)
    given, texts = (opened, {}) if path is None else read_tokenizer_files(path, stores)
    ids = token_ids(given, stores)
    needed = None if ids is None else max(ids.values(), default=-1) + 1
    if tokens is None and needed is None:
        raise InputError(
            "not-a-tokenizer",
            path or "",
            expected="tokenizer.json, or vocab.json with added_tokens.json",
            hint="--tokens N needs no tokenizer that is read",
        )
    wanted = tokens if tokens is not None else needed or 0
    new = _new_rows(init, seed, token_ids(opened, stores))
    plan = embeddings.plan_resize_embeddings(
        opened, wanted, needed=needed, new=new, multiple_of=multiple_of
    )
    _check_shrinking(plan, given, ids)
    if path is not None:
        plan = replace(plan, edits=(*plan.edits, *_tokenizer_edits(opened, texts, stores)))
    request = {
        "tokens": tokens,
        "tokenizer": path,
        "init": init,
        "seed": seed,
        "multiple_of": multiple_of,
    }
    return replace(plan, request=request)


def _new_rows(init: str, seed: int, ids: Mapping[str, int] | None) -> NewRows:
    if init in ("mean", "normal", "zeros"):
        return NewRows(init, seed)  # type: ignore[arg-type]
    kind, colon, token = init.partition(":")
    if kind != "copy" or not colon:
        raise UsageError(
            "unknown-choice", "--init", expected="mean, normal, zeros or copy:TOKEN", got=init
        )
    if ids is not None and token in ids:
        return NewRows("copy", seed, ids[token])
    if token.isascii() and token.isdecimal() and len(token) < _MOST_DIGITS:
        return NewRows("copy", seed, int(token))
    raise UsageError(
        "unknown-token",
        init,
        expected="a token of the checkpoint's tokenizer, or the number of a row",
        got="no tokenizer that is read" if ids is None else "no such token",
    )


def _check_shrinking(plan: Plan, given: Checkpoint, ids: Mapping[str, int] | None) -> None:
    """Raise InputError if rows go and a tokenizer that is not read may need them."""
    before, after = plan.base.tensors[EMBED_TOKENS], plan.target().tensors[EMBED_TOKENS]
    unread = [name for name in given.files if name.startswith(("tokenizer.", "vocab."))]
    if after.shape[0] < before.shape[0] and ids is None and unread:
        raise InputError(
            "too-few-rows",
            plan.base.root,
            expected="a tokenizer that is read, to know that it does not need the rows that go",
            got=unread[0],
            hint="give one whose tokenizer.json lists its tokens: --tokenizer DIR",
        )


def _tokenizer_edits(
    base: Checkpoint, texts: Mapping[str, str], stores: Stores
) -> Iterator[PutFile | DropFile]:
    """Yield the changes that make the tokenizer of ``base`` the one with these texts."""
    for name, text in texts.items():
        there = base.files.get(name)
        if there is None or there.size != len(text.encode()) or _text(there, stores) != text:
            yield PutFile(name, text, "of the new tokenizer")
    for name in sorted(base.files.keys() & TOKENIZER_FILES - texts.keys()):
        yield DropFile(name, "of the old tokenizer")


def _text(file: File, stores: Stores) -> str:
    with stores.open(file.path) as source:
        return source.read(source.file.size, 0).decode(errors="replace")


def _check_choice(value: object, known: Sequence[object], option: str) -> None:
    if value not in known:
        names = ", ".join(str(one) for one in known if one is not None)
        raise UsageError("unknown-choice", option, expected=f"one of {names}", got=str(value))


def _texts(names: Collection[str]) -> Collection[str]:
    return (names,) if isinstance(names, str) else names


def _head_is_table(checkpoint: Checkpoint, names: Names | None) -> bool | None:
    """Return whether a stored head equals the embeddings; None if there is none here."""
    pair = conversion.head_and_table(checkpoint, names)
    return None if pair is None else _are_same(*pair)


def _are_same(head: TensorRef | None, table: TensorRef | None) -> bool | None:
    """Return whether two tensors have the same bytes; None if one is not there, or remote."""
    if head is None or table is None:
        return None
    if (head.dtype, head.shape) != (table.dtype, table.shape):
        return False
    if isinstance(head.source, RemoteFile) or isinstance(table.source, RemoteFile):
        return None
    return are_equal({LM_HEAD: (head, table)})


def _absent_shards(checkpoint: Checkpoint) -> Iterator[str]:
    """Say that the names of the weight files promise more of them than are there."""
    found = len(checkpoint.shards)
    promised = max(shards_in_all(shard.name) for shard in checkpoint.shards)
    if promised > found:
        yield f"{found} of {promised} shards are there, by their names: the model is incomplete"


def plan_consolidate(
    state: Checkpoint | StrPath,
    *,
    base: Checkpoint | StrPath | None = None,
    config: Mapping[str, Any] | StrPath | None = None,
    dtype: str | None = None,
    weights: TrainedWeights = "masters",
    tag: str | None = None,
    as_file: bool = False,
    stores: Stores | None = None,
) -> Plan:
    """Plan what a training state becomes: a checkpoint directory, or a file of its tensors.

    ``state`` is a state or a run above it, of which ``tag`` picks one: DeepSpeed's, universal,
    ``torch.distributed.checkpoint``'s, shards of ranks, or the file of a wrapped model. Trained
    weights are the float32 masters, or with ``weights="copies"`` what the model ran with; ``dtype``
    converts all floating tensors. ``base`` supplies the parameters that were left out of the state.

    ``as_file`` keeps the names of the model's state dict. A directory has the names without
    wrappers and ``config`` (a ``config.json``, its directory or its content), by default that of
    the run or of ``base``; the state of a LoRA run becomes such a run.

    Raises InputError (or a subclass) for a state that is incomplete or does not add up, without a
    config for a directory, and where ``base`` does not fit.
    """
    stores = Stores() if stores is None else stores
    if weights not in TRAINED_WEIGHTS:
        raise UsageError("unknown-weights", weights, expected=" or ".join(TRAINED_WEIGHTS))
    opened = _as_state(state, weights, tag, stores)
    code = _dtype(dtype)
    given = _given_config(config, stores)
    other = None if base is None else as_checkpoint(base, stores)
    if as_file:
        plan = consolidation.plan_file(opened, base=other, dtype=code)
    else:
        plan = consolidation.plan_directory(
            opened, base=other, config=given, dtype=code, weights=weights
        )
    request = {"config": given, "dtype": code, "weights": weights, "as_file": as_file}
    return replace(plan, request=request)


def _as_state(
    state: Checkpoint | StrPath, weights: TrainedWeights, tag: str | None, stores: Stores
) -> Checkpoint:
    """Return an opened training state with the weights that are asked for."""
    if isinstance(state, Checkpoint):
        if state.training is None and state.layout == "file":
            return open_training_state(state.root, stores, weights=weights)
        is_changed = weights == "copies" and state.training is not None
        return consolidation.with_copies(state) if is_changed else state
    path = locate(state, stores)
    try:
        opened = open_training_state(path, stores, tag=tag)
    except InputError as error:
        if weights == "masters" or error.code not in ("missing-rank", "masters-differ"):
            raise
        return open_training_state(path, stores, tag=tag, weights=weights)
    return consolidation.with_copies(opened) if weights == "copies" else opened


def _given_config(
    config: Mapping[str, Any] | StrPath | None, stores: Stores
) -> dict[str, Any] | None:
    if config is None or isinstance(config, Mapping):
        return None if config is None else dict(config)
    path = whole(config, stores)
    store = stores.store_of(path)
    file = path if is_file(store, path) else os.path.join(path, CONFIG)
    return read_json(store, file)[0]


_OPTIONAL_TEXT: Final = (str, NoneType)
_ALLOW: Final = "allow_bad_values"
# The rules by which an adapter is refused.
_BAD_VALUES: Final = ("value-nan", "value-inf", "value-all-zero")
# What each operation can be asked for, with the types of the values.
_REQUESTS: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "extract-projector": {"bare": (bool,)},
    "merge-projector": {"dtype": _OPTIONAL_TEXT, "extras": (list,), _ALLOW: (bool,)},
    "merge-projector with a tower": {"tower_path": (str,), _ALLOW: (bool,)},
    "merge-lora": {"dtype": _OPTIONAL_TEXT, _ALLOW: (bool,)},
    "merge-lora of its own deltas": {
        "dtype": _OPTIONAL_TEXT,
        "adapter_config": _OPTIONAL_TEXT,
        "lora_alpha": (int, float, NoneType),
        "use_rslora": (bool,),
    },
    "swap-tower": {
        "tower_path": (str,),
        "tower_config": _OPTIONAL_TEXT,
        "projector": _OPTIONAL_TEXT,
        "projector_type": _OPTIONAL_TEXT,
        "seed": (int,),
        "use_s2": (bool, NoneType),
        "s2_scales": _OPTIONAL_TEXT,
        _ALLOW: (bool,),
    },
    "extract-tower": {"tower_config": _OPTIONAL_TEXT},
    "extract-audio-adapter": {},
    "merge-audio-adapter": {},
    "swap-audio-encoder": {"audio_path": (str,), "adapter": _OPTIONAL_TEXT, "seed": (int,)},
    "extract-audio-encoder": {"audio_encoder": _OPTIONAL_TEXT},
    "set": {"values": (dict,)},
    "resize-embeddings": {
        "tokens": (int, NoneType),
        "tokenizer": _OPTIONAL_TEXT,
        "init": (str,),
        "seed": (int,),
        "multiple_of": (int,),
    },
    "convert": {
        "names": _OPTIONAL_TEXT,
        "dtype": _OPTIONAL_TEXT,
        "parts": (list,),
        "keep": (list,),
        "max_shard_size": (int, NoneType),
        "format": (str,),
        "tie": (str,),
        "ignore_index": (bool,),
    },
    "consolidate": {
        "config": (dict, NoneType),
        "dtype": _OPTIONAL_TEXT,
        "weights": (str,),
        "as_file": (bool,),
    },
}
_NUMBERS_OF_INPUTS: Final = {
    "extract-projector": (2,),
    "merge-projector": (2, 3),
    "merge-lora": (1, 2),
    "swap-tower": (2, 3),
    "extract-tower": (2,),
    "extract-audio-adapter": (2,),
    "merge-audio-adapter": (2,),
    "swap-audio-encoder": (2, 3),
    "extract-audio-encoder": (2,),
    "set": (1,),
    "convert": (1,),
    "resize-embeddings": (1,),
    "consolidate": (2, 3),
}


def plan_again(saved: SavedPlan, inputs: Sequence[Checkpoint], stores: Stores) -> Plan:
    """Compute a saved plan again from its operation, its request and its opened ``inputs``.

    Raises InputError for a request that the operation does not take.
    """
    if len(inputs) not in _NUMBERS_OF_INPUTS.get(saved.operation, ()):
        raise not_a_plan(f"a {saved.operation} of {len(inputs)} inputs")
    form = {("merge-projector", 3): " with a tower", ("merge-lora", 1): " of its own deltas"}
    types = _REQUESTS[saved.operation + form.get((saved.operation, len(inputs)), "")]
    # Plans of earlier versions do not say that bad values are allowed.
    request = {**({_ALLOW: False} if _ALLOW in types else {}), **saved.request}
    if request.keys() != types.keys():
        raise not_a_plan(f"a request for {', '.join(map(repr, saved.request)) or 'nothing'}")
    for key, value in request.items():
        if type(value) not in types[key]:
            raise not_a_plan(f"{key} that is a {type(value).__name__}")
    try:
        if "audio" in saved.operation:
            from vita_ckpt.api.audio_plans import plan_audio_again  # noqa: PLC0415 - seldom needed

            return plan_audio_again(saved.operation, request, inputs, stores)
        return _dispatch(saved.operation, request, inputs, stores)
    except UsageError as error:  # nobody has used an option
        raise not_a_plan(str(error)) from error


def _dispatch(  # noqa: PLR0911 - one per operation
    operation: str, request: Mapping[str, Any], inputs: Sequence[Checkpoint], stores: Stores
) -> Plan:
    base, *donors = inputs
    if operation in ("extract-projector", "extract-tower"):
        extract: Callable[..., Plan] = (
            plan_extract_tower if operation == "extract-tower" else plan_extract_projector
        )
        return extract(donors[0], **request, stores=stores)
    if operation == "merge-lora":
        return plan_merge_lora(base, *donors, **request, stores=stores)
    if not donors:
        return _alone(operation, base, request, stores)
    if operation == "consolidate":
        whole = len(donors) > 1 or bool(base.root)
        other = (donors[1] if len(donors) > 1 else base) if whole else None
        return plan_consolidate(donors[0], base=other, **request, stores=stores)
    tower, adapter = donors[0], donors[-1]
    if operation == "merge-projector":
        if len(donors) > 1:
            plan = _plan_assemble(base, adapter, tower, request["tower_path"], stores)
            return _with_values_checked(plan, adapter, request[_ALLOW])
        if not all(isinstance(name, str) for name in request["extras"]):
            raise not_a_plan("extras that are no texts")
        return plan_merge_projector(base, adapter, **request, stores=stores)
    asked = {**request, "projector": choice_of(request["projector"], donors)}
    return plan_swap_tower(base, tower, **asked, stores=stores)


def _with_values_checked(plan: Plan, adapter: Checkpoint | None, allow: bool) -> Plan:
    """Return a plan that says whether bad values are allowed of an adapter that has some.

    Raises AdapterError ``bad-adapter-values`` for what is taken of the adapter, unless allowed.
    """
    if adapter is not None and not allow and not is_remote(adapter.root):
        _refuse_bad_values(plan, adapter)
    return replace(plan, request={**(plan.request or {}), _ALLOW: allow})


def _refuse_bad_values(plan: Plan, adapter: Checkpoint) -> None:
    from vita_ckpt.api.validate import check_values  # noqa: PLC0415 - numpy

    made = (e.tensor for e in plan.edits if isinstance(e, AddTensor | ReplaceTensor))
    taken = {one for tensor in made for one in (uncast(tensor), *refs_of(tensor))}
    names = [name for name, tensor in adapter.stored.items() if tensor in taken]
    integers = [name for name in names if not is_real(adapter.tensors[name].dtype)]
    bad = [f for f in check_values(adapter, names) if f.rule in _BAD_VALUES]
    if integers or bad:
        name = integers[0] if integers else bad[0].subject
        message = f"{adapter.tensors[name].dtype}" if integers else bad[0].message
        raise AdapterError(
            "bad-adapter-values",
            f"{adapter.root}: {name}",
            expected="finite real numbers, not all of them zero",
            got=message.partition(", got ")[2] or message,
            hint="take the adapter of an earlier step; --allow-bad-values takes this one",
        )


def _alone(operation: str, base: Checkpoint, request: Mapping[str, Any], stores: Stores) -> Plan:
    """Plan again what has a base and no donors."""
    if operation == "set":
        return plan_set(base, request["values"], stores=stores)
    if operation == "resize-embeddings":
        return plan_resize_embeddings(base, **request, stores=stores)
    if not all(isinstance(name, str) for key in ("parts", "keep") for name in request[key]):
        raise not_a_plan("parts or globs that are no texts")
    return plan_convert(base, **request, stores=stores)


def parse_value(key: str, text: str) -> Any:
    """Return the value that ``text`` means for a config key, as :func:`plan_set` takes it.

    Raises UsageError for a key that no surgery sets, or a text of another type.
    """
    return config.parse_value(key, text)


def _base_of_run(run: Checkpoint, stores: Stores) -> Checkpoint:
    """Open what a run names as its base. Raises InputError if it is not found or not followed."""
    named = (run.adapter_config or {}).get("base_model_name_or_path")
    found = find_named_base(run, stores)
    if found is not None:
        return found
    raise InputError(
        "lora-base-absent",
        run.root,
        expected="a base here, beside the run or in the hub's cache, as the run names it",
        got=f"{named!r}",
        hint="name it with --base; an absolute path that a run names is not followed, and nothing "
        "is downloaded for it",
    )


def _lora_settings(
    base: Checkpoint, given: str | None, alpha: float | None, rslora: bool, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the settings of deltas in a checkpoint: of a file, or as far as options say."""
    if given is not None and (alpha is not None or rslora):
        raise UsageError(
            "options-exclude-each-other",
            "--adapter-config",
            expected="either the run's config or --lora-alpha and --rslora",
            got="both",
        )
    if given is not None:
        return read_adapter_config(given, stores)
    if alpha is not None:
        return settings_of_deltas(base, alpha, use_rslora=rslora)
    if rslora:
        raise UsageError(
            "option-needed", "--lora-alpha", expected="the run's alpha, beside --rslora"
        )
    return read_adapter_config(base.root, stores)


def _is_plain(base: Checkpoint) -> bool:
    return base.layout in ("safetensors", "torch") and plain_language_model(base) is not None


def _plan_assemble(
    base: Checkpoint,
    adapter: Checkpoint,
    tower: Checkpoint | StrPath | None,
    tower_path: str | None,
    stores: Stores,
) -> Plan:
    """Plan a VITA checkpoint from a base without a tower, a run, and the run's tower.

    This is what upstream's "base model + projector" load makes. ``tower_path`` is the string for
    the config, by default what the run's names or the path as it was given.
    """
    kinds.refuse_relative(base, "a checkpoint, or a plain language model,")
    kinds.refuse_relative(adapter, "a run")
    has_tower = any(part_of(name) == VISION_TOWER for name in base.tensors)
    if has_tower:
        raise UsageError(
            "tower-already-there",
            base.root,
            expected="a base without a vision tower, since one is given",
            hint="swap-tower --tower … --projector … puts another tower and projector in",
        )
    run = adapter.config or {}
    named = run.get("mm_vision_tower")
    if (
        tower is None
        and (near := find_tower(adapter, stores)) is not None
        and near.tower is not None
    ):
        tower = near.path
    missing = [] if adapter.config is not None else ["config.json in the adapter's run"]
    if tower is None:
        where = f" ({named} is not reachable from here)" if isinstance(named, str) else ""
        missing.append(f"the vision tower: --tower DIR{where}")
    if missing or tower is None:
        raise InputError(
            "not-enough-information",
            base.root,
            expected="a run with its config.json, and its vision tower",
            got=f"a base without vision modules; missing: {'; '.join(missing)}",
            hint="give the run's directory as --adapter",
        )
    _check_sizes(base, adapter)
    donor = as_checkpoint(tower, stores)
    kind, scales, use_s2 = (run.get(key) for key in ("mm_projector_type", "s2_scales", "use_s2"))
    if tower_path is None:
        tower_path = named if isinstance(named, str) and named else _path_for_config(tower, donor)
    args = VisionModelArgs(
        vision_tower=donor,
        mm_vision_tower=tower_path,
        tower_config=_config_of(donor, None, stores),
        processor=read_processor(donor, stores),
        mm_projector_type=kind if isinstance(kind, str) else None,
        pretrain_mm_mlp_adapter=adapter,
        use_s2=use_s2 is True,
        s2_scales=scales if isinstance(scales, str) and use_s2 is True else None,
        model_type=_vita_model_type(run),
        run_config=run,
    )
    plan = vision_modules.initialize_vision_modules(base, args, operation="merge-projector")
    return replace(plan, request={"tower_path": tower_path})


def _vita_model_type(run: Mapping[str, Any]) -> str | None:
    model_type = run.get("model_type")
    return model_type if isinstance(model_type, str) and model_type in BACKBONES else None


def _check_sizes(base: Checkpoint, adapter: Checkpoint) -> None:
    """Raise InputError if the run was trained on another language model, by its config."""
    run, own = adapter.config or {}, base.config or {}
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size"):
        if key in run and key in own and run[key] != own[key]:
            raise InputError(
                "base-does-not-fit-run",
                base.root,
                expected=f"{key} {run[key]!r}, as the run's config says",
                got=f"{own[key]!r}",
                hint="the run was trained on another base",
            )


def _path_for_config(tower: Checkpoint | StrPath, donor: Checkpoint) -> str:
    """Return the string that upstream will look a tower up by: the path as it was given."""
    named = (donor.config or {}).get("mm_vision_tower")
    if isinstance(named, str) and named:  # another VITA checkpoint
        return named
    path = donor.root if isinstance(tower, Checkpoint) else os.fspath(tower)
    if is_remote(donor.root):  # what transformers and upstream's loaders take
        address = parse_address(donor.root)
        path = "/".join(filter(None, (address.repository, address.below)))
    shapes = {name: tensor.shape for name, tensor in donor.tensors.items()}
    found = tower_of_shapes(shapes)
    if found is not None and found.traits.lone_file and donor.shards[0].name:
        return os.path.join(path, donor.shards[0].name)  # upstream opens the file itself
    return path


def _config_of(
    donor: Checkpoint, tower_config: str | None, stores: Stores
) -> Mapping[str, Any] | None:
    """Return the config of a tower, standalone or in a VITA checkpoint."""
    if tower_config is not None:
        return read_given_config(tower_config, stores)
    if any(name.startswith(TOWER_PREFIX) for name in donor.tensors):
        return read_tower_config(donor, stores)
    own = donor.config
    return own if own is not None and tower_of_config(own) is not None else None


def _dtype(name: str | None) -> str | None:
    if name is None or name in SPELLINGS.values():
        return name
    if name.lower() not in SPELLINGS:
        raise UsageError(
            "unknown-dtype", name, expected=", ".join(sorted(SPELLINGS)), hint="name one of these"
        )
    return SPELLINGS[name.lower()]
