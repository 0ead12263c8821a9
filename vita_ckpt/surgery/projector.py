"""Plan extraction and merge of the projector, with upstream's ``get_w``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from vita_ckpt.core.anatomy import parts, projectors, towers
from vita_ckpt.core.anatomy.families import ModelFamily
from vita_ckpt.core.anatomy.projectors import Projector
from vita_ckpt.core.binding.modules import features_of
from vita_ckpt.core.checkpoint import (
    EMPTY,
    Checkpoint,
    Pieces,
    Shape,
    Stored,
    Tensor,
    TensorRef,
    cast,
    source_of,
)
from vita_ckpt.core.dataclass import dataclass
from vita_ckpt.core.dtype import CAST_TARGETS, can_cast
from vita_ckpt.core.kinds import refuse_unmerged
from vita_ckpt.core.plan import (
    AddTensor,
    DropTensor,
    Edit,
    Plan,
    Record,
    ReplaceTensor,
    SetConfig,
)
from vita_ckpt.core.provenance import needs_alignment
from vita_ckpt.core.requirements import family_of_model, model_config
from vita_ckpt.core.spelling import did_you_mean
from vita_ckpt.errors import AdapterError, CastError, UsageError, printable
from vita_ckpt.surgery.donors import projector_of
from vita_ckpt.surgery.preconditions import refuse_packed_projector, require_binding

# The component by which --with names the vector between the rows of tiles.
NEWLINE_NAME: Final = parts.NEWLINE.rpartition(".")[2]


def plan_extract_projector(
    checkpoint: Checkpoint, *, bare: bool = False, extras: Collection[str] = ()
) -> Plan:
    """Return a plan for a file that holds only the projector of ``checkpoint`` (any layout).

    Names are upstream's, ``model.mm_projector.0.weight``, or ``0.weight`` if ``bare``. What belongs
    to it is taken along: ``model.image_newline`` where the model has one, and other tensors that
    ``extras`` names by a component of their name. Raises AdapterError if there is no projector, an
    ambiguous one, or one with empty tensors, and UsageError for extras not found.
    """
    donor = projector_of(checkpoint)
    weights = donor.tensors
    prefix = "" if bare else parts.PROJECTOR_PREFIX
    family = family_of_model(checkpoint)
    stored = checkpoint.stored
    others = {name: stored[name] for name in donor.others if name in stored}
    named = _with_newline(others, extras, checkpoint.config or {}, family)
    more, _ = _split_extras(others, named)
    found = projectors.candidates(_shapes(weights), projectors.EVERY_TYPE)
    what = _one_of(found) if found else "no known projector type by names and shapes"
    return Plan(
        operation="extract-projector",
        base=EMPTY,
        edits=(
            *(AddTensor(f"{prefix}{name}", ref, "projector") for name, ref in weights.items()),
            *(
                AddTensor(name.removeprefix(parts.PEFT_PREFIX), ref, "taken along")
                for name, ref in more.items()
            ),
        ),
        donors=(checkpoint,),
        notes=(f"projector: {what}", *donor.notes),
    )


def plan_merge_projector(
    base: Checkpoint,
    adapter: Checkpoint,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
) -> Plan:
    """Return a plan that puts the projector of ``adapter`` into ``base``; other tensors are kept.

    ``adapter`` is anything that holds ``mm_projector`` tensors: the trainer's file or run, a LoRA
    run (its deltas are not merged), a full checkpoint. Its names, read with :func:`get_w`, and
    shapes must be those of a projector type that fits the widths of ``base``. If that type differs
    from the config's, it is deduced from them and written to the config. ``dtype`` (a safetensors
    code) is the dtype in which the projector is written, by default that of the base's projector.
    ``extras`` names other tensors of the adapter to include, by a component of their name such as
    ``embed_tokens``.

    Raises InputError for a base that is not a VITA checkpoint, AdapterError for an adapter that
    does not fit, CastError for a conversion that is not defined and UsageError for extras not
    found.
    """
    edits, notes = merge_edits(base, adapter, dtype=dtype, extras=extras)
    asked = {"dtype": dtype, "extras": sorted(extras)}
    plan = Plan(
        operation="merge-projector",
        base=base,
        edits=tuple(edits),
        donors=(adapter,),
        notes=notes,
        record=Record(
            roles=("adapter",),
            arguments={key: value for key, value in asked.items() if value},
            needs_alignment=needs_alignment(adapter),
        ),
    )
    return require_binding(plan)


def merge_edits(
    base: Checkpoint,
    adapter: Checkpoint,
    *,
    dtype: str | None = None,
    extras: Collection[str] = (),
) -> tuple[list[Edit], tuple[str, ...]]:
    """Return the edits of :func:`plan_merge_projector`, and notes about them."""
    config, family = model_config(base), family_of_model(base)
    refuse_unmerged(base)
    donor = projector_of(adapter)
    weights = donor.tensors
    old = tensors_below(base, parts.PROJECTOR_PREFIX)
    refuse_packed_projector(base)
    widths = _Widths.of(base, config, old, family)
    new = _choose_type(adapter, weights, config, widths, family)
    names = {parts.PROJECTOR_PREFIX + name: tensor for name, tensor in weights.items()}
    edits: list[Edit] = [
        DropTensor(name, f"not a tensor of {new.type}") for name in old if name not in names
    ]
    default = dtype or dominant_dtype(old.values()) or language_dtype(base)
    for name, tensor in names.items():
        wanted = dtype or (old[name].dtype if name in old else default)
        edits.append(put_tensor(base, name, tensor, wanted, "projector of the adapter"))
    others = {name: adapter.tensors[name] for name in donor.others}
    chosen, left = _split_extras(others, _with_newline(others, extras, config, family))
    edits += _extra_edits(base, adapter, chosen)
    edits += _config_edits(config, new, family)
    return edits, (f"projector: {new}", *donor.notes, *_left_out_notes(adapter, left))


@dataclass(frozen=True, slots=True)
class _Widths:
    """The projector's widths according to the base; the tower's tensors override the config."""

    in_widths: Mapping[str, int]  # by source, in order of precedence
    out_widths: Mapping[str, int]
    width_of_scale: int | None = None  # of a tower that runs at one scale and could at several

    @classmethod
    def of(
        cls,
        base: Checkpoint,
        config: Mapping[str, Any],
        old: Mapping[str, Tensor],
        family: ModelFamily,
    ) -> _Widths:
        shapes = _shapes(base.tensors)
        tower = towers.tower_of_shapes(parts.below(parts.TOWER_PREFIX, shapes))
        scales = family.number_of_scales(config)
        own = parts.below(parts.PROJECTOR_PREFIX, shapes)
        previous = projectors.candidates(own, family.projector_types)
        in_widths: dict[str, int] = {}
        if tower is not None:
            features = features_of(config, tower, family)
            layers = 1 if features is None else len(features.layers)
            in_widths["the vision tower"] = tower.output_width(scales) * layers
        else:
            if type(config.get("mm_hidden_size")) is int:
                in_widths["mm_hidden_size"] = config["mm_hidden_size"]
            if previous:
                in_widths["the old projector"] = previous[0].in_width
        out_widths: dict[str, int] = {}
        embed = shapes.get(parts.EMBED_TOKENS)
        if embed is not None and len(embed) == 2:
            out_widths["embed_tokens"] = embed[1]
        elif type(config.get("hidden_size")) is int:
            out_widths["hidden_size"] = config["hidden_size"]
        has_s2 = tower is not None and tower.traits.has_s2 and scales == 1
        return cls(in_widths, out_widths, tower.width if tower is not None and has_s2 else None)

    def check(self, adapter: Checkpoint, found: Projector, weights: Mapping[str, Stored]) -> None:
        """Raise AdapterError unless the projector fits."""
        name, tensor = next((n, t) for n, t in weights.items() if len(t.shape) > 1)
        for side, got, by_source in (
            ("in", found.in_width, self.in_widths),
            ("out", found.out_width, self.out_widths),
        ):
            if by_source and got not in by_source.values():
                sources = " and ".join(f"{width} ({source})" for source, width in by_source.items())
                raise AdapterError(
                    "projector-width-mismatch",
                    adapter.root,
                    expected=f"a projector with {side} width {sources}",
                    got=f"{found} ({name} {list(tensor.shape)})",
                    hint=self._hint(side, got),
                )

    def _hint(self, side: str, got: int) -> str:
        if side == "out":
            return "the adapter was trained for another language model"
        scales, rest = divmod(got, self.width_of_scale) if self.width_of_scale else (0, 1)
        if rest:
            return "the adapter was trained for another tower"
        return (
            f"the adapter was trained for another tower, or with S2 at {scales} scales: then set "
            "use_s2 and s2_scales of the base first"
        )


def _choose_type(
    adapter: Checkpoint,
    weights: Mapping[str, Stored],
    config: Mapping[str, Any],
    widths: _Widths,
    family: ModelFamily,
) -> Projector:
    """Return the adapter's projector; if its tensors fit several types, the configs decide."""
    shapes = _shapes(weights)
    configured = str(family.projector_type(config))
    found = projectors.candidates(shapes, family.projector_types)
    if not found:
        raise _misfit(adapter, shapes, configured, widths, family)
    widths.check(adapter, found[0], weights)
    trained = (adapter.config or {}).get("mm_projector_type")
    for known in (trained, configured):
        if isinstance(known, str) and projectors.same_tensors(known, found[0].type):
            return Projector(known, found[0].in_width, found[0].out_width)
    if len(found) > 1:
        raise AdapterError(
            "ambiguous-projector-type",
            adapter.root,
            expected="a config.json beside the adapter that names the type",
            got=f"tensors of {_one_of(found)}",
            hint="these types store the same tensors and compute different things",
        )
    return found[0]


