"""Plan the merge of a LoRA run into its base, and of deltas that were saved unmerged."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.families import VITA, family_of
from vita_ckpt.core.binding.modules import builds_audio, is_audio
from vita_ckpt.core.checkpoint import Checkpoint, TensorRef, cast, uncast
from vita_ckpt.core.dtype import can_cast
from vita_ckpt.core.filenames import LORA_FILES, NON_LORA
from vita_ckpt.core.lora import BASE_LAYER, Merged, merge_run, read_names
from vita_ckpt.core.lora_config import LoraConfig, Problem, read_lora_config
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
from vita_ckpt.core.provenance import described, needs_alignment, operations
from vita_ckpt.core.quantisation import quantisation_of
from vita_ckpt.core.remedies import merge_unmerged, validate
from vita_ckpt.core.requirements import (
    LAYOUTS,
    family_of_model,
    model_config,
    plain_language_model,
    refuse_training_state,
)
from vita_ckpt.errors import AdapterError, InputError, printable
from vita_ckpt.surgery.preconditions import require_binding
from vita_ckpt.surgery.vision.arguments import VisionModelArgs
from vita_ckpt.surgery.vision.keys import check_rows, check_run_value
from vita_ckpt.surgery.vision.vision_modules import vision_edits

OPERATION: Final = "merge-lora"

# Names of torch's dtypes, as a config has them.
_TORCH_NAMES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Keys in which two configs differ though they are of one model.
_INCIDENTAL: Final = frozenset(
    {"_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache", "vocab_size"}
)
_AUDIO_KEYS: Final = (
    "mm_audio_encoder",
    "freeze_audio_encoder",
    "freeze_audio_encoder_adapter",
    "audio_prompt_finetune",
    "audio_prompt_num",
    "tune_audio_mlp_adapter",
    "audio_state_predictor_tuning",
)
# How many names a note has.
_NAMED: Final = 3


def plan_merge_lora(
    base: Checkpoint,
    run: Checkpoint,
    *,
    dtype: str | None = None,
    tokenizer: Mapping[str, str] | None = None,
    vision: VisionModelArgs | None = None,
) -> Plan:
    """Return a plan that merges a LoRA run into ``base``, the checkpoint that it was trained on.

    Merged weights are what peft computes in the dtype of the base's, or in ``dtype`` (a safetensors
    code), in which the whole result is then. What else the run holds replaces the base's: the
    projector, the tower if it was trained, biases, embeddings and head. The config is the base's
    with the run's vision and audio keys. ``tokenizer`` are the run's files of that kind which the
    base lacks or has otherwise, by name. ``vision`` is the tower for a base that is a plain
    language model, which becomes a checkpoint of the run's family.

    Raises AdapterError for a run that is none, that does not fit or whose settings are not
    understood, and InputError for a base that is not a VITA checkpoint.
    """
    config = _config_of(run)
    _check_base(base, run)
    _check_first(base, run)
    merged = merge_run(run, base, config, dtype)
    _refuse(merged.problems, run.root)
    if not merged.tensors:
        raise AdapterError(
            "lora-empty",
            run.root,
            expected="deltas, or other tensors that were trained",
            got="none for this base",
        )
    if vision is not None:
        return _on_plain(base, run, merged, vision, config, dtype, tokenizer or {})
    edits: list[Edit] = _merged_edits(base, merged)
    edits += _casts(base, merged.tensors, dtype)
    config_edits, left = _config_edits(base, run, merged, dtype)
    edits += _tokenizer_edits(tokenizer or {})
    plan = Plan(
        operation=OPERATION,
        base=base,
        edits=(*edits, *config_edits),
        donors=(run,),
        notes=(*_notes(merged, config), *left),
        record=Record(
            roles=("adapter",),
            arguments={} if dtype is None else {"dtype": dtype},
            needs_alignment=needs_alignment(base) and not _has_projector(merged),
        ),
    )
    return require_binding(plan)


def _merged_edits(base: Checkpoint, merged: Merged) -> list[Edit]:
    return [
        (ReplaceTensor if name in base.tensors else AddTensor)(name, tensor, _reason(name, merged))
        for name, tensor in merged.tensors.items()
        if base.tensors.get(name) != tensor
    ]


def _tokenizer_edits(texts: Mapping[str, str]) -> list[Edit]:
    return [PutFile(name, text, "the run's tokenizer") for name, text in texts.items()]


def _on_plain(
    base: Checkpoint,
    run: Checkpoint,
    merged: Merged,
    vision: VisionModelArgs,
    config: LoraConfig,
    dtype: str | None,
    tokenizer: Mapping[str, str],
) -> Plan:
    """Return the plan for a plain language model: the run's tower comes with its deltas."""
    made, _, notes = vision_edits(base, vision)
    edits: list[Edit] = []
    for edit in made:
        if not isinstance(edit, AddTensor | ReplaceTensor):
            edits.append(edit)
        elif edit.name not in merged.tensors:
            whole = uncast(edit.tensor)
            is_wanted = dtype is not None and can_cast(whole.dtype, dtype)
            tensor = cast(whole, dtype) if dtype is not None and is_wanted else edit.tensor
            edits.append(replace(edit, tensor=tensor))
    put = {edit.name for edit in made if isinstance(edit, AddTensor | ReplaceTensor | DropTensor)}
    edits += _merged_edits(base, merged)
    edits += _casts(base, {*merged.tensors, *put}, dtype)
    embed = merged.tensors.get(parts.EMBED_TOKENS)
    settled: list[Edit] = list(_dtype_edits(base, dtype))
    if embed is not None and embed.shape[0] != (base.config or {}).get("vocab_size"):
        settled.append(SetConfig("vocab_size", embed.shape[0], "the rows of the embeddings"))
    if merged.is_untied:
        settled.append(_untied())
    keys = {edit.key for edit in settled if isinstance(edit, SetConfig)}
    edits = [e for e in edits if not (isinstance(e, SetConfig) and e.key in keys)]
    plan = Plan(
        operation=OPERATION,
        base=base,
        edits=(*edits, *settled, *_tokenizer_edits(tokenizer)),
        donors=(vision.vision_tower, run),
        notes=(*notes, *_notes(merged, config)),
        record=Record(
            roles=("tower", "adapter"),
            arguments={} if dtype is None else {"dtype": dtype},
            needs_alignment=not _has_projector(merged),
        ),
    )
    return require_binding(plan)


