"""Surgery and checkpoint management for VITA multimodal models, without loading them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vita_ckpt.api.apply import (
        apply,
        apply_in_place,
        check_plan,
        load_plan,
        save_plan,
        summarize,
    )
    from vita_ckpt.api.diff import diff
    from vita_ckpt.api.explain import explain
    from vita_ckpt.api.inspect import inspect, list_tensors, module_tree
    from vita_ckpt.api.lifecycle import clean, drop_undo, history, recover, undo
    from vita_ckpt.api.locate import open_checkpoint
    from vita_ckpt.api.plans import (
        plan_extract_projector,
        plan_extract_tower,
        plan_merge_projector,
        plan_set,
        plan_swap_tower,
    )
    from vita_ckpt.api.push import push
    from vita_ckpt.api.validate import validate
    from vita_ckpt.api.verify import load_model, verify
    from vita_ckpt.core.checkpoint import (
        Cast,
        Checkpoint,
        LocalFile,
        RandomInit,
        RemoteFile,
        Shard,
        TensorRef,
    )
    from vita_ckpt.core.options import Options
    from vita_ckpt.core.plan import (
        AddTensor,
        DropFile,
        DropTensor,
        Plan,
        PutFile,
        Record,
        ReplaceTensor,
        SetConfig,
    )
    from vita_ckpt.core.report import Finding, Report
    from vita_ckpt.errors import (
        AdapterError,
        CastError,
        HubError,
        InputError,
        MalformedFileError,
        OutputError,
        StaleInputError,
        UnsafePickleError,
        UsageError,
        VitaCkptError,
    )
    from vita_ckpt.storage.reading.paths import Stores
    from vita_ckpt.surgery.projector import get_w
    from vita_ckpt.surgery.vision_modules import VisionModelArgs, initialize_vision_modules

__version__ = "0.1.0"

# Resolved on first use: a program pays for what it calls.
_HOMES = {
    "vita_ckpt.api.diff": ("diff",),
    "vita_ckpt.api.explain": ("explain",),
    "vita_ckpt.api.lifecycle": ("clean", "drop_undo", "history", "recover", "undo"),
    "vita_ckpt.api.locate": ("open_checkpoint",),
    "vita_ckpt.api.push": ("push",),
    "vita_ckpt.api.inspect": ("inspect", "list_tensors", "module_tree"),
    "vita_ckpt.api.verify": ("load_model", "verify"),
    "vita_ckpt.api.plans": (
        "plan_extract_projector",
        "plan_extract_tower",
        "plan_merge_projector",
        "plan_set",
        "plan_swap_tower",
    ),
    "vita_ckpt.api.apply": (
        "apply",
        "apply_in_place",
        "check_plan",
        "load_plan",
        "save_plan",
        "summarize",
    ),
    "vita_ckpt.api.validate": ("validate",),
    "vita_ckpt.core.checkpoint": (
        "Cast",
        "Checkpoint",
        "RandomInit",
        "LocalFile",
        "RemoteFile",
        "Shard",
        "TensorRef",
    ),
    "vita_ckpt.core.options": ("Options",),
    "vita_ckpt.core.plan": (
        "AddTensor",
        "DropFile",
        "DropTensor",
        "Plan",
        "PutFile",
        "Record",
        "ReplaceTensor",
        "SetConfig",
    ),
    "vita_ckpt.core.report": ("Finding", "Report"),
    "vita_ckpt.errors": (
        "AdapterError",
        "CastError",
        "HubError",
        "InputError",
        "MalformedFileError",
        "OutputError",
        "StaleInputError",
        "UnsafePickleError",
        "UsageError",
        "VitaCkptError",
    ),
    "vita_ckpt.storage.reading.paths": ("Stores",),
    "vita_ckpt.surgery.projector": ("get_w",),
    "vita_ckpt.surgery.vision_modules": ("VisionModelArgs", "initialize_vision_modules"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AdapterError",
    "AddTensor",
    "Cast",
    "CastError",
    "Checkpoint",
    "DropFile",
    "DropTensor",
    "Finding",
    "HubError",
    "InputError",
    "LocalFile",
    "MalformedFileError",
    "Options",
    "OutputError",
    "Plan",
    "PutFile",
    "RandomInit",
    "Record",
    "RemoteFile",
    "ReplaceTensor",
    "Report",
    "SetConfig",
    "Shard",
    "StaleInputError",
    "Stores",
    "TensorRef",
    "UnsafePickleError",
    "UsageError",
    "VisionModelArgs",
    "VitaCkptError",
    "__version__",
    "apply",
    "apply_in_place",
    "check_plan",
    "clean",
    "diff",
    "drop_undo",
    "explain",
    "get_w",
    "history",
    "initialize_vision_modules",
    "inspect",
    "list_tensors",
    "load_model",
    "load_plan",
    "module_tree",
    "open_checkpoint",
    "plan_extract_projector",
    "plan_extract_tower",
    "plan_merge_projector",
    "plan_set",
    "plan_swap_tower",
    "push",
    "recover",
    "save_plan",
    "summarize",
    "undo",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
