"""The public face, frozen: a change here is a change for every user."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vita_ckpt
from tests.conftest import GOLDEN

SIGNATURES = {
    "apply": (
        "(plan: 'Plan', out: 'StrPath', *, options: 'Options' = Options(link='auto', "
        "check=False, digest=False, model_card=False, carry=()), on_progress: 'OnProgress' = "
        "unwatched, flushed: 'Flushed' = not_said, stores: 'Stores | None' = None) -> 'str'"
    ),
    "apply_in_place": (
        "(plan: 'Plan', *, options: 'Options' = Options(link='auto', check=True, "
        "digest=False, model_card=False, carry=()), on_progress: 'OnProgress' = unwatched, "
        "flushed: 'Flushed' = not_said, stores: 'Stores | None' = None) -> 'str'"
    ),
    "clean": ("(path: 'StrPath', *, dry_run: 'bool' = False) -> 'list[tuple[Leftover, bool]]'"),
    "drop_undo": ("(path: 'StrPath') -> 'int'"),
    "history": ("(path: 'StrPath', *, stores: 'Stores | None' = None) -> 'History'"),
    "recover": (
        "(path: 'StrPath', *, force: 'bool' = False, "
        "on_progress: 'OnProgress' = unwatched) -> 'PutBack | None'"
    ),
    "undo": (
        "(path: 'StrPath', *, force: 'bool' = False, "
        "on_progress: 'OnProgress' = unwatched) -> 'PutBack'"
    ),
    "check_plan": (
        "(plan: 'Plan', *, on_progress: 'OnProgress' = unwatched, flushed: 'Flushed' = "
        "not_said, stores: 'Stores | None' = None) -> 'None'"
    ),
    "diff": (
        "(a: 'Checkpoint | StrPath', b: 'Checkpoint | StrPath', *, values: 'bool' = False, "
        "only: 'Sequence[str]' = (), fetch: 'bool' = False, on_progress: 'OnProgress' = "
        "unwatched, stores: 'Stores | None' = None, ranks: 'Ranks | None' = None) -> "
        "'Difference'"
    ),
    "distributions": (
        "(checkpoint: 'Checkpoint | StrPath', *, on_progress: 'OnProgress' = unwatched, "
        "stores: 'Stores | None' = None) -> 'dict[str, Distribution]'"
    ),
    "explain": ("(path: 'StrPath', *, stores: 'Stores | None' = None) -> 'Explanation'"),
    "get_w": ("(weights: 'Mapping[str, _T]', keyword: 'str') -> 'dict[str, _T]'"),
    "inspect": (
        "(checkpoint: 'Checkpoint | StrPath', *, dtype: 'str | None' = None, batch: 'int' = "
        "1, stores: 'Stores | None' = None) -> 'Inspection'"
    ),
    "load_model": (
        "(path: 'Checkpoint | StrPath', *, device: 'str | torch.device' = 'auto', dtype: "
        "'torch.dtype | str | None' = None, tower: 'StrPath | None' = None, audio_encoder: "
        "'StrPath | None' = None, attn: 'str | None' = None, max_memory: 'MaxMemory | None' "
        "= None, stores: 'Stores | None' = None) -> 'VitaModel'"
    ),
    "list_tensors": (
        "(checkpoint: 'Checkpoint | StrPath', pattern: 'str' = '*', *, stores: 'Stores | "
        "None' = None) -> 'list[TensorRow]'"
    ),
    "module_tree": (
        "(checkpoint: 'Checkpoint | StrPath', depth: 'int', *, stores: 'Stores | None' = "
        "None) -> 'list[ModuleRow]'"
    ),
    "load_plan": ("(path: 'StrPath', *, stores: 'Stores | None' = None) -> 'Plan'"),
    "open_checkpoint": (
        "(path: 'StrPath', *, key: 'str | None' = None, ignore_index: 'bool' = False, "
        "stores: 'Stores | None' = None) -> 'Checkpoint'"
    ),
    "plan_convert": (
        "(checkpoint: 'Checkpoint | StrPath', *, names: 'Names | None' = None, dtype: 'str | "
        "None' = None, parts: 'Collection[str]' = (), keep: 'Collection[str]' = (), "
        "max_shard_size: 'int | str | None' = None, format: 'Format' = 'safetensors', tie: "
        "'Tie' = 'auto', ignore_index: 'bool' = False, stores: 'Stores | None' = None) -> "
        "'Plan'"
    ),
    "consolidate": (
        "(state: 'Checkpoint | StrPath', out: 'StrPath', *, base: 'Checkpoint | StrPath | "
        "None' = None, config: 'Mapping[str, Any] | StrPath | None' = None, dtype: 'str | "
        "None' = None, weights: 'TrainedWeights' = 'masters', tag: 'str | None' = None, "
        "check: 'bool' = False, on_progress: 'OnProgress' = unwatched, stores: 'Stores | "
        "None' = None) -> 'str'"
    ),
    "plan_consolidate": (
        "(state: 'Checkpoint | StrPath', *, base: 'Checkpoint | StrPath | None' = None, "
        "config: 'Mapping[str, Any] | StrPath | None' = None, dtype: 'str | None' = None, "
        "weights: 'TrainedWeights' = 'masters', tag: 'str | None' = None, as_file: 'bool' = "
        "False, stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_extract_audio_adapter": (
        "(checkpoint: 'Checkpoint | StrPath', *, stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_extract_audio_encoder": (
        "(checkpoint: 'Checkpoint | StrPath', *, audio_encoder: 'StrPath | None' = None, "
        "stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_merge_audio_adapter": (
        "(base: 'Checkpoint | StrPath', adapter: 'Checkpoint | StrPath', *, stores: 'Stores "
        "| None' = None) -> 'Plan'"
    ),
    "plan_swap_audio_encoder": (
        "(base: 'Checkpoint | StrPath', audio_encoder: 'Checkpoint | StrPath', *, "
        "audio_path: 'str | None' = None, adapter: 'Checkpoint | StrPath | None' = None, "
        "seed: 'int' = 0, stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_extract_projector": (
        "(checkpoint: 'Checkpoint | StrPath', *, bare: 'bool' = False, extras: "
        "'Collection[str]' = (), key: 'str | None' = None, stores: 'Stores | None' = None) "
        "-> 'Plan'"
    ),
    "plan_merge_projector": (
        "(base: 'Checkpoint | StrPath', adapter: 'Checkpoint | StrPath', *, dtype: 'str | "
        "None' = None, extras: 'Collection[str]' = (), tower: 'Checkpoint | StrPath | None' "
        "= None, key: 'str | None' = None, allow_bad_values: 'bool' = False, stores: 'Stores "
        "| None' = None) -> 'Plan'"
    ),
    "plan_merge_lora": (
        "(base: 'Checkpoint | StrPath | None' = None, adapter: 'Checkpoint | StrPath | None' "
        "= None, *, dtype: 'str | None' = None, tower: 'Checkpoint | StrPath | None' = None, "
        "adapter_config: 'StrPath | None' = None, lora_alpha: 'float | None' = None, "
        "use_rslora: 'bool' = False, allow_bad_values: 'bool' = False, stores: 'Stores | "
        "None' = None) -> 'Plan'"
    ),
    "plan_extract_tower": (
        "(checkpoint: 'Checkpoint | StrPath', *, tower_config: 'StrPath | None' = None, "
        "stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_resize_embeddings": (
        "(checkpoint: 'Checkpoint | StrPath', *, tokens: 'int | None' = None, tokenizer: "
        "'StrPath | None' = None, init: 'str' = 'mean', seed: 'int' = 0, multiple_of: 'int' "
        "= 1, stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "plan_set": (
        "(checkpoint: 'Checkpoint | StrPath', values: 'Mapping[str, Any]', *, stores: "
        "'Stores | None' = None) -> 'Plan'"
    ),
    "plan_swap_tower": (
        "(base: 'Checkpoint | StrPath', tower: 'Checkpoint | StrPath', *, tower_path: 'str | "
        "None' = None, tower_config: 'StrPath | None' = None, projector: 'Checkpoint | "
        "StrPath | None' = None, projector_type: 'str | None' = None, seed: 'int' = 0, "
        "use_s2: 'bool | None' = None, s2_scales: 'str | None' = None, key: 'str | None' = "
        "None, allow_bad_values: 'bool' = False, stores: 'Stores | None' = None) -> 'Plan'"
    ),
    "push": (
        "(path: 'StrPath', repository: 'str', *, private: 'bool' = False, revision: 'str | "
        "None' = None, create_pr: 'bool' = False, force: 'bool' = False, message: 'str | "
        "None' = None, stores: 'Stores | None' = None) -> 'Push'"
    ),
    "push_plan": (
        "(plan: 'Plan', repository: 'str', *, options: 'Options' = Options(link='auto', "
        "check=False, digest=False, model_card=False, carry=()), private: 'bool' = False, "
        "revision: 'str | None' = None, create_pr: 'bool' = False, message: 'str | None' = "
        "None, on_progress: 'OnProgress' = unwatched, flushed: 'Flushed' = not_said, stores: "
        "'Stores | None' = None) -> 'Push'"
    ),
    "initialize_vision_modules": (
        "(base: 'Checkpoint', args: 'VisionModelArgs', *, operation: 'str' = 'swap-tower') "
        "-> 'Plan'"
    ),
    "save_plan": ("(plan: 'Plan', path: 'StrPath') -> 'None'"),
    "validate": (
        "(path: 'StrPath', *, kind: 'str | None' = None, values: 'bool' = False, deep: "
        "'bool' = False, loader: 'str | None' = None, key: 'str | None' = None, on_progress: "
        "'OnProgress' = unwatched, stores: 'Stores | None' = None, ranks: 'Ranks | None' = "
        "None) -> 'Report'"
    ),
    "summarize": (
        "(plan: 'Plan', *, in_place: 'bool' = False, options: 'Options' = "
        "Options(link='auto', check=False, digest=False, model_card=False, carry=()), "
        "stores: 'Stores | None' = None) -> 'Summary'"
    ),
    "verify": (
        "(path: 'Checkpoint | StrPath', *, device: 'str' = 'auto', dtype: 'str | None' = "
        "None, tower: 'StrPath | None' = None, audio_encoder: 'StrPath | None' = None, attn: "
        "'str | None' = None, max_memory: 'MaxMemory | None' = None, against: 'Checkpoint | "
        "StrPath | None' = None, golden: 'StrPath | None' = None, save_golden: 'StrPath | "
        "None' = None, image: 'StrPath | None' = None, prompt: 'str | None' = None, "
        "max_new_tokens: 'int | None' = None, on_progress: 'OnProgress' = unwatched, stores: "
        "'Stores | None' = None, ranks: 'Ranks | None' = None) -> 'Verification'"
    ),
    "join_ranks": (
        "(environment: 'Mapping[str, str]', *, timeout: 'float' = 300.0) -> 'Iterator[Ranks "
        "| None]'"
    ),
}
EXIT_CODES = {
    "VitaCkptError": 3,
    "UsageError": 2,
    "InputError": 3,
    "HubError": 3,
    "MalformedFileError": 3,
    "UnsafePickleError": 3,
    "AdapterError": 3,
    "CastError": 3,
    "StaleInputError": 3,
    "OutputError": 3,
}
VALUES = {
    "Pieces",
    "TrainingState",
    "AddTensor",
    "AudioAdapter",
    "AudioDirectory",
    "AudioEncoder",
    "AudioSummary",
    "Cast",
    "Checkpoint",
    "Cmvn",
    "ConfigDifference",
    "ConfigLine",
    "CopyFile",
    "Difference",
    "Dispatch",
    "Distance",
    "Distribution",
    "Divergence",
    "DropFile",
    "DropTensor",
    "Engine",
    "Explanation",
    "Family",
    "FileDifference",
    "FileSize",
    "Finding",
    "History",
    "Inspection",
    "LeftOut",
    "Leftover",
    "LoaderTrace",
    "LocalFile",
    "LoraMerge",
    "LoraSummary",
    "Memory",
    "Mean",
    "ModuleRow",
    "Options",
    "Outcome",
    "Output",
    "PartDifference",
    "PartSource",
    "PartSummary",
    "Plan",
    "PlannedFile",
    "PlannedKey",
    "PlannedTensor",
    "ProjectorSummary",
    "Push",
    "PutBack",
    "PutFile",
    "RandomInit",
    "RankReport",
    "Reason",
    "Ranks",
    "Record",
    "RemoteFile",
    "ReplaceTensor",
    "Report",
    "SetConfig",
    "Shard",
    "ShardSummary",
    "Step",
    "Stores",
    "Subsampling",
    "Summary",
    "TensorDifference",
    "TensorRef",
    "TensorRow",
    "Tower",
    "TowerDirectory",
    "Transformer",
    "Undoable",
    "Verification",
    "VisionModelArgs",
    "VitaModel",
    "WeightFiles",
}
# Names for what has no docstring of its own: a union, a callable, a few words.
ALIASES = {
    "Change",
    "Edit",
    "File",
    "Flushed",
    "Format",
    "Link",
    "MaxMemory",
    "Names",
    "OnProgress",
    "Part",
    "PlannedChange",
    "Severity",
    "StrPath",
    "Tensor",
    "Tie",
    "TrainedWeights",
}


def test_names_and_signatures() -> None:
    assert set(vita_ckpt.__all__) == {*SIGNATURES, *EXIT_CODES, *VALUES, *ALIASES, "__version__"}
    for name, signature in SIGNATURES.items():
        found = str(inspect.signature(getattr(vita_ckpt, name)))
        assert re.sub(r"<function (\w+) at 0x\w+>", r"\1", found) == signature
    for name in vita_ckpt.__all__:
        if name not in {"__version__", *ALIASES}:
            assert inspect.getdoc(getattr(vita_ckpt, name)), name
    assert dir(vita_ckpt) == sorted(vita_ckpt.__all__)
    with pytest.raises(AttributeError):
        _ = vita_ckpt.no_such_name


def test_errors_and_their_exit_codes() -> None:
    for name, code in EXIT_CODES.items():
        error = getattr(vita_ckpt, name)
        assert issubclass(error, vita_ckpt.VitaCkptError)
        assert error.exit_code == code


def test_an_error_is_one_printable_line() -> None:
    error = vita_ckpt.InputError(
        "some-code", "a\nb\x1b[0m", expected="x" * 5000, got="y", hint="do this"
    )
    text = str(error)
    assert text.startswith("some-code: a\\x0ab\\x1b[0m: expected xxx")
    assert text.endswith(", got y (do this)")
    assert text.isprintable()
    assert len(text) < 500
    assert (error.code, error.subject, error.got) == ("some-code", "a\nb\x1b[0m", "y")


def test_errors_travel_between_processes() -> None:
    error = vita_ckpt.AdapterError("some-code", "subject", expected="a", got="b", hint="c")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


LIGHT = """
import sys
from vita_ckpt.cli.main import main
try:
    main(sys.argv[2:])