def plan_merge_unmerged(
    base: Checkpoint, content: Mapping[str, Any] | None, *, dtype: str | None = None
) -> Plan:
    """Return a plan that merges the deltas in ``base``, which was saved before they were merged.

    ``content`` is the run's ``adapter_config.json``, or the settings that are known of it: such a
    checkpoint does not hold its alpha. Raises what :func:`plan_merge_lora` raises.
    """
    refuse_training_state(base)
    names = read_names(base.tensors)
    if not names.deltas:
        raise AdapterError(
            "lora-empty",
            base.root,
            expected="LoRA deltas in the checkpoint itself, since no adapter is given",
            got="none",
            hint="give the run with --adapter",
        )
    if content is None:
        raise AdapterError(
            "lora-config-missing",
            base.root,
            expected="the adapter_config.json of the run, which alone knows alpha",
            got="none beside the checkpoint",
            hint="--adapter-config FILE, or --lora-alpha N where alpha is known",
        )
    config, problems = read_lora_config(content)
    _refuse(problems, base.root)
    merged = merge_run(base, base, config, dtype)
    _refuse(merged.problems, base.root)
    edits: list[Edit] = [
        DropTensor(name, "a delta, or a name of peft's wrapper")
        for name in base.tensors
        if name not in merged.tensors
    ]
    edits += [
        (ReplaceTensor if name in base.tensors else AddTensor)(name, tensor, _reason(name, merged))
        for name, tensor in merged.tensors.items()
        if base.tensors.get(name) != tensor
    ]
    if merged.is_untied:
        edits.append(_untied())
    edits += _dtype_edits(base, dtype)
    plan = Plan(
        operation=OPERATION,
        base=base,
        edits=tuple(edits),
        notes=tuple(_notes(merged, config)),
        record=Record(
            arguments={} if dtype is None else {"dtype": dtype},
            needs_alignment=needs_alignment(base),
        ),
    )
    return require_binding(plan)


def trained_part(base: Checkpoint) -> Checkpoint:
    """Return what was trained of a checkpoint that was saved with its deltas unmerged."""
    names = read_names(base.tensors)
    wrapped = {names.trained[name] for name in names.wrapped}
    return replace(
        base,
        tensors={
            name: tensor
            for name, tensor in base.tensors.items()
            if parts.part_of(name) == parts.LORA or (name in wrapped and BASE_LAYER not in name)
        },
    )


