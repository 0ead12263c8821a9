"""What is shown while a command works: on a terminal only, and gone afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.terminal import RUN, on_a_terminal
from tests.conftest import GOLDEN
from tests.launched import free_port, variables
from vita_ckpt import (
    Options,
    apply,
    apply_in_place,
    diff,
    distributions,
    plan_merge_projector,
    plan_set,
    undo,
    validate,
)
from vita_ckpt.cli.progress import described, duration

# Every step is slowed down, so that a small checkpoint has something to show.
SLOWLY = f"""
import time
from vita_ckpt.cli import progress
progress._LONG_ENOUGH, progress._PAUSE, progress._SETTLED = 0, 0.005, 0.01
now = progress._Activity.now
def slow(self, *what):
    now(self, *what)
    time.sleep(0.05)
progress._Activity.now = slow
{RUN}
"""


class Told:
    """Everything that was told, by what it was about."""

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def __call__(self, what: str, done: int, total: int) -> None:
        self.steps[what].append((done, total))

    def is_complete(self, what: str) -> bool:
        """Return whether the last step had all bytes of a known number, and none had more."""
        done, total = self.steps[what][-1]
        return 0 < done == total and all(d <= t for d, t in self.steps[what])


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (("reading", 0, 16_000_000_000, 9.0), "reading"),
        (("reading", 3_200_000_000, 16_000_000_000, 1.0), "reading: 3.2 GB of 16 GB (20%)"),
        (
            ("loading layer 6 of 28", 3_200_000_000, 16_000_000_000, 8.0),
            "loading layer 6 of 28: 3.2 GB of 16 GB (20%), 400 MB/s, 32 s left",
        ),
        (("reading", 5_000, 0, 5.0), "reading: 5 kB, 1 kB/s"),
        (("reading", 12, 10, 5.0), "reading: 10 B of 10 B (100%), 2 B/s"),
        (("checkpoint 3 of 10", 0, 0, 100.0), "checkpoint 3 of 10"),
    ],
)
def test_a_line_says_what_is_known(told: tuple[str, int, int, float], text: str) -> None:
    assert described(*told) == text


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 250, 3600, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "4 min 10 s",
        "1 h 0 min",
        "2 h 5 min",
    ]


def test_every_byte_is_told(base: Path, adapter: Path, tmp_path: Path) -> None:
    told = Told()
    plan = plan_merge_projector(base, adapter)
    everything = Options(check=True, digest=True)
    out = apply(plan, tmp_path / "out", options=everything, on_progress=told)
    assert told.is_complete("checking")
    assert told.steps["digesting"]
    written = sum(path.stat().st_size for path in Path(out).iterdir())
    done, total = told.steps["writing"][-1]
    assert total < done == written  # what says how it was made is not known beforehand
    validate(out, deep=True, values=True, on_progress=told)
    for what in ("digesting", "reading"):
        assert told.is_complete(what), what
    diff(base, out, values=True, on_progress=told)
    for what in ("comparing", "measuring"):
        assert told.is_complete(what), what
    told = Told()
    distributions(out, on_progress=told)
    assert told.is_complete("reading")


def test_every_byte_is_told_in_place(base: Path, adapter: Path) -> None:
    told = Told()
    apply_in_place(plan_merge_projector(base, adapter), on_progress=told)
    for what in ("digesting", "saving", "checking"):
        assert told.is_complete(what), what
    assert (1600, 1600) in told.steps["writing"]


def test_every_byte_is_told_of_what_is_put_back(base: Path, adapter: Path) -> None:
    apply_in_place(plan_merge_projector(base, adapter), options=Options(digest=True))
    told = Told()
    undo(base, on_progress=told)
    for what in ("checking", "restoring"):
        assert told.is_complete(what), what


def test_verify_names_layer_and_token() -> None:
    pytest.importorskip("torch")
    from vita_ckpt import verify

    told = Told()
    base = GOLDEN / "A7" / "base"
    verify(base, device="cpu", max_memory={"cpu": 0}, against=base, on_progress=told)
    assert "starting torch" in told.steps
    layers = [what for what in told.steps if what.startswith("loading layer 1 of ")]
    assert layers
    done, total = told.steps[layers[0]][-1]
    assert 0 < done <= total
    assert any(what.startswith("text alone, loading layer 2 of ") for what in told.steps)


def commands(base: Path, tmp_path: Path) -> dict[str, list[object]]:
    """Return commands that take long, by what is shown of them."""
    adapter, other = tmp_path / "adapter.safetensors", tmp_path / "other"
    return {
        "reading": ["validate", base, "--values"],
        "reading ": ["inspect", base, "--values"],
        "digesting": ["validate", base, "--deep"],
        "comparing measuring": ["diff", base, other, "--values"],
        "computing": ["convert", base, "--dtype", "f16", "--dry-run"],
        "writing checking": ["convert", base, "--dtype", "f32", "--check", "--out", tmp_path / "o"],
        "saving writing": ["merge-projector", "--base", base, "--adapter", adapter, "--in-place"],
    }


@pytest.fixture
def prepared(base: Path, adapter: Path, tmp_path: Path) -> Path:
    apply(plan_merge_projector(base, adapter), tmp_path / "other")
    apply_in_place(plan_set(base, {"image_aspect_ratio": "pad"}), options=Options(digest=True))
    return base


@pytest.mark.parametrize("shows", list(commands(Path(), Path())))
def test_a_terminal_shows_what_is_done(shows: str, prepared: Path, tmp_path: Path) -> None:
    arguments = commands(prepared, tmp_path)[shows]
    code, shown, out = on_a_terminal(*arguments, stdout=False, code=SLOWLY)
    assert code == 0, shown
    lines = re.findall(r"\r([^\r\x1b]*)\x1b\[K", shown)
    for what in shows.split():
        assert any(re.match(rf"{what}: \S+ \w+ of .*%\)", line) for line in lines), lines
        assert what not in out
    assert lines[-1] == ""  # it is removed, and the rest of stderr stands alone


def test_of_several_processes_the_first_shows_something(prepared: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    arguments = commands(prepared, tmp_path)["reading"]
    port = free_port()

    def shown(rank: int) -> str:
        launch = variables(rank, 2, port)
        code, text, _ = on_a_terminal(*arguments, stdout=False, code=SLOWLY, environment=launch)
        assert code == 0, text
        return text

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(shown, range(2))
    assert "\rreading" in first
    assert second == ""


@pytest.mark.parametrize("columns", [60, 30])
def test_the_line_fits(columns: int, prepared: Path, tmp_path: Path) -> None:
    arguments = commands(prepared, tmp_path)["reading"]
    _, shown, _ = on_a_terminal(*arguments, stdout=False, columns=columns, code=SLOWLY)
    lines = re.findall(r"\r([^\r\x1b]*)\x1b\[K", shown)
    assert max(map(len, lines)) < columns


def test_nothing_where_nobody_looks(prepared: Path, tmp_path: Path) -> None:
    arguments = commands(prepared, tmp_path)["reading"]
    _, shown, _ = on_a_terminal(*arguments, "-q", stdout=False, code=SLOWLY)
    assert shown == ""
    done = subprocess.run(
        [sys.executable, "-c", SLOWLY, *map(str, arguments)], capture_output=True, check=False
    )
    assert done.stderr == b""


def test_an_error_stands_on_a_line_of_its_own(prepared: Path, tmp_path: Path) -> None:
    path = prepared / "model-00002-of-00003.safetensors"
    code = SLOWLY.replace(
        "time.sleep(0.05)", f"time.sleep(0.05); open({str(path)!r}, 'ab').write(b'x')"
    )
    exit_code, shown, _ = on_a_terminal("validate", prepared, "--values", stdout=False, code=code)
    assert exit_code == 3
    assert re.search(r"\x1b\[K(\x1b\[31m)?error(\x1b\[0m)?: input-changed: ", shown)