except SystemExit as exit_:
    assert exit_.code == 0, exit_.code
heavy = set(sys.argv[1].split(",")) & set(sys.modules)
assert not heavy, heavy
"""
NEVER = "torch,transformers,accelerate,PIL"


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], NEVER),
        (
            ["inspect", "A1/base"],
            f"{NEVER},numpy,huggingface_hub,safetensors,vita_ckpt.storage.writing.commit",
        ),
        (["inspect", "A7/mm_projector_fp32"], f"{NEVER},numpy,huggingface_hub"),
        (["diff", "A1/base", "A7/base"], f"{NEVER},numpy,huggingface_hub,safetensors"),
        (["diff", "A1/base", "A7/mm_projector_fp32", "--values"], NEVER),
        (["explain", "A1/base"], f"{NEVER},numpy,huggingface_hub,safetensors"),
        (["extract-projector", "--from", "A1/base", "--out", "OUT.bin"], f"{NEVER},numpy"),
        (
            [
                "merge-projector",
                "--base",
                "A7/base",
                "--adapter",
                "A7/mm_projector_fp32",
                "--out",
                "OUT",
            ],
            NEVER,  # the adapter's values are looked at
        ),
        (
            [
                "swap-tower",
                "--base",
                "A8/base",
                "--tower",
                "A8/tower-internvit",
                "--projector",
                "A8/new_projector",
                "--out",
                "OUT",
            ],
            NEVER,
        ),
        (["extract-tower", "--from", "A6/base", "--out", "OUT"], f"{NEVER},numpy"),
        (["set", "A1/base", "use_s2=false", "--out", "OUT"], f"{NEVER},numpy"),
        (
            [
                "merge-projector",
                "--base",
                "A7/base",
                "--adapter",
                "A7/mm_projector_fp32",
                "--dtype",
                "bf16",
                "--out",
                "OUT",
            ],
            NEVER,
        ),
    ],
)
def test_torch_stays_out(tmp_path: Path, arguments: list[str], absent: str) -> None:
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, absent, *arguments],
        cwd=GOLDEN,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
