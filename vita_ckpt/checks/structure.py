"""Check names and shapes, part by part, against what the config demands."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from vita_ckpt.checks.audio import check_audio
from vita_ckpt.checks.rules import RULES, finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, CMVN
from vita_ckpt.core.anatomy.families import VITA
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.binding.modules import is_tied, language_model_of, tower_family
from vita_ckpt.core.binding.result import Binding, PartBinding, PartSource
from vita_ckpt.core.checkpoint import Checkpoint, Shape, source_of
from vita_ckpt.core.diagnosis import diagnose
from vita_ckpt.core.dtype import is_real
from vita_ckpt.core.filenames import CONFIG
from vita_ckpt.core.report import Finding, has_errors
from vita_ckpt.core.tensor_match import compare
from vita_ckpt.errors import InputError

_VISION = (parts.VISION_TOWER, parts.MM_PROJECTOR, parts.IMAGE_NEWLINE)
_STATISTICS = frozenset(prefix + name for prefix in ("", AUDIO_PREFIX) for name in CMVN)
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def check_structure(subject: Subject) -> Iterator[Finding]:
    """Check the names, shapes and dtypes of tensors by every rule about them."""
    checkpoint = subject.checkpoint
    yield from _empty(subject)
    if subject.binding is not None:
        yield from check_binding(subject, subject.binding)
    elif subject.kind == kinds.TOWER:
        yield from _standalone_tower(subject)
    elif subject.kind == kinds.PROJECTOR:
        yield from _lone_projector(subject)
    yield from _dtypes(checkpoint)
    yield from _not_floating(subject)


def _empty(subject: Subject) -> Iterator[Finding]:
    unread = frozenset(subject.binding.left_out) if subject.binding is not None else ()
    for name, tensor in subject.checkpoint.tensors.items():
        if 0 in tensor.shape and name not in unread:
            yield finding(
                "empty-tensor",
                name,
                f"expected a tensor with elements, got shape {list(tensor.shape)}",
                hint="gather the parameters of the ZeRO-3 run and save them again",
                file=source_of(tensor),
            )


def check_binding(subject: Subject, binding: Binding) -> Iterator[Finding]:
    """Check what a loader binds, part by part; a cause is said once, without its consequences."""
    causes = diagnose(binding, subject.checkpoint.root)
    for cause in causes:
        yield finding(
            "two-names" if cause.twice else "foreign-prefix",
            cause.example,
            cause.what,
            hint=cause.mend,
            file=_file(subject.checkpoint, cause.example),
        )
    known = frozenset(name for cause in causes for name in cause.explains) | subject.unread
    language = binding.part(parts.LANGUAGE_MODEL)
    yield from _language_model(subject, language.without(known))
    vision = binding.has_vision and subject.kind in kinds.WHOLE
    if vision:
        tower, projector = binding.part(parts.VISION_TOWER), binding.part(parts.MM_PROJECTOR)
        stop = binding.stop
        if stop is not None and stop.code == "tower-not-loadable":
            yield finding(stop.code, "model.vision_tower", stop.detail, file=subject.config_path)
        else:
            yield from _vision_tower(subject, tower.without(known), known)
        yield from _projector(subject, projector.without(known), known)
        yield from _newline(subject, binding.part(parts.IMAGE_NEWLINE).without(known))
    if subject.kind in kinds.WHOLE and subject.family.has_audio:
        yield from check_audio(subject, binding.part(parts.AUDIO_ENCODER).without(known), known)
    special = (parts.LANGUAGE_MODEL, parts.AUDIO_ENCODER) + _VISION * vision
    for part, bound in binding.parts.items():
        if part not in special:
            yield from _report(subject, bound.without(known), "a model of this type")
        yield from _integers(subject, part, bound)


def unsaid(subject: Subject, said: Collection[Finding]) -> Iterator[Finding]:
    """Say why a loader does not end with the checkpoint's model, where no rule has said it."""
    binding = subject.binding
    if binding is None or binding.is_complete or has_errors(said) or not subject.config:
        return
    if binding.stop is not None and binding.stop.code in RULES:
        found = finding(binding.stop.code, CONFIG, binding.stop.detail, file=subject.config_path)
        yield replace(found, severity="error")
    if binding.fault:
        yield finding("image-fails", CONFIG, binding.fault, file=subject.config_path)
    for part, bound in binding.parts.items():
        yield from _report(subject, bound.without(subject.unread), f"the {parts.LABELS[part]}")


