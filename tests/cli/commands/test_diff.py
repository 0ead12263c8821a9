"""``vita-ckpt diff`` as a person types it."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import vita_ckpt
from fixtures.builder import Spec, snapshot, write_checkpoint
from tests.conftest import GOLDEN, Cli, assert_one_error

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "diff-v1.json").read_text())
RUN = GOLDEN / "A7" / "mm_projector_fp32"
PROJECTOR = "model.mm_projector.*"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", dtype="BF16", shards=2)


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    """A7 with the projector of its run."""
    plan = vita_ckpt.plan_merge_projector(GOLDEN / "A7" / "base", RUN)
    vita_ckpt.apply(plan, tmp_path / "merged")
    return tmp_path / "merged"


def edited(base: Path, out: Path, changes: dict[str, torch.Tensor]) -> Path:
    """``base`` as one file with some tensors replaced."""
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors = {n: t for path in base.glob("*.safetensors") for n, t in load_file(path).items()}
    save_file(tensors | changes, out / "model.safetensors")
    return out


def test_no_difference(cli: Cli, base: Path, tmp_path: Path) -> None:
    other = edited(base, tmp_path / "other", {})
    before = snapshot(tmp_path)
    for more in ([], ["--values"], ["--exit-code"]):
        result = cli("diff", base, other, *more)
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith("\n\nno difference\n")
    assert snapshot(tmp_path) == before


def test_what_a_merge_changed(cli: Cli, merged: Path) -> None:
    result = cli("diff", GOLDEN / "A7" / "base", merged, "--only", PROJECTOR)
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    assert lines[3:7] == [
        "part unchanged changed added removed bytes changed",
        "language model 27 0 0 0 0 B",
        "projector 0 4 0 0 49.7 kB",
        "vision tower 46 0 0 0 0 B",
    ]
    assert "model.mm_projector.0.weight bytes F32 [64, 128]" in lines
    assert lines[-1] == "changed: 4 tensors; --only holds"
    assert cli("diff", GOLDEN / "A7" / "base", merged).code == 0
    assert cli("diff", GOLDEN / "A7" / "base", merged, "--exit-code").code == 1


def test_values(cli: Cli, base: Path, tmp_path: Path) -> None:
    weight = torch.zeros(16, dtype=torch.bfloat16)
    a = edited(base, tmp_path / "a", {"model.norm.weight": weight + 3})
    after = weight + 3
    after[0], after[1] = 7, torch.inf
    b = edited(base, tmp_path / "b", {"model.norm.weight": after, "x": torch.ones(2)})
    result = cli("diff", a, b, "--values")
    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines()]
    assert ["model.norm.weight", "bytes", "BF16", "[16]", "2", "of", "16", "4", "0.344265"] in [
        row[:9] for row in rows
    ]
    assert "0 → 1" in result.out
    assert next(row for row in rows if row[:1] == ["x"]) == ["x", "added", "F32", "[2]"]


@pytest.mark.parametrize(
    ("only", "code", "words"),
    [
        (["*"], 0, "--only holds"),
        (["model.norm.*", "config:x"], 0, "--only holds"),
        (["model.layers.*"], 1, "error only-outside-changed: model.norm.weight"),
        (["model.layers.*"], 1, "error only-nothing-changed: model.layers.*"),
        (["config:*"], 1, "error only-outside-changed: model.norm.weight: expected no change"),
    ],
)
def test_the_contract(
    cli: Cli, base: Path, tmp_path: Path, only: list[str], code: int, words: str
) -> None:
    other = edited(base, tmp_path / "other", {"model.norm.weight": torch.zeros(16)})
    result = cli("diff", base, other, *[x for glob in only for x in ("--only", glob)])
    assert (result.code, result.err) == (code, "")
    assert words in result.out
    assert cli("diff", base, base, "--only", "*").code == 1


def test_limit(cli: Cli, base: Path, tmp_path: Path) -> None:
    tower = write_checkpoint(tmp_path / "other", Spec(), dtype="F32")
    assert "… and" not in cli("diff", base, tower, "--limit", 1000).out
    short = cli("diff", base, tower, "--limit", 3, "--only", "x").out
    assert short.count("… and ") == 2
    assert short.count("error only-outside-changed") == 3
    none = cli("diff", base, tower, "--limit", 0)
    assert none.code == 0
    assert "\ntensor " not in none.out


def test_json(cli: Cli, base: Path, merged: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    odd = shutil.copytree(base, tmp_path / "odd")
    (odd / "config.json").write_text(json.dumps({**config, "nan": float("nan"), "bad": "\ud800"}))
    (odd / "a\udcff.txt").write_text("a name that is no Unicode")
    cases: list[tuple[Path, Path, list[str]]] = [
        (base, base, []),
        (base, odd, ["--values"]),
        (GOLDEN / "A7" / "base", merged, ["--values", "--only", PROJECTOR]),
        (base, merged, ["--values", "--only", "x"]),
        (base, RUN / "mm_projector.bin", []),
    ]
    for a, b, more in cases:
        result = cli("diff", a, b, "--json", *more)
        report = json.loads(result.out.encode(), parse_constant=pytest.fail)
        jsonschema.validate(report, SCHEMA)
        assert report["ok"] is (result.code == 0)
        assert report["identical"] is (a == b)
        assert result.out == cli("diff", a, b, "--format", "json", *more).out
    report = json.loads(cli("diff", base, odd, "--json").out)
    assert [(key["key"], key["after"]) for key in report["config"]] == [
        ("bad", "\\ud800"),
        ("nan", "nan"),
    ]
    assert [file["name"] for file in report["files"]] == ["a\\udcff.txt"]


def test_the_formats_of_reports(cli: Cli, merged: Path, tmp_path: Path) -> None:
    arguments = ["diff", GOLDEN / "A7" / "base", merged, "--only", "model.mm_projector.0.*"]
    outputs = [f"{name}={tmp_path / name}" for name in ("junit", "sarif", "json", "text")]
    result = cli(*arguments, "--format", "github", *(x for o in outputs for x in ("--output", o)))
    assert result.code == 1
    assert result.out.count("::error ") == 2
    assert "only-outside-changed" in (tmp_path / "sarif").read_text()
    assert ET.parse(tmp_path / "junit").getroot().get("failures") == "1"
    jsonschema.validate(json.loads((tmp_path / "json").read_text()), SCHEMA)
    assert (tmp_path / "text").read_text() == cli(*arguments).out


def test_notes_go_to_stderr(cli: Cli, merged: Path) -> None:
    (merged / "optimizer.pt").write_bytes(b"")
    (merged / "old.safetensors").write_bytes(b"")
    result = cli("diff", merged, GOLDEN / "A7" / "base")
    assert result.err == "not compared, as no part of a checkpoint: old.safetensors, optimizer.pt\n"
    assert cli("-q", "diff", merged, GOLDEN / "A7" / "base").err == ""
    lone = cli("diff", merged, RUN / "mm_projector.bin")
    assert lone.err == "config and files are not compared: one side is a lone weight file\n"


def test_hostile_names_stay_on_their_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    name = "evil\n\x1b[2Jname\u202e"
    other = edited(base, tmp_path / "other", {name: torch.zeros(1)})
    config = json.loads((base / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, name: name}))
    (other / name).write_text("")
    for more in ([], ["--values"], ["--only", "x"], ["--only", name], ["--json"]):
        result = cli("diff", base, other, *more)
        assert all(line.isprintable() for line in result.out.splitlines())
        assert "\x1b" not in result.out + result.err
        assert result.err == ""


def test_errors_are_one_line(cli: Cli, base: Path, tmp_path: Path) -> None:
    assert_one_error(cli("diff", base, tmp_path / "nothing"), 3, "not-found")
    assert_one_error(cli("diff", base), 2, "usage", "'B'")
    both = cli("diff", base, base, "--only", "x", "--exit-code")
    assert_one_error(both, 2, "options-exclude-each-other")
    assert_one_error(cli("diff", base, base, "--format", "yaml"), 2, "unknown-format")
    inside = f"json={base / 'report.json'}"
    assert_one_error(cli("diff", base, base, "--output", inside), 2, "output-overlaps-input")
    torch.save(eval, tmp_path / "unsafe.bin")
    assert_one_error(cli("diff", base, tmp_path / "unsafe.bin"), 3, "unsafe-pickle")
    cut = shutil.copytree(base, tmp_path / "cut")
    shard = cut / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert_one_error(cli("diff", base, cut), 3, "truncated-file", shard.name)
