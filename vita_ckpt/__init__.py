"""Surgery and checkpoint management for VITA multimodal models, without loading them."""

from __future__ import annotations

TYPE_CHECKING = False  # as that of typing, whose import would take longer than all of this

if TYPE_CHECKING:  # for type checkers: the same names as in the table below, which a test compares
    from vita_ckpt.api.apply import (
        Flushed as Flushed,
        apply as apply,
        apply_in_place as apply_in_place,
        check_plan as check_plan,
        load_plan as load_plan,
        save_plan as save_plan,
        summarize as summarize,
    )
    from vita_ckpt.api.plans.audio import (
        plan_extract_audio_adapter as plan_extract_audio_adapter,
        plan_extract_audio_encoder as plan_extract_audio_encoder,
        plan_merge_audio_adapter as plan_merge_audio_adapter,
        plan_swap_audio_encoder as plan_swap_audio_encoder,
    )
    from vita_ckpt.api.consolidate import (
        consolidate as consolidate,
    )
    from vita_ckpt.api.diff import (
        diff as diff,
    )
    from vita_ckpt.api.distribution import (
        distributions as distributions,
    )
    from vita_ckpt.api.explain import (
        explain as explain,
    )
    from vita_ckpt.api.inspect import (
        inspect as inspect,
        list_tensors as list_tensors,
        module_tree as module_tree,
    )
    from vita_ckpt.api.lifecycle import (
        clean as clean,
        drop_undo as drop_undo,
        history as history,
        recover as recover,
        undo as undo,
    )
    from vita_ckpt.api.locate import (
        StrPath as StrPath,
        open_checkpoint as open_checkpoint,
    )
    from vita_ckpt.api.plans.config import (
        plan_set as plan_set,
    )
    from vita_ckpt.api.plans.consolidate import (
        plan_consolidate as plan_consolidate,
    )
    from vita_ckpt.api.plans.convert import (
        plan_convert as plan_convert,
    )
    from vita_ckpt.api.plans.embeddings import (
        plan_resize_embeddings as plan_resize_embeddings,
    )
    from vita_ckpt.api.plans.lora import (
        plan_merge_lora as plan_merge_lora,
    )
    from vita_ckpt.api.plans.projector import (
        plan_extract_projector as plan_extract_projector,
        plan_merge_projector as plan_merge_projector,
    )
    from vita_ckpt.api.plans.tower import (
        plan_extract_tower as plan_extract_tower,
        plan_swap_tower as plan_swap_tower,
    )
    from vita_ckpt.api.push import (
        push as push,
    )
    from vita_ckpt.api.push_plan import (
        push_plan as push_plan,
    )
    from vita_ckpt.api.ranks import (
        join_ranks as join_ranks,
    )
    from vita_ckpt.api.validate import (
        validate as validate,
    )
    from vita_ckpt.api.verify import (
        MaxMemory as MaxMemory,
        load_model as load_model,
        verify as verify,
    )
    from vita_ckpt.checks.audio_summary import (
        AudioSummary as AudioSummary,
    )
    from vita_ckpt.checks.diff import (
        Change as Change,
        ConfigDifference as ConfigDifference,
        Difference as Difference,
        FileDifference as FileDifference,
        PartDifference as PartDifference,
        TensorDifference as TensorDifference,
    )
    from vita_ckpt.checks.distribution import (
        Distribution as Distribution,
    )
    from vita_ckpt.checks.explain.disagreements import (
        Divergence as Divergence,
    )
    from vita_ckpt.checks.explain.explanation import (
        Explanation as Explanation,
    )
    from vita_ckpt.checks.explain.trace import (
        LoaderTrace as LoaderTrace,
        Step as Step,
    )
    from vita_ckpt.checks.inspection.rows import ModuleRow as ModuleRow, TensorRow as TensorRow
    from vita_ckpt.checks.inspection.summary import (
        ConfigLine as ConfigLine,
        Inspection as Inspection,
        LoraSummary as LoraSummary,
        PartSummary as PartSummary,
        ProjectorSummary as ProjectorSummary,
        ShardSummary as ShardSummary,
    )
    from vita_ckpt.core.anatomy.audio.cmvn import (
        Cmvn as Cmvn,
    )
    from vita_ckpt.core.anatomy.audio.directory import (
        AudioDirectory as AudioDirectory,
    )
    from vita_ckpt.core.anatomy.audio.settings import (
        AudioAdapter as AudioAdapter,
        AudioEncoder as AudioEncoder,
        Subsampling as Subsampling,
        Transformer as Transformer,
    )
    from vita_ckpt.core.anatomy.towers import (
        Dispatch as Dispatch,
        Family as Family,
        Outcome as Outcome,
        Reason as Reason,
        Tower as Tower,
        TowerDirectory as TowerDirectory,
    )
    from vita_ckpt.core.binding.result import PartSource as PartSource
    from vita_ckpt.core.checkpoint import (
        Cast as Cast,
        Checkpoint as Checkpoint,
        File as File,
        LocalFile as LocalFile,
        LoraMerge as LoraMerge,
        Mean as Mean,
        Part as Part,
        Pieces as Pieces,
        RandomInit as RandomInit,
        RemoteFile as RemoteFile,
        Shard as Shard,
        Tensor as Tensor,
        TensorRef as TensorRef,
    )
    from vita_ckpt.core.distance import (
        Distance as Distance,
    )
    from vita_ckpt.core.left_out import (
        LeftOut as LeftOut,
    )
    from vita_ckpt.core.memory import Memory as Memory
    from vita_ckpt.core.options import (
        Format as Format,
        Link as Link,
        Names as Names,
        Options as Options,
        Tie as Tie,
        TrainedWeights as TrainedWeights,
    )
    from vita_ckpt.core.outcomes import (
        History as History,
        Push as Push,
        PutBack as PutBack,
        Undoable as Undoable,
    )
    from vita_ckpt.core.plan import (
        AddTensor as AddTensor,
        CopyFile as CopyFile,
        DropFile as DropFile,
        DropTensor as DropTensor,
        Edit as Edit,
        Plan as Plan,
        PutFile as PutFile,
        Record as Record,
        ReplaceTensor as ReplaceTensor,
        SetConfig as SetConfig,
        WeightFiles as WeightFiles,
    )
    from vita_ckpt.core.progress import OnProgress as OnProgress
    from vita_ckpt.core.report import (
        Finding as Finding,
        Report as Report,
        Severity as Severity,
    )
    from vita_ckpt.core.summary import (
        FileSize as FileSize,
        PlannedChange as PlannedChange,
        PlannedFile as PlannedFile,
        PlannedKey as PlannedKey,
        PlannedTensor as PlannedTensor,
        Summary as Summary,
    )
    from vita_ckpt.core.training.state import (
        Engine as Engine,
        TrainingState as TrainingState,
    )
    from vita_ckpt.core.verification import (
        RankReport as RankReport,
        Verification as Verification,
    )
    from vita_ckpt.errors import (
        AdapterError as AdapterError,
        CastError as CastError,
        HubError as HubError,
        InputError as InputError,
        MalformedFileError as MalformedFileError,
        OutputError as OutputError,
        StaleInputError as StaleInputError,
        UnsafePickleError as UnsafePickleError,
        UsageError as UsageError,
        VitaCkptError as VitaCkptError,
    )
    from vita_ckpt.model.ranks import (
        Ranks as Ranks,
    )
    from vita_ckpt.model.vita import (
        Output as Output,
        VitaModel as VitaModel,
    )
    from vita_ckpt.storage.in_place.leftovers import (
        Leftover as Leftover,
    )
    from vita_ckpt.storage.reading.paths import (
        Stores as Stores,
    )
    from vita_ckpt.surgery.donors import (
        get_w as get_w,
    )
    from vita_ckpt.surgery.vision.arguments import VisionModelArgs as VisionModelArgs
    from vita_ckpt.surgery.vision.vision_modules import (
        initialize_vision_modules as initialize_vision_modules,
    )

