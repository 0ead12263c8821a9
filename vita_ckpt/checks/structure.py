"""Check names and shapes, part by part, against what the config demands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vita_ckpt.checks import kinds
from vita_ckpt.checks.audio import check_audio
from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core.anatomy import language_tensors, parts, projectors, towers
from vita_ckpt.core.anatomy.audio.tensors import AUDIO_PREFIX, CMVN
from vita_ckpt.core.anatomy.backbones import BACKBONES, PLAIN_LANGUAGE_MODELS
from vita_ckpt.core.anatomy.config_values import wrong_sizes
from vita_ckpt.core.anatomy.towers import tensors as tower_tensors
from vita_ckpt.core.binding import bind_tower, is_harmless
from vita_ckpt.core.checkpoint import Checkpoint, Shape, TensorRef
from vita_ckpt.core.report import Finding
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import InputError

# What wrappers put before every name of the model that they hold.
_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.model.")

# Of one kind of misfit this many tensors are named; the rest is counted.
_NAMED = 12

_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_MODELS = (kinds.VITA, kinds.LANGUAGE_MODEL)


def check_structure(subject: Subject) -> Iterator[Finding]:
    """Check the names, shapes and dtypes of tensors by every rule about them."""
    checkpoint = subject.checkpoint
    yield from _empty(checkpoint)
    if subject.kind in _MODELS:
        wrapped = list(_prefixes(checkpoint))
        yield from wrapped
        if not wrapped:
            yield from _language_model(subject)
            yield from _strangers(subject)
    if subject.kind == kinds.VITA:
        yield from _vision_tower(subject)
        yield from _projector(subject)
        yield from check_audio(checkpoint, subject.audio_directory, subject.unread)
    elif subject.kind == kinds.TOWER:
        yield from _standalone_tower(subject)
    elif subject.kind == kinds.PROJECTOR:
        yield from _lone_projector(subject)
    yield from _dtypes(checkpoint)
    yield from _not_floating(subject)


def _empty(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, tensor in checkpoint.refs.items():
        if 0 in tensor.shape:
            yield finding(
                "empty-tensor",
                name,
                f"expected a tensor with elements, got shape {list(tensor.shape)}",
                hint="gather the parameters of the ZeRO-3 run and save them again",
                file=tensor.source.path,
            )


def _prefixes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Check for a model saved inside a wrapper, whole or beside the model itself."""
    names = checkpoint.tensors.keys()
    for prefix in _WRAPPERS:
        found = [name for name in names if name.startswith(prefix)]
        twice = [name for name in found if name.removeprefix(prefix) in names]
        if twice:
            yield finding(
                "two-names",
                twice[0],
                f"{len(twice)} tensors stand under two names: this one is also "
                f"{twice[0].removeprefix(prefix)}",
                hint="remove one of the two",
                file=_file(checkpoint, twice[0]),
            )
        elif found:
            yield finding(
                "foreign-prefix",
                found[0],
                f"{len(found)} names start with {prefix}, expected model. or lm_head.",
                hint="save the model that is inside, or rename the tensors",
                file=_file(checkpoint, found[0]),
            )


def _language_model(subject: Subject) -> Iterator[Finding]:
    config, checkpoint = subject.config, subject.checkpoint
    model_type = str(config.get("model_type"))
    backbone = BACKBONES.get(model_type)
    family = backbone.language_model if backbone else PLAIN_LANGUAGE_MODELS.get(model_type)
    if family is None:
        return  # a rule of the config
    if wrong_sizes(family, config):
        return  # a rule of the config
    wanted = language_tensors.expected_shapes(family, config)
    found = {
        name: tensor.shape
        for name, tensor in checkpoint.tensors.items()
        if parts.part_of(name) == parts.LANGUAGE_MODEL and not is_harmless(name)
    }
    tied = config.get("tie_word_embeddings") is True
    head = found.pop(parts.LM_HEAD, None) if tied else None
    if head is not None:
        yield finding(
            "tied-lm-head",
            parts.LM_HEAD,
            "tie_word_embeddings is true, expected no such tensor",
            hint="set tie_word_embeddings to false if the two differ, or remove the tensor",
            file=_file(checkpoint, parts.LM_HEAD),
        )
    if not tied and parts.LM_HEAD not in found and parts.LM_HEAD not in subject.unread:
        del wanted[parts.LM_HEAD]
        yield finding(
            "lm-head-absent",
            parts.LM_HEAD,
            "expected the tensor, since tie_word_embeddings is not true",
            hint="set tie_word_embeddings to true if the model was trained so",
            file=subject.config_path,
        )
    yield from _misfits(subject, wanted, found, f"the {family} model of the config")