def require_run(run: Checkpoint) -> None:
    """Raise AdapterError ``not-a-lora-run`` unless this is a LoRA run, in a directory."""
    if run.layout != "lora":
        is_file_of_run = posixpath.basename(run.root) in (*LORA_FILES, NON_LORA)
        raise AdapterError(
            "not-a-lora-run",
            run.root,
            expected="a directory with adapter_config.json and adapter_model.safetensors or .bin",
            got=f"{len(run.tensors)} tensors, {LAYOUTS.get(run.layout, 'a checkpoint')}",
            hint=f"give the directory that it lies in, {posixpath.dirname(run.root)}"
            if is_file_of_run
            else "merge-projector merges a projector; a checkpoint with its LoRA is the --base",
        )


def _config_of(run: Checkpoint) -> LoraConfig:
    require_run(run)
    if run.adapter_config is None:
        raise AdapterError(
            "lora-config-missing",
            run.root,
            expected="adapter_config.json beside the deltas",
            got="none",
            hint="copy it from the run",
        )
    config, problems = read_lora_config(run.adapter_config)
    _refuse(problems, run.root)
    return config


def _refuse(problems: Sequence[Problem], root: str) -> None:
    """Raise AdapterError for the first of the problems."""
    if not problems:
        return
    first = problems[0]
    more = f"; {len(problems) - 1} more like it" if len(problems) > 1 else ""
    raise AdapterError(
        first.rule,
        f"{root}: {first.subject}",
        expected=first.expected,
        got=f"{first.got}{more}",
        hint=first.hint or f"{validate(root)} says all that is wrong with the run",
    )


def _check_base(base: Checkpoint, run: Checkpoint) -> None:
    """Raise InputError unless the base is a VITA checkpoint, of the run's model type if it says."""
    is_plain = plain_language_model(base) is not None
    family = family_of(run.config) if is_plain else family_of_model(base)
    if family in (None, VITA):
        is_plain = False  # upstream's loaders have no code for such a run on a plain base
    config = (base.config or {}) if is_plain else model_config(base)
    kinds.refuse_relative(run, "a run")
    check_rows(base, run, family or VITA)
    if kinds.kind_of(base).name == kinds.PEFT_MODEL:
        raise InputError(
            "base-does-not-fit-run",
            base.root,
            expected="a base without deltas in it",
            got="a model of PEFT that was saved with its adapter unmerged",
            hint=f"{merge_unmerged(base.root)} merges those deltas; the run belongs on "
            "the base that it was trained on",
        )
    model_type = (run.config or {}).get("model_type")
    is_other = family_of(run.config) is not None and model_type != config.get("model_type")
    if is_other and not is_plain:
        raise InputError(
            "base-does-not-fit-run",
            base.root,
            expected=f"model_type {model_type!r}, as the run's config says",
            got=repr(config.get("model_type")),
            hint="the run was trained on another base",
        )


def _check_first(base: Checkpoint, run: Checkpoint) -> None:
    """Raise AdapterError if the base says that this run was merged into it: twice is too much."""
    for entry in operations(base):
        if not isinstance(entry, Mapping) or entry.get("operation") != OPERATION:
            continue
        inputs = entry.get("inputs")
        if isinstance(inputs, Mapping) and inputs.get("adapter") == described(run):
            raise AdapterError(
                "lora-already-merged",
                base.root,
                expected="a base without the run in it",
                got=f"one into which a run of this name and these headers was merged at "
                f"{entry.get('time')}",
                hint="a second merge would add its deltas twice; rename the directory of the run "
                "if it is another one",
            )


def _reason(name: str, merged: Merged) -> str:
    module = name.rpartition(".")[0]
    if module in merged.deltas:
        return "the LoRA delta merged"
    if module in merged.tokens:
        return "the rows of tokens that were trained"
    return "as trained" if name in merged.trained or not merged.is_untied else "no longer tied"


def _has_projector(merged: Merged) -> bool:
    return any(name.startswith(parts.PROJECTOR_PREFIX) for name in merged.tensors)