__version__ = "0.1.0"

# Every public name by the module that it lives in, which is imported when the name is first used:
# a program pays for what it calls.
_HOMES = {
    "vita_ckpt.api.apply": (
        "Flushed",
        "apply",
        "apply_in_place",
        "check_plan",
        "load_plan",
        "save_plan",
        "summarize",
    ),
    "vita_ckpt.api.consolidate": ("consolidate",),
    "vita_ckpt.api.diff": ("diff",),
    "vita_ckpt.api.distribution": ("distributions",),
    "vita_ckpt.api.explain": ("explain",),
    "vita_ckpt.api.inspect": (
        "inspect",
        "list_tensors",
        "module_tree",
    ),
    "vita_ckpt.api.lifecycle": (
        "clean",
        "drop_undo",
        "history",
        "recover",
        "undo",
    ),
    "vita_ckpt.api.locate": (
        "StrPath",
        "open_checkpoint",
    ),
    "vita_ckpt.api.plans.audio": (
        "plan_extract_audio_adapter",
        "plan_extract_audio_encoder",
        "plan_merge_audio_adapter",
        "plan_swap_audio_encoder",
    ),
    "vita_ckpt.api.plans.config": ("plan_set",),
    "vita_ckpt.api.plans.consolidate": ("plan_consolidate",),
    "vita_ckpt.api.plans.convert": ("plan_convert",),
    "vita_ckpt.api.plans.embeddings": ("plan_resize_embeddings",),
    "vita_ckpt.api.plans.lora": ("plan_merge_lora",),
    "vita_ckpt.api.plans.projector": (
        "plan_extract_projector",
        "plan_merge_projector",
    ),
    "vita_ckpt.api.plans.tower": (
        "plan_extract_tower",
        "plan_swap_tower",
    ),
    "vita_ckpt.api.push": ("push",),
    "vita_ckpt.api.push_plan": ("push_plan",),
    "vita_ckpt.api.ranks": ("join_ranks",),
    "vita_ckpt.api.validate": ("validate",),
    "vita_ckpt.api.verify": (
        "MaxMemory",
        "load_model",
        "verify",
    ),
    "vita_ckpt.checks.audio_summary": ("AudioSummary",),
    "vita_ckpt.checks.diff": (
        "Change",
        "ConfigDifference",
        "Difference",
        "FileDifference",
        "PartDifference",
        "TensorDifference",
    ),
    "vita_ckpt.checks.distribution": ("Distribution",),
    "vita_ckpt.checks.explain.disagreements": ("Divergence",),
    "vita_ckpt.checks.explain.explanation": ("Explanation",),
    "vita_ckpt.checks.explain.trace": (
        "LoaderTrace",
        "Step",
    ),
    "vita_ckpt.checks.inspection.rows": ("ModuleRow", "TensorRow"),
    "vita_ckpt.checks.inspection.summary": (
        "ConfigLine",
        "Inspection",
        "LoraSummary",
        "PartSummary",
        "ProjectorSummary",
        "ShardSummary",
    ),
    "vita_ckpt.core.anatomy.audio.cmvn": ("Cmvn",),
    "vita_ckpt.core.anatomy.audio.directory": ("AudioDirectory",),
    "vita_ckpt.core.anatomy.audio.settings": (
        "AudioAdapter",
        "AudioEncoder",
        "Subsampling",
        "Transformer",
    ),
    "vita_ckpt.core.anatomy.towers": (
        "Dispatch",
        "Family",
        "Outcome",
        "Reason",
        "Tower",
        "TowerDirectory",
    ),
    "vita_ckpt.core.binding.result": ("PartSource",),
    "vita_ckpt.core.checkpoint": (
        "Cast",
        "Checkpoint",
        "File",
        "LocalFile",
        "LoraMerge",
        "Mean",
        "Part",
        "Pieces",
        "RandomInit",
        "RemoteFile",
        "Shard",
        "Tensor",
        "TensorRef",
    ),
    "vita_ckpt.core.distance": ("Distance",),
    "vita_ckpt.core.left_out": ("LeftOut",),
    "vita_ckpt.core.memory": ("Memory",),
    "vita_ckpt.core.options": (
        "Format",
        "Link",
        "Names",
        "Options",
        "Tie",
        "TrainedWeights",
    ),
    "vita_ckpt.core.outcomes": (
        "History",
        "Push",
        "PutBack",
        "Undoable",
    ),
    "vita_ckpt.core.plan": (
        "AddTensor",
        "CopyFile",
        "DropFile",
        "DropTensor",
        "Edit",
        "Plan",
        "PutFile",
        "Record",
        "ReplaceTensor",
        "SetConfig",
        "WeightFiles",
    ),
    "vita_ckpt.core.progress": ("OnProgress",),
    "vita_ckpt.core.report": (
        "Finding",
        "Report",
        "Severity",
    ),
    "vita_ckpt.core.summary": (
        "FileSize",
        "PlannedChange",
        "PlannedFile",
        "PlannedKey",
        "PlannedTensor",
        "Summary",
    ),
    "vita_ckpt.core.training.state": (
        "Engine",
        "TrainingState",
    ),
    "vita_ckpt.core.verification": (
        "RankReport",
        "Verification",
    ),
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
    "vita_ckpt.storage.in_place.leftovers": ("Leftover",),
    "vita_ckpt.storage.reading.paths": ("Stores",),
    "vita_ckpt.surgery.donors": ("get_w",),
    "vita_ckpt.surgery.vision.arguments": ("VisionModelArgs",),
    "vita_ckpt.surgery.vision.vision_modules": ("initialize_vision_modules",),
}
# Types that can be imported only where the extra ``model`` is installed.
_MODEL_HOMES = {
    "vita_ckpt.model.ranks": ("Ranks",),
    "vita_ckpt.model.vita": (
        "Output",
        "VitaModel",
    ),
}
_HOME_OF = {
    name: module
    for homes in (_HOMES, _MODEL_HOMES)
    for module, names in homes.items()
    for name in names
}


if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__all__":  # not a constant: which names there are depends on what is installed
        return _public_names()
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - slow, and not for the command line

    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return _public_names()


def _public_names() -> list[str]:
    from importlib.util import find_spec  # noqa: PLC0415 - slow, seldom needed

    homes = _HOMES if find_spec("torch") is None else {**_HOMES, **_MODEL_HOMES}
    return sorted(["__version__", *(name for names in homes.values() for name in names)])