def _misfit(
    adapter: Checkpoint,
    shapes: Mapping[str, Shape],
    configured: str,
    widths: _Widths,
    family: ModelFamily,
) -> AdapterError:
    """Return the error for tensors that are not a complete projector of the config's type."""
    of_others = projectors.candidates(shapes, projectors.EVERY_TYPE)
    if of_others:
        return AdapterError(
            "unknown-projector",
            adapter.root,
            expected=f"a projector that {family.label} builds: "
            f"{projectors.listed(family.projector_types)}",
            got=_one_of(of_others),
            hint="a model of another family was trained with it",
        )
    got = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:6])
    in_width, out_width = (
        next(iter(by_source.values()), None) for by_source in (widths.in_widths, widths.out_widths)
    )
    if not projectors.is_known(configured) or in_width is None or out_width is None:
        return AdapterError(
            "unknown-projector", adapter.root, expected="the tensors of a projector type", got=got
        )
    expected = projectors.expected_shapes(Projector(configured, in_width, out_width))
    what = f"a {configured} projector {in_width}→{out_width}"
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    if missing and not unexpected:
        return AdapterError(
            "projector-incomplete",
            adapter.root,
            expected=f"{what}, with {', '.join(missing)}",
            got=f"only {got}",
            hint="the adapter holds a part of the projector: save it again",
        )
    if unexpected:
        return AdapterError(
            "projector-unexpected-tensor",
            f"{adapter.root}: {unexpected[0]}",
            expected=f"{what}: {', '.join(expected)}",
            got=got,
        )
    name = next(name for name in expected if expected[name] != shapes[name])
    return AdapterError(
        "projector-shape-mismatch",
        f"{adapter.root}: {name}",
        expected=f"{list(expected[name])} in {what}",
        got=f"{list(shapes[name])}",
        hint="the adapter was trained for another tower or language model",
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def tensors_below(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``."""
    return {n: t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}


def put_tensor(base: Checkpoint, name: str, tensor: Stored, dtype: str, reason: str) -> Edit:
    """Return the edit that gives ``base`` a donor's tensor in ``dtype``. Raises CastError."""
    if not can_cast(tensor.dtype, dtype):
        raise CastError(
            "cast-not-defined",
            f"{source_of(tensor)}: {name}",
            expected=f"a dtype that becomes {dtype}",
            got=tensor.dtype,
            hint=f"conversions lead to {', '.join(CAST_TARGETS)}",
        )
    new = cast(tensor, dtype)
    return (ReplaceTensor if name in base.tensors else AddTensor)(name, new, reason)


def _with_newline(
    others: Mapping[str, Tensor],
    extras: Collection[str],
    config: Mapping[str, Any],
    family: ModelFamily,
) -> Collection[str]:
    """Return ``extras`` with the newline between the rows of tiles, where the model needs it."""
    if not family.has_newline(config) or not any(_is_called(n, NEWLINE_NAME) for n in others):
        return extras
    return (*extras, NEWLINE_NAME)


def _split_extras(
    others: Mapping[str, Tensor], wanted: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    for name in wanted:
        if not any(_is_called(other, name) for other in others):
            raise UsageError(
                "extra-not-found",
                f"--with {name}",
                expected="a component of a tensor name of the adapter",
                got=", ".join(list(others)[:6]) or "no tensors beside the projector",
                hint=did_you_mean(name, {part for other in others for part in other.split(".")}),
            )
    chosen = {n: t for n, t in others.items() if any(_is_called(n, w) for w in wanted)}
    return chosen, {n: t for n, t in others.items() if n not in chosen}


def _is_called(name: str, wanted: str) -> bool:
    return f".{wanted}." in f".{name}."


def _extra_edits(base: Checkpoint, adapter: Checkpoint, chosen: Mapping[str, Tensor]) -> list[Edit]:
    edits: list[Edit] = []
    origins: dict[str, str] = {}
    for name, tensor in chosen.items():
        target = name.removeprefix(parts.PEFT_PREFIX)
        if origins.setdefault(target, name) != name:
            raise AdapterError(
                "ambiguous-key",
                f"{adapter.root}: {name}",
                expected=f"one tensor for {target}",
                got=f"also {printable(origins[target])}",
            )
        old = base.tensors.get(target)
        if old is None and target == parts.NEWLINE and isinstance(tensor, TensorRef | Pieces):
            reason = "merging tiles needs it"
            edits.append(put_tensor(base, target, tensor, language_dtype(base), reason))
            continue
        if old is None or old.shape != tensor.shape or not isinstance(tensor, TensorRef | Pieces):
            raise AdapterError(
                "extra-does-not-fit",
                f"{adapter.root}: {name}",
                expected=f"{target} {list(old.shape)} of the base"
                if old is not None
                else "a tensor that the base has too",
                got=f"{list(tensor.shape)}",
            )
        edits.append(put_tensor(base, target, tensor, old.dtype, "asked for by name"))
    return edits


def _config_edits(
    config: Mapping[str, Any], new: Projector, family: ModelFamily
) -> list[SetConfig]:
    edits: list[SetConfig] = []
    for key, value, default, reason in (
        ("mm_projector_type", new.type, family.default_projector, "the adapter is of this type"),
        ("mm_hidden_size", new.in_width, None, "the projector's input width"),
        ("use_mm_proj", True, None, "the checkpoint has a projector"),
    ):
        if config.get(key, default) != value:
            was = f"was {config[key]!r}" if key in config else "was not set"
            edits.append(SetConfig(key, value, f"{reason} ({was})"))
    return edits


def _left_out_notes(adapter: Checkpoint, left: Mapping[str, Tensor]) -> Sequence[str]:
    counts = Counter(parts.part_of(name) for name in left)
    deltas = counts.pop(parts.LORA, 0)
    notes: list[str] = []
    if deltas or adapter.layout == "lora":
        notes.append(f"only the projector is taken: the {deltas} LoRA deltas are not merged")
    if counts:
        what = ", ".join(f"{parts.LABELS[part]} {count}" for part, count in counts.items())
        sample = ", ".join([n for n in left if parts.part_of(n) != parts.LORA][:2])
        notes.append(f"left out of the adapter: {what} ({printable(sample)}…); --with takes them")
    return notes


def dominant_dtype(tensors: Collection[Tensor]) -> str | None:
    """Return the dtype of most of the bytes; None if there are no tensors."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.nbytes
    return counts.most_common(1)[0][0] if counts else None


def language_dtype(base: Checkpoint) -> str:
    """Return the dtype of most of the language model's bytes."""
    numbers = {n: t for n, t in base.tensors.items() if t.dtype in CAST_TARGETS}  # not codes
    language = [t for n, t in numbers.items() if parts.part_of(n) == parts.LANGUAGE_MODEL]
    return dominant_dtype(language or list(numbers.values())) or "F32"


def _one_of(found: Sequence[Projector]) -> str:
    types = " or ".join(projector.type for projector in found)
    return f"{types} {found[0].in_width}→{found[0].out_width}"
