"""Read the files of towers, and what is tied, as loaders of several families do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import VISION_LEVEL, Found, Lookup, describe_mismatch
from vita_ckpt.checks.explain.trace import LoaderTrace, Tracer, some_files
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.binding import PartSource, is_tied
from vita_ckpt.core.checkpoint import Shape
from vita_ckpt.core.file_listing import WeightFiles
from vita_ckpt.core.tensor_match import compare


def read_tower_directory(tracer: Tracer, lookup: Lookup, family: str) -> bool:
    """Replay the tower's own from_pretrained; False if it draws the tower at random."""
    files = lookup.files
    if files is None:
        return True
    trace, names = _replay(tracer.loader, files, family)
    if trace.stopped_by is not None:
        tracer.stop(trace.stopped_by, f"in the tower's directory: {trace.steps[-1].detail}")
    tracer.tower_files += map(files.path_of, trace.files_read)
    tracer.step("tower", f"filled from its directory: {some_files(trace.files_read)}")
    described = lookup.tower.tower if lookup.tower is not None else None
    if described is not None and described.family != family:
        return False  # said when the class was chosen
    if towers.FAMILIES[family].transformers_class is not None and not any(
        n.startswith(VISION_LEVEL) for n in names
    ):
        tracer.step(
            "draws",
            f"the tower at random: its directory's names lack the {VISION_LEVEL} level that "
            "transformers before 5.6 expects, and it says so only in a warning",
        )
        return False
    return True


def why_unreadable(files: WeightFiles, family: str) -> str | None:
    """Return why a loader cannot read the weights in the directory of a tower; None if it can."""
    trace, _ = _replay("", files, family)
    return None if trace.stopped_by is None else trace.steps[-1].detail


def _replay(loader: str, files: WeightFiles, family: str) -> tuple[LoaderTrace, list[str]]:
    names: list[str] = []
    trace = Tracer(loader, files).trace(lambda own: names.extend(_tower_names(own, family)))
    return trace, names


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


def _tower_names(own: Tracer, family: str) -> Iterable[str]:
    """Return the names in a tower's directory; EVA-CLIP is a file by itself."""
    if not towers.FAMILIES[family].lone_file:
        return file_resolution.from_pretrained(own, old=True).tensors
    return [name for file in own.files.files.values() for name in own.read(file).tensors]
