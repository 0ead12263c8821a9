"""Read the files of a run, which a loader puts onto a base."""

from __future__ import annotations

from vita_ckpt.checks.explain.file_resolution import FROM_PRETRAINED_ORDER
from vita_ckpt.checks.explain.trace import Tracer
from vita_ckpt.core.anatomy import parts
from vita_ckpt.core.binding.result import PartSource
from vita_ckpt.core.filenames import ADAPTER_CONFIG, LORA_FILES, NON_LORA, PROJECTOR_RUN


def is_run(tracer: Tracer) -> bool:
    """Return whether these files are a LoRA or a projector run, which is loaded onto a base."""
    names = set(tracer.files.names)
    model = set(FROM_PRETRAINED_ORDER) & names
    return not model and bool(names & {ADAPTER_CONFIG, NON_LORA, PROJECTOR_RUN})


def read_run(tracer: Tracer) -> list[str]:
    """Read the tensors of a run; return the files of a LoRA run, none of a projector run."""
    names = set(tracer.files.names)
    lora: list[str] = next(([name] for name in LORA_FILES if name in names), [])
    lora += [NON_LORA] if NON_LORA in names else []
    for name in lora or [PROJECTOR_RUN]:
        if name in tracer.files.files:
            file = tracer.read(tracer.files.files[name])
            tracer.sources |= dict.fromkeys(file.tensors, name)
    held = any(parts.part_of(name) == parts.MM_PROJECTOR for name in tracer.sources)
    tracer.projector = PartSource.CHECKPOINT if held else PartSource.BASE
    tracer.dtype = "float16"
    return lora
