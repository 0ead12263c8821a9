"""Read the files of towers, and what is tied, as loaders of several families do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import (
    Found,
    Lookup,
    describe_mismatch,
    say_fetched,
    stop_at,
)
from vita_ckpt.checks.explain.trace import LoaderTrace, Tracer, some_files
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.config_values import wrong_tower_values
from vita_ckpt.core.anatomy.families import ModelFamily
from vita_ckpt.core.binding.modules import is_tied, tower_class
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.binding.stops import stop_of_tower
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.core.filenames import CARRIED_CONFIG, PROCESSOR
from vita_ckpt.core.tensor_match import KeyMismatch, compare
from vita_ckpt.errors import InputError


def build_tower(
    tracer: Tracer, lookup: Lookup, config: Mapping[str, Any], family: ModelFamily
) -> str | None:
    """Record which tower a family's loader builds before the weights are read; return its family.

    None without a tower.
    """
    dispatch = tower_class(config, lookup.surroundings, family)
    if dispatch is None:
        tracer.tower = tracer.projector = PartSource.NOT_BUILT
        tracer.step("tower", "none: the config names no mm_vision_tower")
        return None
    stop = stop_of_tower(config, lookup.surroundings, family)
    if dispatch.family is None:
        tracer.stop(*((stop.code, stop.detail) if stop is not None else ("", str(dispatch.reason))))
    tracer.step("tower", f"{dispatch.tower_class}: {dispatch.reason}")
    stop_at(tracer, stop)
    path, tower = config.get("mm_vision_tower"), lookup.tower
    if tower is None or tower.path is None:
        say_fetched(tracer, "tower", str(path))
        _pass_over_carried(tracer, lookup)
    elif not lookup.from_here:
        tracer.step(
            "tower", f"{path} was found in {tower.path}: the loader looks from where it runs"
        )
    _read_processor(tracer, lookup, family, dispatch.family)
    return dispatch.family


def _read_processor(tracer: Tracer, lookup: Lookup, family: ModelFamily, built: str) -> None:
    """Record an image processor that cannot be read: the loader raises, of its own directory's."""
    trouble = lookup.processor_trouble
    absent = None if lookup.files is None else why_unprepared(lookup.files, built, family)
    if absent is not None:
        tracer.stop("tower-directory-unreadable", absent)
    if trouble is None:
        return
    is_read = lookup.files is not None and PROCESSOR in lookup.files.names
    if is_read and built not in family.own_sizes:
        tracer.stop(trouble.code, f"its image processor: {trouble.message}")
    tracer.flaws.append(PROCESSOR)
    tracer.step("passes over", f"an image processor that others read: {trouble.message}")


def _pass_over_carried(tracer: Tracer, lookup: Lookup) -> None:
    """Record a tower's config that comes with the checkpoint and describes no tower."""
    for wrong in wrong_tower_values(lookup.carried or {}):
        tracer.flaws.append(CARRIED_CONFIG)
        detail = f"{wrong.key} of {CARRIED_CONFIG} is {wrong.got}, not {wrong.expected}"
        tracer.step("passes over", f"what describes the tower elsewhere: {detail}")


def read_tower_directory(tracer: Tracer, lookup: Lookup, family: str) -> bool:
    """Replay the tower's own from_pretrained; False if it draws some of the tower at random."""
    files = lookup.files
    if files is None:
        return True
    own_config = lookup.tower.config if lookup.tower is not None else None
    trace, misfit = _replay(tracer.loader, files, family, own_config)
    if trace.stopped_by is not None:
        tracer.stop(trace.stopped_by, f"in the tower's directory: {trace.steps[-1].detail}")
    tracer.tower_files += map(files.path_of, trace.files_read)
    tracer.step("tower", f"filled from its directory: {some_files(trace.files_read)}")
    described = lookup.tower.tower if lookup.tower is not None else None
    if described is not None and described.family != family:
        return False  # said when the class was chosen
    if not misfit.missing:
        return True
    lacking = f"{len(misfit.missing)} tensors of the tower that its directory lacks"
    level = towers.FAMILIES[family].standalone_prefix
    if level and not any(name.startswith(level) for name in misfit.unexpected):
        without = any(level + name in misfit.missing for name in misfit.unexpected)
        lacking += f": its names lack the {level} level of transformers before 5.6" * without
    tracer.step("draws", f"{lacking}: at random, and says so only in a warning")
    return False


def why_unprepared(files: WeightFiles, built: str, family: ModelFamily) -> str | None:
    """Return why a loader has no image processor for a tower's directory; None if it has one.

    It takes the tower's own before its weights, except where its code holds the constants.
    """
    if PROCESSOR in files.names or not family.reads_processor(built):
        return None
    return f"OSError: {files.root} has no {PROCESSOR}, which the loader reads with the tower"