def _strangers(subject: Subject) -> Iterator[Finding]:
    """Check for tensors that belong to no part of the model."""
    known = {parts.OTHER, parts.LORA}
    if subject.config.get("model_type") != "vita-fo-Qwen2":
        known.add(parts.STATE_PREDICTOR)
    checkpoint = subject.checkpoint
    names = [n for n in checkpoint.tensors if parts.part_of(n) in known and not is_harmless(n)]
    yield from _named(
        (
            finding(
                "unexpected-tensor",
                name,
                "expected no such tensor in a model of this type",
                file=_file(checkpoint, name),
            )
            for name in names
        ),
        len(names),
        "unexpected-tensor",
    )


def _vision_tower(subject: Subject) -> Iterator[Finding]:
    """Check the tower's tensors against those that the loader builds for the tower's path."""
    checkpoint = subject.checkpoint
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    stored = [name for name in shapes if parts.part_of(name) == parts.VISION_TOWER]
    if not stored:
        promised = any(parts.part_of(name) == parts.VISION_TOWER for name in subject.unread)
        if not promised:
            yield finding(
                "tower-absent",
                "model.vision_tower",
                "expected the vision tower's tensors, got none",
                hint="vita-ckpt swap-tower puts them in",
            )
        return
    own = parts.below(parts.TOWER_MODULE, shapes)
    recognised = towers.tower_of_shapes(own)
    family = _family_of_path(subject.config) or (recognised.family if recognised else None)
    if family is None or (recognised is not None and recognised.family != family):
        # Another family than the path chooses is a rule of the config: one cause, one finding.
        if recognised is None:
            yield _unknown_tower("model.vision_tower", own)
        return
    prefix = towers.FAMILIES[family].stored_prefix
    if recognised is not None and towers.tower_prefix(own) != prefix:
        yield _tower_prefix(subject, own, prefix)
        return
    bound = bind_tower(family, shapes, _tower_configs(subject, recognised))
    if not bound.wanted:
        yield _unknown_tower("model.vision_tower", own)
        return
    yield from _report(subject, bound.wanted, bound.mismatch, "the tower of the config")


def _family_of_path(config: Mapping[str, Any]) -> str | None:
    path = config.get("mm_vision_tower")
    return towers.dispatch(path, False).family if isinstance(path, str) else None


def _tower_configs(subject: Subject, stored: towers.Tower | None) -> Iterator[Mapping[str, Any]]:
    """Yield the tower's configs; one that describes another tower is a rule of the config."""
    directory = subject.tower_directory.config if subject.tower_directory is not None else None
    for config in (directory, subject.tower_config):
        described = None if config is None else towers.tower_of_config(config)
        if described is not None and stored is not None and described.differences(stored):
            continue
        if config is not None:
            yield config


def _tower_prefix(subject: Subject, own: towers.Shapes, prefix: str) -> Finding:
    """Report a whole tower under other names than the loader's: one cause, one finding."""
    got = towers.tower_prefix(own)
    place = parts.TOWER_MODULE
    return finding(
        "foreign-prefix",
        place + got + "*",
        f"expected the tower's names to start with {place}{prefix}, got {place}{got}",
        hint="rename the tensors: the loader would leave the tower uninitialised",
        file=_file(subject.checkpoint, place + next(n for n in own if n.startswith(got))),
    )


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
    yield from _misfits(
        subject,
        {stored.get(name, prefix + name): shape for name, shape in wanted.items()},
        {stored[name]: shape for name, shape in found.items()},
        "the tower of the config",
    )


