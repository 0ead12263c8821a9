"""What distinguishes two checkpoints: nothing but what is in them, whatever files it lies in."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vita_ckpt
from fixtures.builder import Spec, TowerSpec, write_checkpoint, write_safetensors, write_tower
from tests.conftest import BASES, GOLDEN
from tests.teams import together
from vita_ckpt.checks.diff import Difference, covered, difference_report
from vita_ckpt.errors import InputError, MalformedFileError, StaleInputError
from vita_ckpt.storage.tensors.compare import differing, distances

diff = vita_ckpt.diff
Tensors = dict[str, torch.Tensor]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def checkpoint(root: Path, tensors: Tensors, shards: int = 1, **config: Any) -> Path:
    """A directory with these tensors dealt to shards, and this config."""
    root.mkdir()
    names = list(tensors)
    (root / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, root / "model.safetensors")
        return root
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard}.safetensors"
        mine = names[shard::shards]
        save_file({name: tensors[name] for name in mine}, root / file)
        weight_map |= dict.fromkeys(mine, file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return root


def some_tensors(seed: int, count: int = 6) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    names = ("model.layers.0.w", "model.mm_projector.0.weight", "other")
    return {f"{names[n % 3]}{n}": torch.randn(3 + n, 5, generator=generator) for n in range(count)}


def changes(found: Difference) -> dict[str, str]:
    return {t.name: ", ".join(t.what) or t.change for t in found.tensors}


@pytest.mark.parametrize("case", BASES)
def test_a_checkpoint_is_itself(case: str, tmp_path: Path) -> None:
    base = GOLDEN / case / "base"
    copy = shutil.copytree(base, tmp_path / "copy")
    for other in (base, copy):
        found = diff(base, other, values=True)
        assert found.identical
        assert {part.distance.delta for part in found.parts if part.distance} == {0}
        assert [part.distance.cosine for part in found.parts if part.distance] == [1.0] * len(
            found.parts
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_what_torch_computes(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> torch.Tensor:
        values = torch.randn(70_000, generator=generator) * 8
        return (values > 0 if dtype is torch.bool else values.to(dtype)).reshape(70, 1000)

    # Larger than a block, and an unchanged one in the same part.
    old: Tensors = {"model.layers.0.a": drawn(), "model.layers.0.b": drawn(), "lm_head.c": drawn()}
    new = {**old, "model.layers.0.a": drawn()}
    found = diff(
        checkpoint(tmp_path / "a", old), checkpoint(tmp_path / "b", new, shards=2), values=True
    )
    assert changes(found) == {"model.layers.0.a": "bytes"}

    def wide(tensors: Tensors, names: list[str]) -> torch.Tensor:
        flat = [tensors[name].reshape(-1) for name in names]
        small = dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        return torch.cat([(t.float() if small else t).double() for t in flat])

    for distance, names in (
        (found.tensors[0].distance, ["model.layers.0.a"]),
        (found.parts[0].distance, list(old)),
    ):
        assert distance is not None
        before, after = wide(old, names), wide(new, names)
        assert distance.elements == len(before)
        assert distance.changed == int((before != after).sum())
        assert distance.max_abs == float((after - before).abs().max())
        relative = float((after - before).norm() / before.norm())
        assert distance.relative_l2 == pytest.approx(relative, rel=1e-10)
        cosine = float(before @ after / before.norm() / after.norm())
        assert distance.cosine == pytest.approx(cosine, abs=1e-10)


@given(
    st.permutations(sorted(some_tensors(0))),
    st.integers(1, 5),
    st.sets(st.sampled_from(sorted(some_tensors(0)))),
)
def test_sharding_and_order_are_invisible(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], shards: int, changed: set[str]
) -> None:
    root = tmp_path_factory.mktemp("diff")
    tensors, others = some_tensors(0), some_tensors(1)
    a = checkpoint(root / "a", tensors)
    mixed = {name: (others if name in changed else tensors)[name] for name in order}
    b = checkpoint(root / "b", mixed, shards)
    assert set(changes(diff(a, b))) == changed
    assert diff(a, b).identical is (not changed)
    back = diff(b, a, values=True)
    assert changes(diff(a, b)) == changes(back)


@given(st.data())
def test_added_and_removed_are_mirror_images(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("diff")
    tensors = some_tensors(0)
    some = st.sets(st.sampled_from(sorted(tensors)), min_size=1)
    left, right = data.draw(some), data.draw(some)

    def keys(names: set[str]) -> dict[str, Any]:
        return dict.fromkeys(names, 2)

    a = checkpoint(root / "a", {n: tensors[n] for n in left}, x=1, **keys(left))
    b = checkpoint(root / "b", {n: tensors[n] for n in right}, x=1, **keys(right))
    there, back = diff(a, b), diff(b, a)
    added = {t.name for t in there.tensors if t.change == "added"}
    removed = {t.name for t in there.tensors if t.change == "removed"}
    assert (added, removed) == (right - left, left - right)
    assert {t.name for t in back.tensors if t.change == "removed"} == added
    assert {t.name for t in back.tensors if t.change == "added"} == removed
    assert {k.key: k.change for k in there.config} == {t.name: t.change for t in there.tensors}
    assert sum(part.unchanged for part in there.parts) == len(left & right)


def test_shape_and_dtype(tmp_path: Path) -> None:
    old = {name: torch.arange(4.0) for name in ("shape", "dtype", "both", "bytes")}
    new = {
        "shape": torch.arange(4.0).reshape(2, 2),
        "dtype": torch.arange(4).to(torch.bfloat16),
        "both": torch.zeros(3, dtype=torch.int32),
        "bytes": torch.arange(4.0) + 1,
    }
    found = diff(checkpoint(tmp_path / "a", old), checkpoint(tmp_path / "b", new), values=True)
    assert changes(found) == {
        "shape": "shape",
        "dtype": "dtype",
        "both": "shape, dtype",
        "bytes": "bytes",
    }
    distances = {t.name: t.distance for t in found.tensors}
    assert distances["shape"] is None
    assert distances["both"] is None
    assert distances["dtype"] is not None
    assert (distances["dtype"].max_abs, distances["dtype"].changed) == (0, 0)
    assert distances["bytes"] is not None
    assert distances["bytes"].max_abs == 1


def test_a_bin_against_safetensors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(600, 500, generator=generator)
    tensors = {
        "transposed": square.t(),
        "columns": square[:, 100:300],
        "expanded": square[0].expand(4, 500),
        "plain": square,
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
    }
    torch.save(tensors, tmp_path / "a.bin")
    torch.save(tensors, tmp_path / "b.bin")
    legacy = tmp_path / "legacy.bin"
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "a.safetensors")
    for other in (tmp_path / "b.bin", legacy, tmp_path / "a.safetensors"):
        assert diff(tmp_path / "a.bin", other, values=True).identical
    changed = {n: t.contiguous().clone() for n, t in tensors.items()}
    changed["transposed"][-1, -1] += 1
    changed["expanded"][3, 499] += 1
    save_file(changed, tmp_path / "b.safetensors")
    found = diff(tmp_path / "a.bin", tmp_path / "b.safetensors", values=True)
    assert changes(found) == {"transposed": "bytes", "expanded": "bytes"}
    assert [t.distance.changed for t in found.tensors if t.distance] == [1, 1]
    before = torch.cat([t.reshape(-1) for t in tensors.values()]).double()
    after = torch.cat([t.reshape(-1) for t in changed.values()]).double()
    assert found.parts[0].distance is not None
    relative = float((after - before).norm() / before.norm())
    assert found.parts[0].distance.relative_l2 == pytest.approx(relative, rel=1e-10)


def expanded_files(root: Path, rows: int) -> tuple[Path, Path]:
    """Two tiny files of one vector each, repeated over and over: the second half is another."""
    paths = root / "a.bin", root / "b.bin"
    for path, value in zip(paths, (1.0, 2.0), strict=True):
        row = torch.tensor([1.0, value])
        torch.save({"w": row.expand(rows, 2), "v": torch.ones(1).expand(rows)}, path)
    return paths


def test_repetition_costs_nothing(tmp_path: Path) -> None:
    found = diff(*expanded_files(tmp_path, 1 << 28), values=True)
    assert changes(found) == {"w": "bytes"}
    distance = found.tensors[0].distance
    assert distance is not None
    assert (distance.elements, distance.changed) == (1 << 29, 1 << 28)
    assert distance.relative_l2 == pytest.approx((1 / 2) ** 0.5)


def test_overlapping_rows_are_refused(tmp_path: Path) -> None:
    for name in ("a.bin", "b.bin"):
        data = torch.zeros(1000)
        torch.save({"w": data.as_strided((400, 400), (1, 1))}, tmp_path / name)
    with pytest.raises(MalformedFileError, match="view-too-large"):
        diff(tmp_path / "a.bin", tmp_path / "b.bin")


def test_one_file_under_two_names_is_not_read(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a", dtype="BF16", shards=3)
    b = tmp_path / "b"
    b.mkdir()
    for path in a.iterdir():
        os.link(path, b / path.name)
    # More bytes than anybody would wait for.
    x, y = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    size = 1 << 40
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with open(x, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    os.link(x, y)
    assert diff(a, b).identical
    assert diff(x, y).identical


def test_config_by_key(tmp_path: Path) -> None:
    tensors = some_tensors(0)
    old: dict[str, Any] = {
        "a": 1,
        "b": True,
        "c": {"x": 1, "y": [1, 2]},
        "d": None,
        "e": float("nan"),
        "f": "x",
    }
    new: dict[str, Any] = {
        "f": "y",
        "e": float("nan"),
        "c": {"y": [1, 2], "x": 1},
        "b": 1,
        "a": 1,
        "g": None,
    }
    found = diff(
        checkpoint(tmp_path / "a", tensors, **old), checkpoint(tmp_path / "b", tensors, **new)
    )
    assert {key.key: (key.change, key.before, key.after) for key in found.config} == {
        "b": ("changed", True, 1),
        "d": ("removed", None, None),
        "f": ("changed", "x", "y"),
        "g": ("added", None, None),
    }


def test_files_by_their_bytes(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a", shards=2)
    b = shutil.copytree(a, tmp_path / "b")
    (b / "tokenizer.json").write_text('{"version": "1.1"}\n')
    (b / "generation_config.json").unlink()
    (b / "sub").mkdir()
    (b / "sub" / "new.txt").write_text("new")
    (b / "config.json").write_text(json.dumps(json.loads((a / "config.json").read_text())))
    index = json.loads((a / "model.safetensors.index.json").read_text())
    (b / "model.safetensors.index.json").write_text(json.dumps(index, sort_keys=True))
    (b / "training_args.bin").write_bytes(b"of the run")
    os.utime(b / "modeling_vita.py", (1, 1))
    found = diff(a, b)
    assert not found.tensors
    assert not found.config
    assert {f.name: (f.change, f.before, f.after) for f in found.files} == {
        "tokenizer.json": ("changed", 19, 19),
        "generation_config.json": ("removed", 21, None),
        "sub/new.txt": ("added", None, 3),
    }
    assert found.left_out == ("training_args.bin",)


def test_a_target_of_a_plan(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", dtype="BF16")
    tower = write_tower(tmp_path / "siglip", TowerSpec("siglip", name="siglip"))
    plan = vita_ckpt.plan_swap_tower(base, tower, projector="reinit")
    out = tmp_path / "out"
    vita_ckpt.apply(plan, out)
    assert diff(plan.target(), out, values=True).identical
    assert changes(diff(base, plan.target())) == changes(diff(base, out))
    assert not diff(base, plan.target()).identical


def test_adapters_runs_towers_and_lone_files(tmp_path: Path) -> None:
    case = GOLDEN / "A7"
    run, merged = case / "mm_projector_fp32", tmp_path / "merged"
    vita_ckpt.apply(vita_ckpt.plan_merge_projector(case / "base", run), merged)
    found = diff(run, merged)
    assert {t.change for t in found.tensors} == {"added"}
    assert [part.unchanged for part in found.parts if part.name == "mm_projector"] == [4]
    lone = diff(run / "mm_projector.bin", merged)
    assert (lone.tensors_only, lone.config, lone.files) == (True, (), ())
    assert changes(lone) == changes(found)
    tower = case / "tower-internvit"
    assert diff(tower, tower, values=True).identical
    assert changes(diff(tower, GOLDEN / "A1" / "tower-internvit")) == {}


@pytest.mark.parametrize(
    ("subject", "glob", "expected"),
    [
        ("tensor:model.mm_projector.0.bias", "model.mm_projector.*", True),
        ("tensor:model.mm_projector.0.bias", "tensor:*.bias", True),
        ("tensor:model.mm_projector.0.bias", "mm_projector*", False),
        ("tensor:model.mm_projector.0.bias", "config:*", False),
        ("config:mm_hidden_size", "config:mm_*", True),
        ("config:mm_hidden_size", "*", False),
        ("config:mm_hidden_size", "mm_hidden_size", False),
        ("file:sub/tokenizer.json", "file:*.json", True),
        ("file:sub/tokenizer.json", "*", False),
        # A name that looks like another kind stays what it is.
        ("tensor:config:x", "config:x", False),
        ("tensor:config:x", "tensor:config:x", True),
        ("tensor:config:x", "*", True),
        ("tensor:a:b", "a:b", True),
    ],
)
def test_what_a_glob_names(subject: str, glob: str, expected: bool) -> None:
    assert covered(subject, (glob,)) is expected


def breaches(found: Difference) -> list[tuple[str, str]]:
    return [(one.rule, one.subject) for one in found.breaches]


def test_the_contract(tmp_path: Path) -> None:
    tensors = some_tensors(0)
    names = sorted(tensors)
    a = checkpoint(tmp_path / "a", tensors, x=1)
    (a / "notes.txt").write_text("a")
    b = checkpoint(tmp_path / "b", {**tensors, names[0]: tensors[names[0]] + 1}, x=2)
    (b / "notes.txt").write_text("b")
    everything = [names[0], "config:x", "file:notes.txt"]
    assert breaches(diff(a, b)) == []
    assert breaches(diff(a, b, only=everything)) == []
    assert breaches(diff(a, b, only="tensor:*")) == [
        ("only-outside-changed", "x"),
        ("only-outside-changed", "notes.txt"),
    ]
    assert breaches(diff(a, b, only=["config:*", "file:*"])) == [("only-outside-changed", names[0])]
    assert breaches(diff(a, b, only=[*everything, names[1]])) == []
    assert breaches(diff(a, a, only=["*"])) == [("only-nothing-changed", "*")]
    assert breaches(diff(a, b, only=[names[1]])) == [
        ("only-outside-changed", names[0]),
        ("only-outside-changed", "x"),
        ("only-outside-changed", "notes.txt"),
        ("only-nothing-changed", names[1]),
    ]
    assert breaches(diff(a, b, only=[""]))[-1] == ("only-nothing-changed", "")


def test_the_report(tmp_path: Path) -> None:
    old = some_tensors(0)
    new = some_tensors(1)
    del new["other2"]
    new["added"] = torch.zeros(1)
    new["other5"] = new["other5"].half()
    new["model.layers.0.w0"] = torch.zeros(2)
    a, b = checkpoint(tmp_path / "a", old, x=1), checkpoint(tmp_path / "b", new, x=2, y=3)
    (b / "file").write_text("")
    report = difference_report(diff(a, b, values=True))
    assert (report.path, report.kind) == (str(b), "diff")
    assert {one.severity for one in report.findings} == {"note"}
    found = {
        one.subject: (one.rule, os.path.relpath(one.file, tmp_path)) for one in report.findings
    }
    assert found == {
        "added": ("tensor-added", "b/model.safetensors"),
        "model.layers.0.w0": ("tensor-shape", "b/model.safetensors"),
        "model.layers.0.w3": ("tensor-bytes", "b/model.safetensors"),
        "model.mm_projector.0.weight1": ("tensor-bytes", "b/model.safetensors"),
        "model.mm_projector.0.weight4": ("tensor-bytes", "b/model.safetensors"),
        "other2": ("tensor-removed", "a/model.safetensors"),
        "other5": ("tensor-dtype", "b/model.safetensors"),
        "x": ("config-changed", "b/config.json"),
        "y": ("config-changed", "b/config.json"),
        "file": ("file-changed", "b/file"),
    }
    contract = difference_report(diff(a, b, only=["*", "config:*"]))
    assert [one.rule for one in contract.findings if one.severity == "error"] == [
        "only-outside-changed"
    ]
    assert len(contract.findings) == len(report.findings)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a")
    with pytest.raises(InputError, match="not-found"):
        diff(a, tmp_path / "nothing")
    deep: Mapping[str, object] = {}
    for _ in range(300):
        deep = {"a": deep}
    b = shutil.copytree(a, tmp_path / "b")
    (b / "config.json").write_text(json.dumps(deep))
    with pytest.raises(MalformedFileError, match="nested too deeply"):
        diff(a, b)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a")
    b = shutil.copytree(a, tmp_path / "b")
    opened = vita_ckpt.open_checkpoint(b)
    with open(b / "model.safetensors", "ab") as file:
        file.truncate(opened.shards[0].file.size - 1)
    with pytest.raises(StaleInputError, match="input-changed"):
        diff(a, opened)


def test_many_spans_of_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vita_ckpt.storage.tensors.compare.PORTION", 1 << 12)
    monkeypatch.setattr("vita_ckpt.storage.tensors.compare._STEP", 1 << 10)
    a = write_checkpoint(tmp_path / "a", Spec(hidden=64, vocab=500))
    b = shutil.copytree(a, tmp_path / "b")
    # Older versions of the library write into the file that is mapped.
    tensors = {name: tensor.clone() for name, tensor in load_file(b / "model.safetensors").items()}
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed["lm_head.weight"][-1, -1] += 1
    changed["model.embed_tokens.weight"][0, 0] += 1
    save_file(changed, b / "model.safetensors", metadata={"format": "pt"})
    found = diff(a, b, values=True)
    assert set(changes(found)) == {"lm_head.weight", "model.embed_tokens.weight"}
    for tensor in found.tensors:
        before, after = tensors[tensor.name].double(), changed[tensor.name].double()
        assert tensor.distance is not None
        assert tensor.distance.changed == 1
        relative = float((after - before).norm() / before.norm())
        assert tensor.distance.relative_l2 == pytest.approx(relative, rel=1e-9)


def test_sums_are_the_same_whoever_makes_them(tmp_path: Path) -> None:
    """To the last digit: one process, several, and the processes of a team."""
    shapes = {"model.a": ("BF16", (3000, 4096)), "model.b": ("F32", (2000, 4097))}
    for seed, name in enumerate("ab"):
        pool = random.Random(seed).randbytes(1 << 20)

        def fill(_name: str, nbytes: int, pool: bytes = pool) -> Iterator[bytes]:
            yield (pool * (nbytes // len(pool) + 1))[:nbytes]

        write_safetensors(tmp_path / f"{name}.safetensors", shapes, fill)
    sides = [vita_ckpt.open_checkpoint(tmp_path / f"{n}.safetensors").tensors for n in "ab"]
    pairs = {name: (sides[0][name], sides[1][name]) for name in shapes}
    alone = distances(pairs)
    assert distances(pairs, workers=3) == alone
    assert together(3, lambda team: distances(pairs, team=team)) == [alone] * 3
    found = differing(pairs)
    assert together(4, lambda team: differing(pairs, team=team)) == [found] * 4
