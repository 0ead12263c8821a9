"""Commits: complete or absent, inputs untouched, every other tensor byte for byte as it was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fixtures.builder import (
    Spec,
    checkpoint_shapes,
    mm_projector,
    random_fill,
    read_tensors,
    snapshot,
    write_adapter,
    write_checkpoint,
    write_safetensors,
)
from tests.builders import as_bins, while_writing
from vita_ckpt import (
    CastError,
    InputError,
    OutputError,
    StaleInputError,
    UsageError,
    apply,
    open_checkpoint,
    plan_extract_projector,
    plan_merge_projector,
    summarize,
)

SPEC = Spec()
MLP = mm_projector("mlp2x_gelu", SPEC.mm_hidden, SPEC.hidden)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=3)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter.safetensors", MLP, dtype="BF16", seed=9)


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".vita-ckpt-")]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
def test_merge_changes_the_projector_and_nothing_else(
    tmp_path: Path, shards: int, dtype: str
) -> None:
    base = write_checkpoint(tmp_path / "base", dtype=dtype, shards=shards)
    adapter = write_adapter(tmp_path / "a.safetensors", MLP, dtype=dtype, seed=9)
    before = snapshot(tmp_path)
    plan = plan_merge_projector(base, adapter)
    out = Path(apply(plan, tmp_path / "out"))
    assert read_tensors(out) == read_tensors(base) | read_tensors(adapter)
    assert {p: s for p, s in snapshot(tmp_path).items() if not p.startswith("out/")} == before
    for file in ("config.json", "tokenizer.json", "modeling_vita.py", "generation_config.json"):
        assert (out / file).read_bytes() == (base / file).read_bytes()
    assert not leftovers(tmp_path)
    with safe_open(next(out.glob("*.safetensors")), "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_only_the_shards_that_change_are_rewritten(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
    index = json.loads((base / "model.safetensors.index.json").read_text())
    changed = {index["weight_map"][f"model.mm_projector.{name}"] for name in MLP}
    for file in base.iterdir():
        same = (out / file.name).read_bytes() == file.read_bytes()
        assert same == (file.name not in changed), file.name


def test_a_cast_is_torchs(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="BF16", shards=2)
    tensors = {f"model.mm_projector.{n}": torch.randn(s) for n, s in MLP.items()}
    torch.save(tensors, tmp_path / "mm_projector.bin")
    out = Path(apply(plan_merge_projector(base, tmp_path / "mm_projector.bin"), tmp_path / "out"))
    merged: dict[str, torch.Tensor] = {}
    for file in out.glob("*.safetensors"):
        merged |= load_file(file)
    for name, tensor in tensors.items():
        assert merged[name].dtype is torch.bfloat16
        assert torch.equal(merged[name], tensor.to(torch.bfloat16))


def test_another_type_rewrites_index_and_config(tmp_path: Path, base: Path) -> None:
    adapter = write_adapter(
        tmp_path / "a.safetensors", mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)
    )
    out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
    merged = open_checkpoint(out)
    assert merged.config == {**(open_checkpoint(base).config or {}), "mm_projector_type": "linear"}
    assert merged.index is not None
    assert merged.index["metadata"]["total_size"] == sum(t.nbytes for t in merged.tensors.values())
    kept = {n: v for n, v in read_tensors(base).items() if "mm_projector" not in n}
    assert {n: v for n, v in read_tensors(out).items() if "mm_projector" not in n} == kept
    assert {n for n in merged.tensors if "mm_projector" in n} == {
        "model.mm_projector.weight",
        "model.mm_projector.bias",
    }


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("legacy", [False, True])
def test_bins_come_out_as_safetensors(tmp_path: Path, shards: int, legacy: bool) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="F32")
    expected = read_tensors(base)
    as_bins(base, shards=shards, legacy=legacy)
    adapter = write_adapter(tmp_path / "a.safetensors", MLP, seed=9)
    out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
    assert read_tensors(out) == expected | read_tensors(adapter)
    assert not list(out.glob("*.bin*"))
    assert len(open_checkpoint(out).shards) == shards
    assert (out / "model.safetensors.index.json").exists() == (shards > 1)


def test_strided_and_shared_tensors_of_a_bin_are_written_whole(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base")
    whole = torch.randn(SPEC.mm_hidden, SPEC.hidden)
    tensors = {f"mm_projector.{n}": torch.randn(s) for n, s in MLP.items()}
    tensors["mm_projector.0.weight"] = whole.t()
    tensors["mm_projector.0.bias"] = whole[3]
    torch.save(tensors, tmp_path / "a.bin")
    out = Path(apply(plan_merge_projector(base, tmp_path / "a.bin"), tmp_path / "out"))
    merged = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(merged[f"model.{name}"], tensor)


def test_wide_dtypes_come_first_so_that_all_are_aligned(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="BF16")
    adapter = write_adapter(tmp_path / "a.safetensors", MLP, dtype="F32")
    out = Path(apply(plan_merge_projector(base, adapter, dtype="f32"), tmp_path / "out"))
    for name, ref in open_checkpoint(out).refs.items():
        assert ref.offset % (4 if "mm_projector" in name else 2) == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_extract_after_merge_is_the_identity(tmp_path: Path, suffix: str, dtype: str) -> None:
    base = write_checkpoint(tmp_path / "base", dtype=dtype, shards=2)
    adapter = write_adapter(tmp_path / "a.safetensors", MLP, dtype=dtype, seed=9)
    out = apply(plan_merge_projector(base, adapter), tmp_path / "out")
    file = Path(apply(plan_extract_projector(out), tmp_path / f"p{suffix}"))
    expected = load_file(adapter)
    found = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    again = apply(plan_merge_projector(base, file), tmp_path / "again")
    assert read_tensors(Path(again)) == read_tensors(Path(out))


def test_modes_follow_the_umask(base: Path, adapter: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
        file = Path(apply(plan_extract_projector(base), tmp_path / "p.bin"))
    finally:
        os.umask(old)
    assert out.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (*out.iterdir(), file)} == {0o640}


def test_subdirectories_are_carried(base: Path, adapter: Path, tmp_path: Path) -> None:
    (base / "audio" / "deep").mkdir(parents=True)
    (base / "audio" / "deep" / "final.pt").write_bytes(b"weights")
    out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
    assert (out / "audio" / "deep" / "final.pt").read_bytes() == b"weights"


def test_outputs_that_may_not_be_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = plan_merge_projector(base, adapter)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    os.symlink(base, tmp_path / "link")
    os.symlink("nowhere", tmp_path / "dangling")
    before = snapshot(tmp_path)
    for out, code in (
        (base, "output-overlaps-input"),
        (base / "out", "output-overlaps-input"),
        (tmp_path / "link" / "out", "output-overlaps-input"),
        (base / ".." / "base", "output-overlaps-input"),
        (tmp_path, "output-overlaps-input"),
        (adapter, "output-overlaps-input"),
        (tmp_path / "empty", "output-exists"),
        (tmp_path / "file", "output-exists"),
        (tmp_path / "dangling", "output-exists"),
        (tmp_path / "nowhere" / "out", "no-output-directory"),
        (tmp_path / "out.bin", "wrong-output-kind"),
    ):
        with pytest.raises(UsageError) as error:
            apply(plan, out)
        assert error.value.code == code, out
    with pytest.raises(UsageError, match="wrong-output-kind"):
        apply(plan_extract_projector(base), tmp_path / "directory")
    assert snapshot(tmp_path) == before
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    "victim", ["model-00001-of-00003.safetensors", "config.json", "tokenizer.json", "adapter"]
)
def test_an_input_that_changed_since_the_plan_is_refused(
    base: Path, adapter: Path, tmp_path: Path, victim: str
) -> None:
    plan = plan_merge_projector(base, adapter)
    path = adapter if victim == "adapter" else base / victim
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    with pytest.raises(StaleInputError, match=path.name):
        apply(plan, tmp_path / "out")
    path.unlink()
    with pytest.raises(StaleInputError, match=path.name):
        apply(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_a_base_that_changes_while_it_is_read_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    plan = plan_merge_projector(base, adapter)
    shard = base / "model-00001-of-00003.safetensors"
    steps: list[int] = []

    def touch(count: int) -> None:
        if not steps:
            os.utime(shard, ns=(1, shard.stat().st_mtime_ns + 1))
        steps.append(count)

    with pytest.raises(StaleInputError, match=shard.name):
        apply(plan, tmp_path / "out", on_progress=while_writing(touch))
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path)


def test_an_overflowing_cast_leaves_nothing(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="F16")
    tensors = {f"mm_projector.{n}": torch.full(s, 0.5) for n, s in MLP.items()}
    tensors["mm_projector.2.bias"][5] = 70000.0
    torch.save(tensors, tmp_path / "a.bin")
    with pytest.raises(
        CastError, match=r"cast-overflow.*mm_projector\.2\.bias.*70000 at element 5"
    ):
        apply(plan_merge_projector(base, tmp_path / "a.bin"), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "base"]


def test_progress_adds_up(base: Path, adapter: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    out = Path(
        apply(
            plan_merge_projector(base, adapter),
            tmp_path / "out",
            on_progress=while_writing(steps.append),
        )
    )
    assert sum(steps) == sum(path.stat().st_size for path in out.iterdir())


def test_float8_does_not_fit_a_bin(tmp_path: Path) -> None:
    shapes = {f"mm_projector.{n}": ("F8_E4M3", s) for n, s in MLP.items()}
    write_safetensors(tmp_path / "a.safetensors", shapes, random_fill("F8_E4M3"))
    plan = plan_extract_projector(tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="dtype-not-in-torch-file"):
        apply(plan, tmp_path / "p.bin")
    assert read_tensors(Path(apply(plan, tmp_path / "p.safetensors"))).keys() == {
        f"model.{name}" for name in shapes
    }


LIMITED = """
import resource, sys
from vita_ckpt import apply, plan_extract_projector, plan_merge_projector
base, adapter, out = sys.argv[1:]
plan = plan_merge_projector(base, adapter) if adapter else plan_extract_projector(base)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    apply(plan, out)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("merge", [True, False], ids=["merge", "extract"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_disk_that_takes_no_more_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, merge: bool, suffix: str
) -> None:
    out = tmp_path / ("out" if merge else f"out{suffix}")
    arguments = [sys.executable, "-c", LIMITED, str(base), str(adapter) if merge else "", str(out)]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"OutputError write-failed: {out}: got file too large")
    assert sorted(os.listdir(tmp_path)) == ["adapter.safetensors", "base"]


