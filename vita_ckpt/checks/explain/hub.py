"""Replay what huggingface_hub does with a directory: its model loader, its metadata."""

from __future__ import annotations

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import (
    Lookup,
    expected_audio,
    expected_language_model,
    expected_projector,
    expected_tower,
    match_tensors,
)
from vita_ckpt.checks.explain.trace import PartSource, Tracer
from vita_ckpt.core.anatomy import parts, towers
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.config_values import wrong_sizes


def hub_model(tracer: Tracer, lookup: Lookup) -> None:
    """Replay ``load_torch_model`` with a module of the checkpoint's own class."""
    config = tracer.files.config or {}
    read = file_resolution.load_torch_model(tracer)
    tracer.step("fills", "the module that it is given, in that module's dtype, not strictly")
    backbone = BACKBONES.get(str(config.get("model_type")))
    found = read.tensors
    if backbone is None or wrong_sizes(backbone.language_model, config):
        tracer.sources |= {name: file for name, (_, file) in found.items()}
        return
    tracer.model_class = backbone.architecture
    wanted = expected_language_model(tracer, backbone, config)
    path = config.get("mm_vision_tower")
    dispatch = towers.dispatch(path, False) if isinstance(path, str) else None
    if dispatch is not None and dispatch.family is not None:
        wanted |= expected_projector(tracer, config, found)
        wanted |= expected_tower(lookup, found, dispatch.family)
    wanted |= expected_audio(tracer, lookup, config, found)
    accepted = {parts.LM_HEAD} & found.keys()
    match_tensors(tracer, wanted, found, accepted, "kept as the module has them")
    tracer.tower = _source(tracer, parts.TOWER_MODULE)
    tracer.projector = _source(tracer, parts.PROJECTOR_PREFIX)


def _source(tracer: Tracer, prefix: str) -> PartSource | None:
    """Return the checkpoint if it gives any tensor below ``prefix``."""
    given = any(name.startswith(prefix) for name in tracer.sources)
    return PartSource.CHECKPOINT if given else None


def hub_metadata(tracer: Tracer, lookup: Lookup) -> None:
    """Replay the reading of headers for the Hub's pages and safetensors metadata."""
    read = file_resolution.metadata(tracer)
    tracer.sources |= {name: file for name, (_, file) in read.tensors.items()}