def _language_model(subject: Subject, bound: PartBinding) -> Iterator[Finding]:
    config, checkpoint = subject.config, subject.checkpoint
    tied = is_tied(config)
    by_default = "" if "tie_word_embeddings" in config else " by default"
    if tied and parts.LM_HEAD in checkpoint.tensors:
        yield finding(
            "tied-lm-head",
            parts.LM_HEAD,
            f"tie_word_embeddings is true{by_default}, expected no such tensor",
            hint="set tie_word_embeddings to false if the two differ and both were trained",
            file=_file(checkpoint, parts.LM_HEAD),
        )
    if parts.LM_HEAD in bound.mismatch.missing:
        bound = bound.without({parts.LM_HEAD})
        yield finding(
            "lm-head-absent",
            parts.LM_HEAD,
            "expected the tensor, since tie_word_embeddings is not true",
            hint="set tie_word_embeddings to true if the model was trained so",
            file=subject.config_path,
        )
    language = language_model_of(config)
    if not bound.wanted or language is None:  # a rule of the config
        others = (n for n in bound.mismatch.unexpected if parts.part_of(n) != parts.LANGUAGE_MODEL)
        mismatch = replace(bound.mismatch, unexpected=tuple(others))
        yield from _report(subject, replace(bound, mismatch=mismatch), "a model of this type")
        return
    yield from _report(subject, bound, f"the {language.name} model of the config")


def _vision_tower(
    subject: Subject, bound: PartBinding, known: Collection[str]
) -> Iterator[Finding]:
    """Check the tower's tensors against those that the loader builds for the tower's path."""
    if bound.source is PartSource.TOWER_DIRECTORY:
        yield from _report(subject, bound, "a model whose tower is its directory's")
        yield from _unused_tower(subject)
        return
    checkpoint = subject.checkpoint
    shapes = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(parts.TOWER_MODULE)
    }
    if not shapes:
        if not any(name.startswith(parts.TOWER_MODULE) for name in known):
            yield finding(
                "tower-absent",
                "model.vision_tower",
                "expected the vision tower's tensors, got none",
                hint="VITA-1.0's loader takes the tower from its directory; for VITA-1.5's, "
                "vita-ckpt swap-tower puts it in"
                if subject.family is VITA
                else f"{subject.family.label}'s loader would not take the directory's: "
                "vita-ckpt swap-tower puts it in",
            )
        return
    own = parts.below(parts.TOWER_MODULE, shapes)
    recognised = towers.tower_of_shapes(own)
    family = tower_family(subject.config, subject.surroundings, subject.family)
    config, described = subject.tower_config, None
    if config is not None and recognised is not None:
        stored = subject.family.stored_tower(recognised.family, config)
        described = towers.tower_of_config(stored)
    if recognised is not None and (
        family is None
        or recognised.family != family
        or (described is not None and described.differences(recognised))
    ):
        return  # another tower than the config leads to is a rule of the config: one finding
    if bound.wanted:
        yield from _report(subject, bound, "the tower of the config")
    elif not any(name.startswith(parts.TOWER_MODULE) for name in known):
        yield _unknown_tower("model.vision_tower", own)


