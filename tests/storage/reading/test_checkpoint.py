"""Every layout opens; everything else is one clear error that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixtures.builder import (
    Spec,
    mm_projector,
    random_fill,
    read_tensors,
    snapshot,
    write_adapter,
    write_checkpoint,
    write_safetensors,
)
from tests.builders import as_bins
from tests.conftest import GOLDEN
from vita_ckpt import InputError, VitaCkptError, open_checkpoint
from vita_ckpt.storage.reading.paths import Stores
from vita_ckpt.storage.reading.survey import survey

PROJECTOR = {
    f"model.mm_projector.{n}": torch.randn(s) for n, s in mm_projector("linear", 4, 2).items()
}


def rewrite_index(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_single_and_sharded(tmp_path: Path, shards: int) -> None:
    root = write_checkpoint(tmp_path / "c", shards=shards, dtype="BF16")
    checkpoint = open_checkpoint(root)
    expected = read_tensors(root)
    assert {n: (t.dtype, t.shape) for n, t in checkpoint.tensors.items()} == {
        n: (dtype, shape) for n, (dtype, shape, _) in expected.items()
    }
    assert len(checkpoint.shards) == shards
    assert checkpoint.config is not None
    assert set(checkpoint.files) >= {"config.json", "tokenizer.json", "modeling_vita.py"}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_single_and_sharded(tmp_path: Path, shards: int, legacy: bool) -> None:
    root = write_checkpoint(tmp_path / "c")
    expected = open_checkpoint(root).tensors
    as_bins(root, shards=shards, legacy=legacy)
    found = open_checkpoint(root).tensors
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in expected.items()
    }


def test_shards_linked_as_in_the_hub_cache(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "snapshots" / "abc", shards=2)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(root.iterdir())):
        shutil.move(file, blobs / str(number))
        os.symlink(os.path.join("..", "..", "blobs", str(number)), file)
    checkpoint = open_checkpoint(root)
    assert len(checkpoint.shards) == 2
    assert "tokenizer.json" in checkpoint.files
    assert not checkpoint.left_out


def test_a_lone_file_a_run_a_peft_run_and_steps(tmp_path: Path) -> None:
    lone = write_adapter(tmp_path / "a.safetensors", mm_projector("linear", 4, 2))
    assert set(open_checkpoint(lone).tensors) == set(PROJECTOR)

    run = tmp_path / "run"
    run.mkdir()
    torch.save(PROJECTOR, run / "mm_projector.bin")
    (run / "config.json").write_text('{"mm_projector_type": "linear"}')
    for path in (run, run / "mm_projector.bin"):
        opened = open_checkpoint(path)
        assert set(opened.tensors) == set(PROJECTOR)
        assert opened.config == {"mm_projector_type": "linear"}

    peft = tmp_path / "peft"
    peft.mkdir()
    deltas = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 4))}
    write_safetensors(peft / "adapter_model.safetensors", deltas, random_fill("F32"))
    torch.save(
        {f"base_model.model.{n}": t for n, t in PROJECTOR.items()}, peft / "non_lora_trainables.bin"
    )
    (peft / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    opened = open_checkpoint(peft)
    assert opened.layout == "lora"
    assert len(opened.tensors) == 3
    assert opened.adapter_config == {"r": 2, "lora_alpha": 4}

    steps = tmp_path / "steps"
    (steps / "mm_projector").mkdir(parents=True)
    torch.save(PROJECTOR, steps / "mm_projector" / "checkpoint-100.bin")
    (steps / "config.json").write_text('{"mm_projector_type": "linear"}')
    for path in (steps, steps / "mm_projector", steps / "mm_projector" / "checkpoint-100.bin"):
        assert set(open_checkpoint(path).tensors) == set(PROJECTOR)
    assert open_checkpoint(steps / "mm_projector" / "checkpoint-100.bin").config
    torch.save(PROJECTOR, steps / "mm_projector" / "checkpoint-200.bin")
    with pytest.raises(InputError, match=r"several-steps.*checkpoint-200\.bin"):
        open_checkpoint(steps)


def test_the_config_that_belongs_to_an_adapter(tmp_path: Path) -> None:
    """Beside the file, with the step that is taken, above a folder of steps; not beside a shard."""
    run = tmp_path / "run"
    for folder in ("mm_projector", "checkpoint-5"):
        (run / folder).mkdir(parents=True)
    (run / "config.json").write_text('{"mm_projector_type": "of the run"}')
    (run / "checkpoint-5" / "config.json").write_text('{"mm_projector_type": "of the step"}')
    torch.save(PROJECTOR, run / "mm_projector" / "checkpoint-9.bin")
    torch.save(PROJECTOR, run / "any.bin")
    for path in ("mm_projector", "mm_projector/checkpoint-9.bin", "any.bin"):
        assert (open_checkpoint(run / path).config or {})["mm_projector_type"] == "of the run"
    shutil.rmtree(run / "mm_projector")
    os.remove(run / "any.bin")
    torch.save(PROJECTOR, run / "checkpoint-5" / "mm_projector.bin")
    for path in ("", "checkpoint-5", "checkpoint-5/mm_projector.bin"):
        assert (open_checkpoint(run / path).config or {})["mm_projector_type"] == "of the step"
    root = write_checkpoint(tmp_path / "c", shards=2)
    assert open_checkpoint(root / "model-00001-of-00002.safetensors").config is None


def test_a_file_without_tensors_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "mm_projector.bin")
    torch.save({"epoch": 1}, tmp_path / "other.bin")
    for path in ("mm_projector.bin", "other.bin"):
        with pytest.raises(InputError, match=f"no-tensors.*{path}"):
            open_checkpoint(tmp_path / path)


def test_a_directory_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    here = os.getcwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        with pytest.raises(InputError, match="not-found"):
            open_checkpoint("relative")
    finally:
        os.chdir(here)


def test_eva_is_a_lone_file_in_a_directory() -> None:
    opened = open_checkpoint(GOLDEN / "A6" / "tower-eva")
    assert "visual.blocks.0.attn.q_proj.weight" in opened.tensors


def test_what_is_carried_and_what_is_left_out(tmp_path: Path) -> None:
    root = write_checkpoint(tmp_path / "c")
    for directory in (".git", "checkpoint-5", "global_step5", "audio/deep", "tower"):
        (root / directory).mkdir(parents=True)
    for name in (
        "old.safetensors",
        "pytorch_model.bin",
        "mm_projector.bin",
        "x.gguf",
        ".git/HEAD",
        "audio/final.pt",
        "audio/deep/train.yaml",
        "tower/model.safetensors",
        "training_args.bin",
        "checkpoint-5/model.safetensors",
    ):
        (root / name).write_bytes(b"x")
    os.symlink("tower", root / "link")
    os.symlink("nowhere", root / "dangling")
    os.mkfifo(root / "pipe")
    opened = open_checkpoint(root)
    assert set(opened.files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "modeling_vita.py",
        "audio/final.pt",
        "audio/deep/train.yaml",
        "tower/model.safetensors",
    }
    assert set(opened.left_out) == {
        "old.safetensors",
        "pytorch_model.bin",
        "mm_projector.bin",
        "training_args.bin",
        "x.gguf",
        ".git",
        "checkpoint-5",
        "global_step5",
        "link",
        "dangling",
        "pipe",
    }


def test_a_pipe_or_device_is_never_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    for path in (tmp_path / "x.safetensors", "/dev/zero"):
        with pytest.raises(InputError, match="not-a-regular-file"):
            open_checkpoint(path)
    root = write_checkpoint(tmp_path / "c")
    (root / "config.json").unlink()
    os.mkfifo(root / "config.json")
    with pytest.raises(InputError, match="not-a-regular-file"):
        open_checkpoint(root)


def outside(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root.parent / "outside.safetensors").write_bytes(
            (root / "model-00001-of-00002.safetensors").read_bytes()
        )
        os.symlink(root.parent, root / "up")
        rewrite_index(root, lambda index: index["weight_map"].update({"x": name.format(root=root)}))

    return change


def loop(root: Path) -> None:
    (root / "model-00001-of-00002.safetensors").unlink()
    os.symlink("model-00001-of-00002.safetensors", root / "model-00001-of-00002.safetensors")


def second_copy(root: Path) -> None:
    """The second shard holds a tensor of the first one too."""
    name = sorted(json.loads((root / "model.safetensors.index.json").read_text())["weight_map"])[0]
    rewrite_index(root, lambda index: index["weight_map"].update({"x": "model-00003.safetensors"}))
    tensors = {"x": ("F32", (1,)), name: ("F32", (1,))}
    write_safetensors(root / "model-00003.safetensors", tensors, random_fill("F32"))


def shard_is_a_directory(root: Path) -> None:
    rewrite_index(root, lambda index: index["weight_map"].update({"x": "d"}))
    (root / "d").mkdir()


BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "parent": (outside("../outside.safetensors"), "path-outside-checkpoint", "outside.safetensors"),
    "absolute": (outside("{root}/../outside.safetensors"), "path-outside-checkpoint", "index.json"),
    "linked directory": (
        outside("up/outside.safetensors"),
        "path-outside-checkpoint",
        "index.json",
    ),
    "lone surrogate": (outside("a\ud800/b.safetensors"), "path-outside-checkpoint", "index.json"),
    "dot": (outside("./model-00001-of-00002.safetensors"), "path-outside-checkpoint", "index.json"),
    "empty name": (outside(""), "path-outside-checkpoint", "index.json"),
    "nul": (outside("a\0b"), "path-outside-checkpoint", "index.json"),
    "loop": (loop, "unreadable-file", "model-00001-of-00002.safetensors"),
    "missing shard": (
        lambda root: (root / "model-00002-of-00002.safetensors").unlink(),
        "unreadable-file",
        "model-00002-of-00002.safetensors",
    ),
    "shard is a directory": (shard_is_a_directory, "not-a-regular-file", "/d"),
    "no weight_map": (
        lambda root: rewrite_index(root, lambda i: i.pop("weight_map")),
        "invalid-index",
        "index.json",
    ),
    "empty weight_map": (
        lambda root: rewrite_index(root, lambda i: i.update(weight_map={})),
        "invalid-index",
        "index.json",
    ),
    "weight_map of numbers": (
        lambda root: rewrite_index(root, lambda i: i["weight_map"].update({"x": 3})),
        "invalid-index",
        "x",
    ),
    "index is no JSON": (
        lambda root: (root / "model.safetensors.index.json").write_text("{"),
        "invalid-json",
        "index.json",
    ),
    "index is a list": (
        lambda root: (root / "model.safetensors.index.json").write_text("[]"),
        "invalid-json",
        "index.json",
    ),
    "index nests deeply": (
        lambda root: (root / "model.safetensors.index.json").write_text("[" * 200_000),
        "invalid-json",
        "index.json",
    ),
    "index names what is not there": (
        lambda root: rewrite_index(
            root, lambda i: i["weight_map"].update({"x": "model-00001-of-00002.safetensors"})
        ),
        "index-mismatch",
        "x",
    ),
    "index forgets a tensor": (
        lambda root: rewrite_index(root, lambda i: i["weight_map"].pop("lm_head.weight")),
        "index-mismatch",
        "lm_head.weight",
    ),
    "tensor in two shards": (second_copy, "duplicate-tensor", "model-00003.safetensors"),
    "stale single file": (
        lambda root: shutil.copy(
            root / "model-00001-of-00002.safetensors", root / "model.safetensors"
        ),
        "ambiguous-weights",
        "model.safetensors",
    ),
    "config is no JSON": (
        lambda root: (root / "config.json").write_text("{'a'}"),
        "invalid-json",
        "config.json",
    ),
    "config is binary": (
        lambda root: (root / "config.json").write_bytes(b"\xff\xfe"),
        "invalid-json",
        "config.json",
    ),
    "config is an lfs pointer": (
        lambda root: (root / "config.json").write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "git-lfs-pointer",
        "config.json",
    ),
    "no index": (
        lambda root: (root / "model.safetensors.index.json").unlink(),
        "missing-index",
        "model-00001",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_to_be_broken_is_named(tmp_path: Path, name: str) -> None:
    root = write_checkpoint(tmp_path / "c", shards=2)
    change, code, word = BROKEN[name]
    change(root)
    before = snapshot(root)
    with pytest.raises(InputError) as error:
        open_checkpoint(root)
    assert error.value.code == code
    assert word in str(error.value)
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([], "empty directory"),
        (["a.gguf"], "GGUF"),
        (["global_step5"], "DeepSpeed"),
        (["a.txt"], "a.txt"),
        (["checkpoint-7"], "checkpoint-7"),
    ],
)
def test_directories_of_other_kinds_are_said(tmp_path: Path, files: list[str], word: str) -> None:
    for name in files:
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"not-a-checkpoint.*{word}"):
        open_checkpoint(tmp_path)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "a" / "b", "nul\0byte"):
        with pytest.raises(InputError, match="not-found"):
            open_checkpoint(path)
    root = write_checkpoint(tmp_path / "c", shards=2)
    with pytest.raises(InputError, match="not-a-weight-file"):
        open_checkpoint(root / "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_nests_no_deeper_than_it_can_be_copied(tmp_path: Path, name: str) -> None:
    root = write_checkpoint(tmp_path / "c", Spec(layers=1), shards=2)
    good = json.loads((root / name).read_text())
    for levels in (99, 100, 500, 900, 5000):
        deep = json.dumps({**good, "x": "X"}).replace('"X"', "[" * levels + "]" * levels)
        (root / name).write_text(deep)
        if levels < 100:
            assert open_checkpoint(root).tensors
            continue
        with pytest.raises(InputError, match=r"invalid-json.*nested too deeply"):
            open_checkpoint(root)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
NAMES = ["model-00001-of-00002.safetensors", "config.json", "..", "../c", "/etc/passwd", "", "\0"]


@given(
    weight_map=st.dictionaries(
        st.sampled_from(["lm_head.weight", "x"]), st.sampled_from(NAMES) | json_values, max_size=2
    )
    | json_values,
    config=json_values,
)
def test_any_index_and_config_stay_inside_the_hierarchy(
    tmp_path_factory: pytest.TempPathFactory, weight_map: Any, config: Any
) -> None:
    root = write_checkpoint(tmp_path_factory.mktemp("fuzz") / "c", Spec(layers=1), shards=2)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "config.json").write_text(json.dumps(config))
    with pytest.raises(VitaCkptError) as error:
        open_checkpoint(root)
    assert "\n" not in str(error.value)


def lora_run(root: Path, other: float) -> Path:
    """What the trainer saves with bias="all": each bias in both of its files."""
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    root.mkdir()
    bias = {f"{layer}.base_layer.bias": torch.ones(16)}
    deltas = {
        f"{layer}.lora_A.weight": torch.ones(4, 16),
        f"{layer}.lora_B.weight": torch.ones(16, 4),
    }
    torch.save(deltas | bias, root / "adapter_model.bin")
    torch.save({name: t * other for name, t in bias.items()}, root / "non_lora_trainables.bin")
    (root / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8, "bias": "all"}')
    return root


def test_biases_that_a_lora_run_stores_twice(tmp_path: Path) -> None:
    same = open_checkpoint(lora_run(tmp_path / "same", 1.0))
    assert len(same.tensors) == 3
    assert [problem.error.code for problem in survey(same.root, Stores()).problems] == []
    other = lora_run(tmp_path / "other", 2.0)
    with pytest.raises(InputError, match=r"duplicate-tensor.*q_proj.*with other values"):
        open_checkpoint(other)
    (problem,) = survey(other, Stores()).problems
    assert "with other values" in str(problem.error)
