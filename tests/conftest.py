"""Fixtures: golden cases, tiny checkpoints, the command line run in this process."""

from __future__ import annotations

import gc
import logging
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vita_ckpt.cli.main import main

GOLDEN = Path(__file__).parent.parent / "fixtures" / "golden"
BASES = tuple(f"A{number}" for number in range(1, 9))
# More cases, where the directory beside the repository has them.
_MORE_GOLDEN = Path(__file__).parent.parent.parent / "shared" / "golden"

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("default")

# A shell lets what runs in the background ignore interrupts, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_NEEDS_TORCH = re.compile(
    r"^ *(from|import) +(torch|transformers|PIL|safetensors\.torch"
    r"|tests\.(storage|model|builders))\b",
    re.M,
)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the modules that import torch where it is not installed: ``make test-bare``."""
    if collection_path.suffix != ".py" or find_spec("torch") is not None:
        return None
    return True if _NEEDS_TORCH.search(collection_path.read_text("utf-8")) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long lies in the last files by name: several processes begin with these."""
    if config.getoption("dist", "no") == "loadfile":
        items.sort(key=lambda item: item.path, reverse=True)


def pytest_collection_finish() -> None:
    """Spare the collector what is there for good: torch's modules, and thousands of tests.

    ``verify`` collects what it has let go of each time, which would look at all of it.
    """
    gc.collect()
    gc.freeze()


def golden_cases(*names: str) -> list[Path]:
    """Return the directories of golden cases, as far as they are here."""
    places = [(GOLDEN / name, _MORE_GOLDEN / name) for name in names]
    found = (next((place for place in pair if place.is_dir()), None) for pair in places)
    return [place for place in found if place is not None]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the key that signs journals out of the home directory, in programs of tests too."""
    home = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(home))
        for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run the command line in this process, and leave nothing of it behind."""
    handler = signal.getsignal(signal.SIGTERM)
    level = logging.getLogger("vita_ckpt").level

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Result(exit_.value.code, out, err)

    yield run
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger("vita_ckpt").setLevel(level)


def assert_one_error(result: Result, code: int, *words: str) -> None:
    """One line on stderr that says all of ``words``, no traceback, no data."""
    assert result.code == code, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: "), lines
    assert result.out == ""
    for word in words:
        assert word in lines[0], (word, lines[0])
