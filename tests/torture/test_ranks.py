"""Commands on three and four ranks, and on ranks that die, fail and hang."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fixtures.builder import (
    Spec,
    TowerSpec,
    write_checkpoint,
    write_tokenizer,
    write_tower,
)
from tests.conftest import GOLDEN
from tests.forker import Fork
from tests.launched import (
    Ranks,
    results,
    wait_for_weights,
)

pytestmark = pytest.mark.torture

COSTS = ("load_seconds", "pass_seconds", "peak_memory")


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("case", ["A1", "A4"])
@pytest.mark.parametrize("memory", [(), ("--max-memory", "cpu=0")], ids=["resident", "streamed"])
def test_as_one_process(
    ranks: Ranks, tmp_path: Path, case: str, size: int, memory: tuple[str, ...]
) -> None:
    base = GOLDEN / case / "base"
    goldens = [tmp_path / "one", tmp_path / "all"]
    options = (base, "--device", "cpu", "--json", *memory)
    one = json.loads(ranks.alone(*options, "--save-golden", goldens[0]).out)
    first, *others = ranks.launched(size, *options, "--save-golden", goldens[1])
    report = json.loads(first.out)
    assert [entry["rank"] for entry in report.pop("ranks")] == list(range(size))
    assert {key: report[key] for key in report if key not in COSTS} == {
        key: one[key] for key in one if key not in COSTS
    }
    assert goldens[0].read_bytes() == goldens[1].read_bytes()
    assert {(done.code, done.out, done.err) for done in others} == {(0, "", "")}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks() as ranks:
        yield ranks


@pytest.fixture
def talkative(tmp_path: Path) -> Path:
    """A checkpoint that can be asked for an answer of any length."""
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    base = write_checkpoint(tmp_path / "base", Spec())
    write_tokenizer(base, 40)
    config = json.loads((base / "config.json").read_text())
    config.pop("eos_token_id", None)
    (base / "config.json").write_text(json.dumps(config))
    return base


@contextmanager
def answering(ranks: Ranks, base: Path, *options: object, size: int = 3) -> Iterator[list[Fork]]:
    """Ranks in the middle of an answer that takes hours."""
    long = ("--prompt", "w3", "--max-new-tokens", 10_000_000)
    with ranks.started(size, base, "--device", "cpu", *long, *options) as processes:
        for process in processes:
            wait_for_weights(process, base / "model.safetensors")
        time.sleep(3)
        assert [process.poll() for process in processes] == [None] * size
        yield processes


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_ends_all(ranks: Ranks, talkative: Path, rank: int) -> None:
    with answering(ranks, talkative) as processes:
        processes[rank].kill()
        before = time.monotonic()
        done = results(processes, 15)
        assert time.monotonic() - before < 10
    assert done[rank].code == -signal.SIGKILL
    left = [result for number, result in enumerate(done) if number != rank]
    assert [result.code for result in left] == [3, 3]
    assert left[0].err == f"error: rank-lost: rank {rank}: got it ended\n"
    assert left[1].err == ""
    assert {result.out for result in done} == {""}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_hanging_rank_ends_all(ranks: Ranks, talkative: Path, rank: int) -> None:
    with answering(ranks, talkative, "--rank-timeout", "3") as processes:
        processes[rank].send_signal(signal.SIGSTOP)
        left = [process for number, process in enumerate(processes) if number != rank]
        done = results(left, 20)
    assert [result.code for result in done] == [3, 3]
    assert [result.err for result in done] == [
        f"error: rank-hangs: rank {rank}: expected progress within 3 s "
        "(--rank-timeout allows more)\n",
        "",
    ]


def test_a_failing_rank_ends_all(ranks: Ranks, tmp_path: Path) -> None:
    """What rank 0 alone finds out in the middle of the run."""
    write_tower(tmp_path / "tower-internvit", TowerSpec())
    base = write_checkpoint(tmp_path / "base", Spec())
    write_tokenizer(base, 40)
    done = ranks.launched(3, base, "--device", "cpu", "--prompt", "w33")
    assert [result.code for result in done] == [3, 3, 3]
    assert done[0].err.startswith("error: tokenizer-does-not-fit: ")
    assert [len(result.err.splitlines()) for result in done] == [1, 0, 0]


def test_signals_end_all(ranks: Ranks, talkative: Path) -> None:
    with answering(ranks, talkative, size=2) as processes:
        for process in processes:
            process.terminate()
        assert {result.code for result in results(processes, 10)} == {-signal.SIGTERM}


def test_a_rendezvous_that_nobody_joins(ranks: Ranks, talkative: Path) -> None:
    with ranks.started(2, talkative, "--device", "cpu", missing=1) as processes:
        before = time.monotonic()
        (done,) = results(processes)
    assert time.monotonic() - before > 55
    assert done.code == 3
    assert done.err.startswith("error: rendezvous-failed: 127.0.0.1:")
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("size", [3, 4])
def test_scans_as_one_process(ranks: Ranks, tmp_path: Path, size: int) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_checkpoint(tmp_path / name, Spec(hidden=512, vocab=60_000), seed=seed, shards=3)
    a, b = tmp_path / "a", tmp_path / "b"
    ranks.assert_alike(size, "validate", a, b, "--values", "--deep", "--json")
    ranks.assert_alike(size, "diff", a, b, "--values", "--json")
    ranks.assert_alike(size, "diff", a, a)


def test_a_rank_that_is_killed_in_a_scan(ranks: Ranks, tmp_path: Path) -> None:
    base = tmp_path / "mm_projector.safetensors"
    out, wide = 1 << 21, 1 << 11
    size = 2 * out * wide  # 8 GiB, all of it a hole
    entries = {
        "model.mm_projector.weight": {
            "dtype": "BF16",
            "shape": [out, wide],
            "data_offsets": [0, size],
        },
        "model.mm_projector.bias": {
            "dtype": "BF16",
            "shape": [out],
            "data_offsets": [size, size + 2 * out],
        },
    }
    header = json.dumps(entries).encode()
    base.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(base, 8 + len(header) + size + 2 * out)
    with ranks.started(3, base, "--values", command="validate") as processes:
        deadline = time.monotonic() + 180
        while str(base) not in open_files(processes[1]):
            assert time.monotonic() < deadline
            assert processes[1].poll() is None
            time.sleep(0.001)
        processes[1].kill()
        done = results(processes, 90)  # the others notice when they have read their shares
    assert [result.code for result in done] == [3, -signal.SIGKILL, 3]
    assert done[0].err == "error: rank-lost: rank 1: got it ended\n"
    assert (done[0].out, done[2].out, done[2].err) == ("", "", "")


def open_files(process: Fork) -> set[str]:
    folder = Path(f"/proc/{process.pid}/fd")
    found = set()
    for entry in folder.iterdir():
        with suppress(OSError):
            found.add(os.readlink(entry))
    return found