def test_a_directory_that_may_not_be_written_says_so(base: Path, adapter: Path) -> None:
    """/proc takes no directories, whoever asks."""
    with pytest.raises(OutputError, match="nothing is left"):
        apply(plan_merge_projector(base, adapter), "/proc/out")


MERGE = """
import sys, time
from vita_ckpt import apply, plan_merge_projector
plan = plan_merge_projector(sys.argv[1], sys.argv[2])
steps = 0
def step(what, done, total):
    global steps
    steps += what == "writing" and done > 0
    if steps == int(sys.argv[4]):
        print("here", flush=True)
        time.sleep(60)
apply(plan, sys.argv[3], on_progress=step)
"""


@pytest.mark.parametrize("step", [1, 4, 9])
def test_killed_at_any_point_the_output_is_absent(
    base: Path, adapter: Path, tmp_path: Path, step: int
) -> None:
    before = snapshot(base)
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", MERGE, str(base), str(adapter), str(out), str(step)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert snapshot(base) == before
    assert len(leftovers(tmp_path)) == 1
    apply(plan_merge_projector(base, adapter), out)
    assert read_tensors(out) == read_tensors(base) | read_tensors(adapter)


def test_asked_to_end_it_cleans_up(tmp_path: Path) -> None:
    """SIGTERM in the middle of a long merge: exit 130, one line, nothing left."""
    base = write_checkpoint(tmp_path / "base", Spec(vocab=400_000, hidden=64), dtype="F32")
    spec = Spec(vocab=400_000, hidden=64)
    adapter = write_adapter(
        tmp_path / "a.safetensors", mm_projector("mlp2x_gelu", spec.mm_hidden, 64)
    )
    arguments = [
        sys.executable,
        "-c",
        "from vita_ckpt.cli.main import main; main()",
        "merge-projector",
        "--base",
        str(base),
        "--adapter",
        str(adapter),
        "--out",
        str(tmp_path / "out"),
    ]
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not leftovers(tmp_path) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    if process.returncode:  # it may have been quicker than the signal
        assert process.returncode == 130
        assert err.splitlines()[-1] == "error: interrupted: nothing was written"
        assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "base"]