def _projector(subject: Subject) -> Iterator[Finding]:
    checkpoint, config = subject.checkpoint, subject.config
    shapes = _below(checkpoint, parts.PROJECTOR_PREFIX)
    kind = str(config.get("mm_projector_type", projectors.DEFAULT_TYPE))
    if projectors.has_no_tensors(kind) and not shapes:
        return
    if not shapes:
        promised = any(name.startswith(parts.PROJECTOR_PREFIX) for name in subject.unread)
        if not promised:
            yield finding(
                "projector-absent",
                "model.mm_projector",
                "expected the projector's tensors, got none",
                hint="vita-ckpt merge-projector puts a trained one in",
            )
        return
    if projectors.candidates(shapes):
        return  # complete: whether it is the right one is a rule of the config
    projector = projectors.of_config(config)
    if projector is None:
        yield _unknown_projector(checkpoint, shapes, parts.PROJECTOR_PREFIX)
        return
    wanted = projectors.expected_shapes(projector)
    prefix = parts.PROJECTOR_PREFIX
    yield from _misfits(
        subject,
        {prefix + name: shape for name, shape in wanted.items()},
        {prefix + name: shape for name, shape in shapes.items()},
        f"the projector of the config, {projector}",
    )


def _lone_projector(subject: Subject) -> Iterator[Finding]:
    shapes = {
        name.partition("mm_projector.")[2]: tensor.shape
        for name, tensor in subject.checkpoint.tensors.items()
        if "mm_projector." in name
    }
    if shapes and not projectors.candidates(shapes):
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


def _not_floating(subject: Subject) -> Iterator[Finding]:
    """Tensors of a projector whose values are no real numbers."""
    for name, tensor in subject.checkpoint.refs.items():
        is_projector = subject.kind == kinds.PROJECTOR or "mm_projector" in name
        if is_projector and not tensor.dtype.startswith(("F", "BF")):
            yield finding(
                "projector-dtype",
                name,
                f"expected a floating dtype, got {tensor.dtype}",
                hint="take the projector from a sound copy",
                file=tensor.source.path,
            )


def _dtypes(checkpoint: Checkpoint) -> Iterator[Finding]:
    by_part: dict[str, Counter[str]] = {}
    example: dict[tuple[str, str], str] = {}
    for name, tensor in checkpoint.refs.items():
        if tensor.dtype in _FLOATS and name.removeprefix(AUDIO_PREFIX) not in CMVN:
            part = parts.part_of(name)
            by_part.setdefault(part, Counter())[tensor.dtype] += 1
            example.setdefault((part, tensor.dtype), name)
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


def _misfits(
    subject: Subject, wanted: Mapping[str, Shape], found: Mapping[str, Shape], what: str
) -> Iterator[Finding]:
    yield from _report(subject, wanted, compare(wanted, found), what)


def _report(
    subject: Subject, wanted: Mapping[str, Shape], misfit: KeyMismatch, what: str
) -> Iterator[Finding]:
    checkpoint = subject.checkpoint
    missing = [name for name in misfit.missing if name not in subject.unread]
    yield from _named(
        (
            finding("missing-tensor", name, f"expected {list(wanted[name])}, a tensor of {what}")
            for name in missing
        ),
        len(missing),
        "missing-tensor",
    )
    yield from _named(
        (
            finding(
                "unexpected-tensor",
                name,
                f"expected no such tensor in {what}",
                file=_file(checkpoint, name),
            )
            for name in misfit.unexpected
        ),
        len(misfit.unexpected),
        "unexpected-tensor",
    )
    real = [entry for entry in misfit.mismatched if 0 not in entry[2]]  # those have their own rule
    yield from _named(
        (
            finding(
                "shape-mismatch",
                name,
                f"expected {list(want)} in {what}, got {list(got)}",
                file=_file(checkpoint, name),
            )
            for name, want, got in real
        ),
        len(real),
        "shape-mismatch",
    )


def _named(findings: Iterable[Finding], total: int, rule: str) -> Iterator[Finding]:
    """Shorten many findings to the first ones and the number of the others."""
    for number, one in enumerate(findings):
        if number == _NAMED:
            yield finding(rule, "…", f"and {total - _NAMED} more tensors")
            return
        yield one


def _below(checkpoint: Checkpoint, prefix: str) -> dict[str, Shape]:
    return parts.below(prefix, {name: t.shape for name, t in checkpoint.tensors.items()})


def _file(checkpoint: Checkpoint, name: str) -> str:
    tensor = checkpoint.tensors.get(name)
    return tensor.source.path if isinstance(tensor, TensorRef) else ""