def why_unreadable(
    files: WeightFiles, family: str, config: Mapping[str, Any] | None, *, whole: bool
) -> str | None:
    """Return why a loader cannot take a tower from its directory; None if it can.

    ``config`` is the tower's own, ``whole`` is set where the values that it finds are the model's.
    """
    trace, misfit = _replay("", files, family, config)
    if trace.stopped_by is not None:
        return trace.steps[-1].detail
    if whole and misfit.missing:
        return f"no {misfit.missing[0]}: drawn at random, said only in a warning"
    return None


def _replay(
    loader: str, files: WeightFiles, family: str, config: Mapping[str, Any] | None
) -> tuple[LoaderTrace, KeyMismatch]:
    """Replay the tower's from_pretrained; return what of the tower it does not find, too."""
    wanted = _wanted(family, config)
    found: dict[str, Shape] = {}

    def run(own: Tracer) -> None:
        found.update(_tower_shapes(own, family))
        mismatched = compare(wanted, found).mismatched
        if mismatched:
            own.stop("shape-mismatch", f"size mismatch: {describe_mismatch(mismatched[0])}")

    trace = Tracer(loader, files).trace(run)
    return trace, compare(wanted, found)


def _wanted(family: str, config: Mapping[str, Any] | None) -> Mapping[str, Shape]:
    """Return the tensors of a tower that is built from its own config, by the library's names.

    Empty for a lone file, and for a config of another family's tower, of which nothing fits.
    """
    built = towers.FAMILIES[family]
    if built.lone_file or config is None or towers.family_of_config(config) is not built:
        return {}
    try:
        shapes = built.expected_shapes(towers.inner_config(config))
    except InputError:
        return {}
    return {built.standalone_prefix + name: shape for name, shape in shapes.items()}


def read_tower_again(tracer: Tracer, wanted: Mapping[str, Shape]) -> None:
    """Replay ``unfreeze_vision_tower``: every file is read, strictly, in the system's order."""
    names = [name for name in tracer.files.names if name.endswith("safetensors")]
    found: dict[str, list[str]] = {}
    shapes: dict[str, Shape] = {}
    for name in names:
        file = tracer.files.files[name]
        if file.trouble is not None:
            tracer.stop_for(file.trouble)
        tracer.tower_files.append(name)
        for tensor, ref in file.tensors.items():
            if tensor.startswith(parts.TOWER_MODULE):
                found.setdefault(tensor, []).append(name)
                shapes[tensor] = ref.shape
    tracer.step("tower", f"again, strictly, from every *.safetensors file: {some_files(names)}")
    if not found:
        tracer.stop("tower-absent", "no *.safetensors file holds a tensor of the tower")
    misfit = compare(wanted, shapes)
    if misfit.missing:
        tracer.stop("missing-tensor", f"{misfit.missing[0]} is in none of them")
    if misfit.unexpected:
        tracer.stop("unexpected-tensor", f"{misfit.unexpected[0]} is none of the tower's")
    if misfit.mismatched:
        tracer.stop("shape-mismatch", describe_mismatch(misfit.mismatched[0]))
    twice = [tensor for tensor, holders in found.items() if len(holders) > 1]
    if twice:
        tracer.flaws += twice
        tracer.step(
            "tower", f"{len(twice)} tensors are in several files: the one listed last counts"
        )
    tracer.sources |= {tensor: " or ".join(holders) for tensor, holders in found.items()}
    tracer.ignored = [name for name in tracer.ignored if name not in found]
    tracer.tower = PartSource.CHECKPOINT


def trace_lm_head(tracer: Tracer, config: Mapping[str, Any], found: Found) -> None:
    """Record which tensor becomes lm_head: modules are filled one by one and tied at the end."""
    if not is_tied(config):
        tracer.lm_head = parts.LM_HEAD if parts.LM_HEAD in found else None
        return
    tracer.lm_head = parts.EMBED_TOKENS
    if parts.LM_HEAD in found:
        tracer.step("ties", "lm_head.weight of the file is dropped: the embeddings are used")


def _tower_shapes(own: Tracer, family: str) -> dict[str, Shape]:
    """Return the tensors in a tower's directory; EVA-CLIP is a file by itself."""
    if not towers.FAMILIES[family].lone_file:
        found = file_resolution.from_pretrained(own, old=True).tensors
        return {name: tensor.shape for name, (tensor, _) in found.items()}
    files = own.files.files.values()
    return {name: ref.shape for file in files for name, ref in own.read(file).tensors.items()}
