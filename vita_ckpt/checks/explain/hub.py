"""Replay what huggingface_hub does with a directory: its model loader, its metadata."""

from __future__ import annotations

from vita_ckpt.checks.explain import file_resolution
from vita_ckpt.checks.explain.matching import Lookup, record, record_audio
from vita_ckpt.checks.explain.trace import Tracer
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.anatomy.backbones import BACKBONES
from vita_ckpt.core.anatomy.config_values import wrong_sizes
from vita_ckpt.core.binding.bind import bind
from vita_ckpt.core.binding.loaders import HUB_MODEL
from vita_ckpt.core.binding.result import PartSource


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
    refs = {name: tensor for name, (tensor, _) in found.items()}
    bound = bind(config, refs, lookup.surroundings, HUB_MODEL)
    record_audio(tracer, config, found)
    record(tracer, bound, found, "kept as the module has them")
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