def test_two_writers_one_winner(base: Path, adapter: Path, tmp_path: Path) -> None:
    plan = plan_merge_projector(base, adapter)
    out = tmp_path / "out"

    def rival(_count: int) -> None:
        if not out.exists():
            shutil.copytree(base, out)

    with pytest.raises(UsageError, match="output-exists"):
        apply(plan, out, on_progress=while_writing(rival))
    assert read_tensors(out) == read_tensors(base)
    assert not leftovers(tmp_path)


def test_a_view_far_larger_than_its_file_is_written_in_pieces(tmp_path: Path) -> None:
    """One number expanded to 400 MB: neither a dry run nor a write holds it in memory."""
    tensors = {f"mm_projector.{n}": torch.ones(s) for n, s in MLP.items()}
    tensors["mm_projector.0.weight"] = torch.ones(1, 1).expand(10_000, 10_000)
    torch.save(tensors, tmp_path / "a.bin")
    program = (
        "import resource, sys; from vita_ckpt import apply, plan_extract_projector;"
        "import numpy; resource.setrlimit(resource.RLIMIT_DATA, (300 << 20,) * 2);"
        "apply(plan_extract_projector(sys.argv[1]), sys.argv[2])"
    )
    out = tmp_path / "p.safetensors"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "a.bin", out], check=True, env=environment
    )
    assert out.stat().st_size > 400_000_000
    assert load_file(out)["model.mm_projector.0.weight"].min() == 1


