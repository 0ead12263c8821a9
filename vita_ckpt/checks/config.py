"""Check the config against the weights, the tower, the processor and the tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from vita_ckpt.checks.inspection.summary import ConfigLine
from vita_ckpt.checks.rules import finding
from vita_ckpt.checks.subject import Subject
from vita_ckpt.core import kinds
from vita_ckpt.core.address import looks_like_repository
from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.config_values import (
    wrong_language_values,
    wrong_tower_values,
    wrong_training_values,
    wrong_vision_values,
)
from vita_ckpt.core.anatomy.families import REQUIRED
from vita_ckpt.core.anatomy.language_tensors import of_plain_type
from vita_ckpt.core.anatomy.towers.tower import Tower
from vita_ckpt.core.binding.faults import unfit_image_size
from vita_ckpt.core.binding.modules import (
    contradiction_of,
    features_of,
    language_model_of,
    tower_class,
)
from vita_ckpt.core.filenames import CARRIED_CONFIG, CONFIG, PROCESSOR, PROVENANCE
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.remedies import set_path
from vita_ckpt.core.report import Finding

# Keys that only describe the checkpoint: loaders ignore them.
_STALE: Final = ("torch_dtype", "use_mm_proj")

# Keys with a rule of their own, or whose errors show as tensors that do not fit.
_ELSEWHERE: Final = ("mm_vision_tower", "mm_hidden_size", "tie_word_embeddings", "use_s2", "s2")
_WITH_CONFIG: Final = (*kinds.WHOLE, kinds.LANGUAGE_MODEL, kinds.PROJECTOR)


def check_config(subject: Subject) -> Iterator[Finding]:
    """Check ``config.json`` and the files beside it against every rule about them."""
    if subject.checkpoint.config is None:
        yield from _missing(subject)
        return
    if subject.kind in _WITH_CONFIG:
        yield from _keys(subject)
    if subject.kind in (*kinds.WHOLE, kinds.LANGUAGE_MODEL):
        yield from _model_type(subject)
        yield from _values(subject)
        yield from check_rows(subject)
    if subject.kind in kinds.WHOLE:
        yield from _paths(subject)
        yield from _projector_type(subject)
        yield from _s2(subject)
        yield from _tower(subject)
        yield from _provenance(subject)
    elif subject.kind == kinds.TOWER:
        yield from _tower(subject)
    elif subject.kind == kinds.PROJECTOR and "mm_projector_type" in subject.config:
        yield from _projector_type(subject)


def _missing(subject: Subject) -> Iterator[Finding]:
    if CONFIG in subject.inspection.missing:
        yield finding(
            "config-missing",
            CONFIG,
            "expected a config.json beside the weights, got none",
            hint="copy it from where the checkpoint came from",
            file=subject.checkpoint.root,
        )


def _keys(subject: Subject) -> Iterator[Finding]:
    """Check the keys that inspect compares."""
    has_projector = any(
        part.name == parts.MM_PROJECTOR and part.tensors > 0 for part in subject.inspection.parts
    )
    deciding = _deciding(subject)
    for key, line in subject.inspection.config.items():
        if line.problem is not None:
            rule = "config-type" if key in deciding else "config-type-unread"
            yield _of(subject, rule, key, line.problem)
        elif line.agrees is False and key not in _ELSEWHERE:
            rule = "config-stale" if key in _STALE else "config-weights-mismatch"
            if key == "mm_projector_type" and not projectors.is_known(
                str(line.value or subject.family.default_projector), subject.family.projector_types
            ):
                continue  # reported by its own rule
            if key in ("mm_projector_type", "use_mm_proj") and not has_projector:
                continue  # the projector is absent: reported by its own rule
            if key == "num_hidden_layers" and any(
                name.startswith(parts.LAYERS_PREFIX) for name in subject.unread
            ):
                continue  # not all of them could be counted
            yield _of(subject, rule, key, _disagreement(line))
    yield from _hidden_size(subject)


def _deciding(subject: Subject) -> Collection[str]:
    """Return the keys whose values no model can be built with: a loader is stopped by them."""
    language = language_model_of(subject.config)
    if language is None or subject.kind not in (*kinds.WHOLE, kinds.LANGUAGE_MODEL):
        return subject.inspection.config.keys()
    beyond = wrong_language_values(language.name, subject.config)
    return [wrong.key for wrong in (*beyond, *wrong_vision_values(subject.family, subject.config))]


def _hidden_size(subject: Subject) -> Iterator[Finding]:
    value = subject.config.get("mm_hidden_size")
    if value is not None and type(value) is not int:
        return  # its type is wrong: reported by its own rule
    tower, projector = subject.inspection.tower, subject.inspection.projector
    widths: dict[str, Any] = {"in the config": value}
    if tower is not None:
        features = features_of(subject.config, tower, subject.family)
        width = tower.output_width(subject.family.number_of_scales(subject.config))
        widths["out of the tower"] = width * len(features.layers if features is not None else (0,))
    if projector is not None:
        widths["into the projector"] = projector.in_width
    is_projector = subject.kind == kinds.PROJECTOR
    if len(widths) == 1 or len(set(widths.values())) == 1 or (is_projector and value is None):
        return
    got = ", ".join(f"{width} {where}" for where, width in widths.items())
    hint = "vita-ckpt set corrects the config" if len({*widths.values()} - {value}) == 1 else ""
    yield _of(
        subject, "hidden-size-mismatch", "mm_hidden_size", f"expected one width, got {got}", hint
    )


def _disagreement(line: ConfigLine) -> str:
    got = "nothing" if line.value is None else repr(line.value)
    return f"expected {line.weights!r}, as the weights say, got {got}"


def _model_type(subject: Subject) -> Iterator[Finding]:
    config, family = subject.config, subject.family
    model_type = config.get("model_type")
    backbone = family.backbone(config)
    if backbone is None and not (
        subject.kind == kinds.LANGUAGE_MODEL and of_plain_type(model_type) is not None
    ):
        known = ", ".join(family.by_type)
        yield _of(
            subject, "unknown-model-type", "model_type", f"expected {known}, got {model_type!r}"
        )
        return
    if contradiction := contradiction_of(config, family):
        yield _of(subject, "architecture-mismatch", "architectures", contradiction)
    elif backbone is not None and not config.get("architectures"):
        message = f"expected ['{backbone.architecture}'], got {config.get('architectures')!r}"
        yield _of(subject, "architecture-missing", "architectures", message)


def _values(subject: Subject) -> Iterator[Finding]:
    """Check the keys that the loader reads."""
    language = language_model_of(subject.config)
    if language is None:
        return
    for wrong in wrong_language_values(language.name, subject.config):
        line = subject.inspection.config.get(wrong.key)
        if line is None or line.problem is None:  # which has been said
            message = f"expected {wrong.expected}, got {wrong.got}"
            yield _of(subject, "config-type", wrong.key, message)
    for wrong in wrong_training_values(subject.config):
        message = f"expected {wrong.expected}, got {wrong.got}"
        yield _of(subject, "config-type-unread", wrong.key, message)
    for key, value in subject.family.keys.items():
        if value.default is REQUIRED and key not in subject.config and subject.kind in kinds.WHOLE:
            message = "expected a value: the loader has no default, and raises AttributeError"
            yield _of(subject, "config-type", key, message)


def check_rows(subject: Subject) -> Iterator[Finding]:
    """Check the rows of the embeddings against the tokens of the tokenizer."""
    embed = subject.checkpoint.tensors.get(parts.EMBED_TOKENS)
    if embed is None or subject.tokens is None or len(embed.shape) != 2:
        return
    rows = embed.shape[0]
    if rows < subject.tokens:
        yield finding(
            "fewer-embeddings-than-tokens",
            parts.EMBED_TOKENS,
            f"expected at least {subject.tokens} rows, one for each token, got {rows}",
            hint="the tokenizer belongs to another checkpoint, or the embeddings were not resized",
        )
    elif rows > subject.tokens:
        yield finding(
            "more-embeddings-than-tokens",
            parts.EMBED_TOKENS,
            f"{rows} rows for {subject.tokens} tokens: upstream cuts the surplus when it loads",
        )


def _paths(subject: Subject) -> Iterator[Finding]:
    config, tower = subject.config, subject.inspection.tower
    path = config.get("mm_vision_tower")
    directory = subject.tower_directory
    by_path = tower_class(config, subject.surroundings, subject.family)
    if isinstance(path, str) and by_path is not None:
        known = tower or (directory.tower if directory else None)
        if directory is not None and directory.tower is not None and subject.reads_directory:
            known = directory.tower
        no_s2 = by_path.reason.outcome is towers.Outcome.NO_S2
        if known is not None and by_path.family != known.family and not no_s2:
            yield _of(
                subject,
                "tower-path-misleads",
                "mm_vision_tower",
                f"expected a path that upstream takes for {known.traits.label}, got "
                f"{path!r}: {by_path.tower_class or 'nothing'} ({by_path.reason})",
                "vita-ckpt set gives it another path",
            )
        elif known is None and by_path.family is None and not no_s2:
            message = f"expected a path that upstream knows, got {path!r}: {by_path.reason}"
            yield _of(subject, "tower-path-misleads", "mm_vision_tower", message)
        yield from _path(subject, "mm_vision_tower", path, directory is not None and directory.path)
        if directory is not None and directory.path is not None and directory.problem is not None:
            yield _of(
                subject,
                "tower-directory-unreadable",
                "mm_vision_tower",
                f"expected a readable tower, got {directory.problem}",
            )
    elif tower is not None:
        yield _of(
            subject,
            "config-weights-mismatch",
            "mm_vision_tower",
            f"expected the tower's path, since there are its tensors, got {path!r}",
        )
    audio = config.get("mm_audio_encoder") if subject.family.has_audio else None
    if isinstance(audio, str) and audio:
        found = subject.audio_directory
        yield from _path(subject, "mm_audio_encoder", audio, found is not None and found.path)


def _path(subject: Subject, key: str, path: str, reachable: Any) -> Iterator[Finding]:
    if path.startswith(("/", "~")) or path[1:3] in (":\\", ":/"):
        yield _of(
            subject,
            "tower-path-absolute",
            key,
            f"expected a path that exists elsewhere too, got {path!r}",
            "vita-ckpt set gives it a relative one, or a hub id",
        )
    if not reachable:
        on_hub = looks_like_repository(path)
        yield _of(
            subject,
            "tower-path-unreachable",
            key,
            f"expected a directory here, beside the checkpoint or in it, got nothing at {path!r}"
            + (": by its form a repository of the hub, which the loader fetches" if on_hub else ""),
            _where(subject, key),
        )


def _where(subject: Subject, key: str) -> str:
    """Say what to do about a path that leads nowhere here."""
    named = f"where it lies here, {set_path(subject.checkpoint.root, key, 'PATH')} names it"
    if key != "mm_vision_tower":
        return named
    by_path = tower_class(subject.config, subject.surroundings, subject.family)
    if by_path is None or by_path.reason.outcome is not towers.Outcome.RULE:
        return f"{named}; the loader chooses the tower's class by words of the path"
    built = subject.family.dispatch(subject.config, lambda _: True).family
    if built != by_path.family:
        return (
            "the name must stay: the loader would build another class from a path that exists; "
            "download it into the hub's cache"
        )
    return named


def _projector_type(subject: Subject) -> Iterator[Finding]:
    kind, types = subject.family.projector_type(subject.config), subject.family.projector_types
    # Only a key that is absent means the default: upstream raises for null.
    if kind is None or (isinstance(kind, str) and not projectors.is_known(kind, types)):
        yield _of(
            subject,
            "unknown-projector-type",
            "mm_projector_type",
            f"expected {projectors.listed(types)}, got {'null' if kind is None else repr(kind)}",
        )


def _s2(subject: Subject) -> Iterator[Finding]:
    config, tower, family = subject.config, subject.inspection.tower, subject.family
    key = family.s2_key
    if config.get(key) is not True:
        line = subject.inspection.config.get(key)
        if line is not None and line.agrees is False and line.problem is None:
            message = "expected true: the projector takes the features of several scales, got "
            yield _of(subject, "config-weights-mismatch", key, message + repr(line.value))
        return
    if tower is not None and tower.family not in family.s2_towers:
        with_s2 = towers.listed(towers.FAMILIES[name] for name in family.s2_towers)
        message = f"expected a {with_s2} tower, got {tower.traits.label}"
        yield _of(subject, "s2-needs-siglip", key, message)
        return
    text = config.get("s2_scales", family.default_s2_scales)
    scales = towers.parse_s2_scales(text) if isinstance(text, str) else None
    if scales is None:
        message = f"expected sizes in pixels such as 384,768,1152, got {text!r}"
        yield _of(subject, "invalid-s2-scales", "s2_scales", message)
    elif tower is not None and not towers.fits_s2_scales(tower, scales):
        message = (
            f"expected multiples of {tower.image_size} px, the size of the tower's images, got "
        )
        yield _of(subject, "invalid-s2-scales", "s2_scales", message + text)


def _tower(subject: Subject) -> Iterator[Finding]:
    tower, config = subject.inspection.tower, subject.tower_config
    for wrong in () if config is None else wrong_tower_values(config):
        message = f"expected {wrong.expected} in the tower's config, got {wrong.got}"
        yield finding("config-type", wrong.key, message)
    yield from _carried(subject)
    if tower is None:
        return
    whole = described = towers.tower_of_config(config) if config is not None else None
    if config is not None and whole is not None and subject.kind in kinds.WHOLE:
        own = subject.family.stored_tower(whole.family, config)
        described = towers.tower_of_config(own) or whole
    if whole is not None and described is not None and not subject.reads_directory:
        # One that is stored whole is cut when it is loaded.
        yield from _differences(tower, described if tower.differences(whole) else whole)
    if tower.has_odd_grid:
        message = f"expected {tower.traits.grid_needed}, got {tower.grid}"
        yield finding("odd-patch-grid", "model.vision_tower", message)
    elif subject.kind in kinds.WHOLE:
        tokens = tower.tokens()
        kind = subject.family.projector_type(subject.config)
        if (
            tokens is not None
            and isinstance(kind, str)
            and projectors.is_known(kind, subject.family.projector_types)
            and projectors.tokens_out(kind, tokens) is None
        ):
            message = f"expected tokens that a {kind} projector can take, got {tokens} of {tower}"
            yield _of(subject, "projector-tokens", "mm_projector_type", message)
    yield from _processor(subject, described or tower)


def _carried(subject: Subject) -> Iterator[Finding]:
    """Check the config of a tower that comes with a checkpoint whose loader reads another."""
    carried = subject.surroundings.carried
    if carried is None or carried is subject.tower_config:
        return
    for wrong in wrong_tower_values(carried):
        message = f"expected {wrong.expected} in {CARRIED_CONFIG}, got {wrong.got}"
        yield finding("config-type-unread", wrong.key, message)


def _differences(tower: Tower, described: Tower) -> Iterator[Finding]:
    for what in tower.differences(described):
        ours, theirs = getattr(tower, what), getattr(described, what)
        yield finding(
            "tower-directory-mismatch",
            "model.vision_tower",
            f"expected {what} {theirs}, as the tower's config says, got {ours} in the weights",
            hint="mm_vision_tower leads to another tower",
        )


def _processor(subject: Subject, tower: Tower) -> Iterator[Finding]:
    size = unfit_image_size(subject.processor, tower, subject.config, subject.family)
    if size is not None:
        yield finding(
            "processor-size-mismatch",
            PROCESSOR,
            f"expected images of {tower.image_size} px, which the tower takes, got {size} px",
            hint="the processor belongs to another tower",
        )


def _provenance(subject: Subject) -> Iterator[Finding]:
    known = subject.checkpoint.provenance
    if known is not None and (
        type(known.get("needs_alignment")) is not bool
        or not isinstance(known.get("operations"), list)
    ):
        yield finding(
            "invalid-provenance", PROVENANCE, "expected needs_alignment and a list of operations"
        )
    if needs_alignment(subject.checkpoint):
        yield finding(
            "projector-untrained",
            "mm_projector",
            "drawn at random, and no trained one has been merged since",
            hint="train it, and merge it with merge-projector",
        )


def _of(subject: Subject, rule: str, key: str, message: str, hint: str = "") -> Finding:
    return finding(rule, key, message, hint=hint, file=subject.config_path)
