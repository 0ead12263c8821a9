"""Commands in two processes: the report of one, once, to the last digit."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures.builder import write_safetensors, write_tokenizer
from tests.conftest import GOLDEN, Cli, assert_one_error
from tests.launched import ENVIRONMENT, Ranks, free_port

pytestmark = pytest.mark.torch

SCHEMA = json.loads((files("vita_ckpt") / "schemas" / "verify-v1.json").read_text())
# What differs between any two runs.
COSTS = ("load_seconds", "pass_seconds", "peak_memory")
LAUNCHED = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}
SHAPES = {f"model.layers.{n}.w": ("BF16", (900, 11_000)) for n in range(4)}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


def told(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in (*COSTS, "ranks")}


def test_two_ranks_report_as_one_process(ranks: Ranks, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in (GOLDEN / "A1" / "base").iterdir():
        (base / file.name).symlink_to(file)
    write_tokenizer(base, json.loads((base / "config.json").read_text())["vocab_size"])
    options = [base, "--tower", GOLDEN / "A1" / "tower-internvit", "--device", "cpu", "--json"]
    options += ["--prompt", "w3 w4", "--max-new-tokens", 4]
    goldens = [tmp_path / "alone", tmp_path / "ranks"]
    one = ranks.alone(*options, "--save-golden", goldens[0])
    first, second = ranks.launched(2, *options, "--save-golden", goldens[1])
    assert (one.code, one.err) == (first.code, first.err) == (0, ""), first
    assert (second.code, second.out, second.err) == (0, "", "")
    expected, report = json.loads(one.out), json.loads(first.out)
    jsonschema.validate(report, SCHEMA)
    assert told(report) == told(expected)
    assert report["answer"]
    assert goldens[0].read_bytes() == goldens[1].read_bytes()
    assert "ranks" not in expected
    size = sum(file.stat().st_size for file in (GOLDEN / "A1" / "base").glob("*.safetensors"))
    read = [entry["bytes_read"] for entry in report["ranks"]]
    assert [entry["rank"] for entry in report["ranks"]] == [0, 1]
    assert 0.9 * size < sum(read) < size
    assert max(read) < 0.6 * size


def test_through_torchrun(tmp_path: Path) -> None:
    """Torchrun turns every exit code into 1 and adds lines of its own."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run += ["--master-port", str(free_port()), "-m", "vita_ckpt", "verify", str(tmp_path / "none")]
    done = subprocess.run(run, check=False, capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout) == (1, "")
    ours = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, done.stderr
    assert ours[0].startswith("error: not-found: ")


def test_single_ignores_a_launcher(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    result = cli("verify", GOLDEN / "A1" / "base", "--device", "cpu", "--single")
    assert (result.code, result.err) == (0, "")
    assert "rank" not in result.out


def test_what_cannot_be_launched(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    base = GOLDEN / "A1" / "base"
    assert_one_error(cli("verify", base, "--rank-timeout", "0"), 2, "invalid-rank-timeout")
    monkeypatch.setenv("RANK", "2")
    assert_one_error(cli("verify", base), 2, "invalid-launch: RANK", "0 to 1", "got 2", "--single")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of several portions each, with a NaN, and a file that is no checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        shutil.copytree(GOLDEN / "A1" / "base", root / name)
        index = root / name / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(SHAPES, "more.safetensors")
        index.write_text(json.dumps(content))
        pool = bytearray(random.Random(seed).randbytes(1 << 20))
        pool[1::2] = bytes(byte & 0xBF for byte in pool[1::2])

        def fill(_name: str, nbytes: int, pool: bytes = bytes(pool)) -> Iterator[bytes]:
            yield (pool * (nbytes // len(pool) + 1))[: nbytes - 2] + b"\xc0\x7f"

        write_safetensors(root / name / "more.safetensors", SHAPES, fill)
    (root / "three").mkdir()
    (root / "three" / "config.json").write_text("{")
    return root


def test_values_and_digests(ranks: Ranks, runs: Path) -> None:
    paths = [runs / "one", runs / "three", runs / "none", runs / "two"]
    out = ranks.assert_alike(2, "validate", *paths, "--values", "--deep", "--json")
    assert out.count("value-nan") >= 2


def test_distances(ranks: Ranks, runs: Path) -> None:
    out = ranks.assert_alike(
        2, "diff", runs / "one", runs / "two", "--values", "--json", "--exit-code"
    )
    changed = [tensor for tensor in json.loads(out)["tensors"] if tensor["name"] in SHAPES]
    assert len(changed) == len(SHAPES)
    assert all(tensor["values"]["relative_l2"] for tensor in changed)


def test_an_error_is_said_once(ranks: Ranks, runs: Path) -> None:
    ranks.assert_alike(2, "diff", runs / "one", runs / "none")