def _unused_tower(subject: Subject) -> Iterator[Finding]:
    """Say that a stored tower is not the one that the model runs with, and by what it differs."""
    if subject.family is VITA or not any(
        name.startswith(parts.TOWER_MODULE) for name in subject.checkpoint.tensors
    ):
        return
    rival = subject.unused_tower
    path = subject.config.get("mm_vision_tower")
    yield finding(
        "tower-unused" if rival is None else "tower-differs",
        "model.vision_tower",
        f"{subject.family.label}'s loader takes the tower from {path!r}, not the one that is stored"
        + ("" if rival is None else f", which differs: {rival}"),
        hint=""
        if rival is None
        else f"if it was trained, {subject.family.unfreeze_key} true makes the loader take it: "
        "vita-ckpt set",
    )


def _newline(subject: Subject, bound: PartBinding) -> Iterator[Finding]:
    """Check for the vector between the rows of tiles, which nothing fills where it is missing."""
    if parts.NEWLINE in bound.mismatch.missing:
        yield finding(
            "newline-absent",
            parts.NEWLINE,
            f"expected {list(bound.wanted[parts.NEWLINE])}, since mm_patch_merge_type is "
            f"{subject.config.get('mm_patch_merge_type')!r}, got none",
            hint="vita-ckpt merge-projector --with image_newline takes it from a run that has it",
        )
        bound = bound.without({parts.NEWLINE})
    yield from _report(subject, bound, "a model of this config")


def _unknown_tower(subject: str, shapes: towers.Shapes) -> Finding:
    return finding(
        "unknown-tower",
        subject,
        f"expected the tensors of {towers.listed(towers.KNOWN)}, got "
        + ", ".join(list(shapes)[:3]),
    )


def _standalone_tower(subject: Subject) -> Iterator[Finding]:
    """Check a lone tower against its config, or against itself if there is none."""
    shapes = {name: tensor.shape for name, tensor in subject.checkpoint.tensors.items()}
    own = towers.own_names(shapes)
    if not own:
        yield _unknown_tower(subject.checkpoint.root, shapes)
        return
    found = {bare: shapes[name] for name, bare in own.items()}
    described = towers.tower_of_shapes(shapes)
    config = subject.tower_config
    by_config = towers.tower_of_config(config) if config is not None else None
    if by_config is None or described is None or by_config.layers != described.layers:
        config = tower_tensors.config_of_tensors(found)  # a difference is a rule of the config
    if config is None:
        return
    try:
        wanted = tower_tensors.expected_shapes(config)
    except InputError as error:
        message = f"expected {error.expected} as {error.subject}, got {error.got}"
        yield finding("unknown-tower", subject.checkpoint.root, message)
        return
    stored = {bare: name for name, bare in own.items()}
    prefix = towers.tower_prefix(shapes)
    mismatch = compare(
        {stored.get(name, prefix + name): shape for name, shape in wanted.items()},
        {stored[name]: shape for name, shape in found.items()},
    )
    bound = PartBinding(wanted, mismatch, PartSource.CHECKPOINT)
    yield from _report(subject, bound.without(subject.unread), "the tower of the config")


def _projector(subject: Subject, bound: PartBinding, known: Collection[str]) -> Iterator[Finding]:
    checkpoint, config = subject.checkpoint, subject.config
    shapes = _below(checkpoint, parts.PROJECTOR_PREFIX)
    kind = str(subject.family.projector_type(config))
    if projectors.has_no_tensors(kind) and not shapes:
        return
    if not shapes:
        if not any(name.startswith(parts.PROJECTOR_PREFIX) for name in known):
            yield finding(
                "projector-absent",
                "model.mm_projector",
                "expected the projector's tensors, got none",
                hint="vita-ckpt merge-projector puts a trained one in",
            )
        return
    if projectors.candidates(shapes, subject.family.projector_types):
        return  # complete: whether it is the right one is a rule of the config
    if not bound.wanted and not projectors.has_no_tensors(kind):
        yield _unknown_projector(checkpoint, shapes, parts.PROJECTOR_PREFIX)
        return
    yield from _report(subject, bound, "the projector of the config")