def _casts(base: Checkpoint, done: Collection[str], dtype: str | None) -> list[Edit]:
    """Return the conversions of everything else to ``dtype``; what is no float stays."""
    if dtype is None:
        return []
    quantised = quantisation_of(base)
    return [
        ReplaceTensor(name, cast(tensor, dtype), f"in {dtype}")
        for name, tensor in base.tensors.items()
        if isinstance(tensor, TensorRef)
        and not (quantised is not None and quantised.is_part(name))
        and name not in done
        and tensor.dtype != dtype
        and can_cast(tensor.dtype, dtype)
    ]


def _config_edits(
    base: Checkpoint, run: Checkpoint, merged: Merged, dtype: str | None
) -> tuple[list[Edit], list[str]]:
    """Return the edits of the config, and notes on what the run's says and is not taken."""
    old, new = base.config or {}, run.config or {}
    family = family_of_model(base)
    taken: dict[str, Any] = {}
    notes: list[str] = []
    for key in (*family.keys, *(_AUDIO_KEYS if family.has_audio else ())):
        if key in new and (key not in old or old[key] != new[key]):
            if key in family.keys:
                check_run_value(key, new[key], family)
            taken[key] = new[key]
    has_audio = any(map(is_audio, (*base.tensors, *merged.tensors)))
    if builds_audio(taken) and not has_audio:
        name = taken.pop("mm_audio_encoder")
        notes.append(
            f"mm_audio_encoder {name!r} of the run is left out: the base has no tensors of an "
            "audio encoder, and the loader would leave it in uninitialised memory"
        )
    edits: list[Edit] = [
        SetConfig(key, value, "from the run's config") for key, value in taken.items()
    ]
    embed = merged.tensors.get(parts.EMBED_TOKENS)
    if embed is not None and embed.shape[0] != old.get("vocab_size"):
        edits.append(SetConfig("vocab_size", embed.shape[0], "the rows of the embeddings"))
    if merged.is_untied:
        edits.append(_untied())
    edits += _dtype_edits(base, dtype)
    other = [
        key
        for key in sorted({*old, *new})
        if key not in taken
        and key not in family.keys
        and key not in _INCIDENTAL
        and new
        and old.get(key) != new.get(key)
    ]
    notes += [
        printable(
            f"config.json: {key} stays {old.get(key)!r}; the run's config says {new.get(key)!r}"
        )
        for key in other
    ]
    return edits, notes


def _untied() -> SetConfig:
    return SetConfig("tie_word_embeddings", False, "embeddings and head are two tensors now")


def _dtype_edits(base: Checkpoint, dtype: str | None) -> list[Edit]:
    if dtype is None:
        return []
    old, name = base.config or {}, _TORCH_NAMES[dtype]
    keys = [key for key in ("torch_dtype", "dtype") if key in old] or ["torch_dtype"]
    return [
        SetConfig(key, name, "the dtype that was asked for") for key in keys if old.get(key) != name
    ]


def _notes(merged: Merged, config: LoraConfig) -> Iterator[str]:
    kind = "DoRA" if config.use_dora else "rslora" if config.use_rslora else "LoRA"
    yield (
        f"{kind}: r {config.r}, alpha {config.lora_alpha:g}: {len(merged.deltas)} deltas merged, "
        f"{len(merged.trained) - _covered(merged)} other tensors as trained"
    )
    if merged.wrappers:
        yield f"left out of the names: {', '.join(merged.wrappers)}"
    if merged.rescued:
        yield (
            f"trained in modules_to_save: {_listed(merged.rescued)}; upstream's merge drops them "
            "and keeps the base's"
        )
    if merged.wrapped:
        yield (
            f"trained below a LoRA layer: {_listed(merged.wrapped)}; upstream's merge script drops "
            "them, its loader keeps them"
        )
    if merged.untrained:
        yield f"targeted by the config, without a delta, unchanged: {_listed(merged.untrained)}"
    if merged.ignored:
        yield f"with a delta, not targeted by the config, unchanged: {_listed(merged.ignored)}"
    for module, rows in merged.tokens.items():
        yield f"{rows} rows of {printable(module)} as trained, by trainable_token_indices"
    if merged.without_bias:
        yield (
            f"bias {config.bias!r}: trained and saved in neither file of the run, so the base's "
            f"stay: {_listed(merged.without_bias)}"
        )
    if merged.is_untied:
        yield "embeddings and head were one tensor and are two now, as they were trained"


def _covered(merged: Merged) -> int:
    """Return how many of the trained tensors a delta is merged into."""
    return sum(name.rpartition(".")[0] in merged.deltas for name in merged.trained)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return printable(", ".join(names[:_NAMED])) + more