def test_names_that_no_safetensors_file_can_hold(tmp_path: Path) -> None:
    base = as_bins(write_checkpoint(tmp_path / "base"))
    tensors = torch.load(base / "pytorch_model.bin", weights_only=True)
    torch.save({**tensors, "__metadata__": torch.ones(2)}, base / "pytorch_model.bin")
    adapter = write_adapter(tmp_path / "a.safetensors", MLP)
    with pytest.raises(InputError, match="reserved-name"):
        apply(plan_merge_projector(base, adapter), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "base"]


def test_shards_that_would_get_one_name(tmp_path: Path) -> None:
    base = as_bins(write_checkpoint(tmp_path / "base"), shards=2)
    index = json.loads((base / "pytorch_model.bin.index.json").read_text())
    old = "pytorch_model-00002-of-00002.bin"
    os.rename(base / old, base / "model-00001-of-00002.bin")
    for name, shard in index["weight_map"].items():
        if shard == old:
            index["weight_map"][name] = "model-00001-of-00002.bin"
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    adapter = write_adapter(tmp_path / "a.safetensors", MLP)
    with pytest.raises(InputError, match="shard-names-collide"):
        apply(plan_merge_projector(base, adapter), tmp_path / "out")


def test_what_is_odd_in_a_config_is_carried_along(tmp_path: Path) -> None:
    """NaN where nobody looks, and a lone surrogate: a merge that changes the type keeps both."""
    base = write_checkpoint(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    odd = {**config, "foo": float("nan"), "bar": "\ud800"}
    (base / "config.json").write_text(json.dumps(odd))
    adapter = write_adapter(
        tmp_path / "a.safetensors", mm_projector("linear", SPEC.mm_hidden, SPEC.hidden)
    )
    plan = plan_merge_projector(base, adapter)
    assert [change.key for change in summarize(plan).config] == ["mm_projector_type"]
    out = Path(apply(plan, tmp_path / "out"))
    merged = json.loads((out / "config.json").read_text())
    assert merged["bar"] == "\ud800"
    assert merged["foo"] != merged["foo"]


def test_other_files_of_the_adapters_run_may_change(base: Path, tmp_path: Path) -> None:
    """A trainer that still writes its log is not in the way; the projector must not change."""
    run = tmp_path / "run"
    run.mkdir()
    adapter = write_adapter(run / "mm_projector.safetensors", MLP, dtype="BF16")
    (run / "train.log").write_text("step 1")
    plan = plan_merge_projector(base, run)
    (run / "train.log").write_text("step 1, step 2")
    apply(plan, tmp_path / "out")
    os.utime(adapter, ns=(1, 1))
    with pytest.raises(StaleInputError, match=r"mm_projector\.safetensors"):
        apply(plan, tmp_path / "late")


def test_the_builder_and_the_numbers_are_real() -> None:
    """The fixtures hold finite values of every size: a merge that copied zeros would be seen."""
    data = b"".join(random_fill("F32")("x", 4000))
    values = np.frombuffer(data, "<f4")
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 900
    assert len(checkpoint_shapes(SPEC)) > 40


def test_what_is_copied_keeps_its_place_in_a_page(tmp_path: Path) -> None:
    """Also where a header gets shorter: whole pages are copied faster than parts of two."""
    spec = Spec(hidden=64, vocab=500)
    base = write_checkpoint(tmp_path / "base", spec)
    shapes = mm_projector("linear", spec.mm_hidden, spec.hidden)
    adapter = write_adapter(tmp_path / "linear.safetensors", shapes)
    out = Path(apply(plan_merge_projector(base, adapter), tmp_path / "out"))
    before, after = (open_checkpoint(root).refs for root in (base, out))
    assert len(after) < len(before)
    moved: dict[int, int] = {}
    for name in after.keys() & before.keys():
        shift = (after[name].offset - before[name].offset) % 4096
        moved[shift] = moved.get(shift, 0) + after[name].nbytes
    assert max(moved, key=moved.__getitem__) == 0
    assert len(load_file(out / "model.safetensors")) == len(after)