def _lone_projector(subject: Subject) -> Iterator[Finding]:
    shapes = {
        name.partition("mm_projector.")[2]: tensor.shape
        for name, tensor in subject.checkpoint.tensors.items()
        if "mm_projector." in name
    }
    if any(0 in shape for shape in shapes.values()):
        return  # said of each empty tensor
    types = subject.family.projector_types
    if subject.checkpoint.config is None:
        types = projectors.EVERY_TYPE
    if shapes and not projectors.candidates(shapes, types):
        yield _unknown_projector(subject.checkpoint, shapes, "")


def _unknown_projector(checkpoint: Checkpoint, shapes: Mapping[str, Shape], prefix: str) -> Finding:
    got = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4])
    return finding(
        "unknown-projector",
        "mm_projector",
        f"expected the tensors of a projector type, got {got}",
        hint="a part of it was not saved, or two were mixed",
        file=_file(checkpoint, prefix + next(iter(shapes))),
    )


def _integers(subject: Subject, part: str, bound: PartBinding) -> Iterator[Finding]:
    """Report tensors of a model whose values are no real numbers."""
    for name in bound.integers if part != parts.MM_PROJECTOR else ():
        tensor = subject.checkpoint.tensors[name]
        yield finding(
            "integer-tensor",
            name,
            f"expected a floating dtype, got {tensor.dtype}",
            hint="take the tensor from a sound copy",
            file=_file(subject.checkpoint, name),
        )


def _not_floating(subject: Subject) -> Iterator[Finding]:
    """Tensors of a projector whose values are no real numbers."""
    if all(map(is_real, _dtypes_of(subject.checkpoint))):
        return
    for name, tensor in subject.checkpoint.tensors.items():
        is_projector = subject.kind == kinds.PROJECTOR or "mm_projector" in name
        if is_projector and not is_real(tensor.dtype):
            yield finding(
                "projector-dtype",
                name,
                f"expected a floating dtype, got {tensor.dtype}",
                hint="take the projector from a sound copy",
                file=source_of(tensor),
            )


def _dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    by_part: defaultdict[str, Counter[str]] = defaultdict(Counter)
    example: dict[tuple[str, str], str] = {}
    if checkpoint.training is not None:  # float32 masters beside frozen copies
        return
    if len(_dtypes_of(checkpoint).intersection(_FLOATS)) < 2:
        return
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype in _FLOATS and name not in _STATISTICS:
            part = parts.part_of(name)
            counts = by_part[part]
            if not counts[tensor.dtype]:
                example[part, tensor.dtype] = name
            counts[tensor.dtype] += 1
    for part, counts in by_part.items():
        if len(counts) > 1:
            least = counts.most_common()[-1][0]
            found = ", ".join(f"{count} in {dtype}" for dtype, count in counts.most_common())
            name = example[part, least]
            yield finding(
                "mixed-dtypes",
                name,
                f"expected one dtype in the {parts.LABELS[part]}, got {found}; this is {least}",
                file=_file(checkpoint, name),
            )


def _dtypes_of(checkpoint: Checkpoint) -> set[str]:
    return {tensor.dtype for tensor in checkpoint.tensors.values()}


def _report(subject: Subject, bound: PartBinding, what: str) -> Iterator[Finding]:
    checkpoint, misfit = subject.checkpoint, bound.mismatch
    for name in misfit.missing:
        shape = f"expected {list(bound.wanted[name])}, " if name in bound.wanted else "expected "
        yield finding("missing-tensor", name, f"{shape}a tensor of {what}")
    for name in misfit.unexpected:
        file = _file(checkpoint, name)
        yield finding("unexpected-tensor", name, f"expected no such tensor in {what}", file=file)
    for name, want, got in misfit.mismatched:
        if 0 in got:
            continue  # those have a rule of their own
        message = f"expected {list(want)} in {what}, got {list(got)}"
        yield finding("shape-mismatch", name, message, file=_file(checkpoint, name))


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, Shape]:
    return parts.below(prefix, {name: t.shape for name, t in checkpoint.tensors.items()})


def _file(checkpoint: Checkpoint, name: str) -> str:
    tensor = checkpoint.tensors.get(name)
    return source_of(tensor) if tensor is not None else ""
