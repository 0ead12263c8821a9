"""Fixtures: a hub on loopback, and the command line in processes of their own, pointed at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.hub_server import HubServer
from tests.conftest import Result
from tests.forker import ROOT, Fork, Forker

# huggingface_hub's uploads use what its HTTP library has deprecated.
WARNINGS = ("-W", "error", "-W", "ignore:Use 'content=:DeprecationWarning")


class Machine:
    """A machine with an empty cache, whose hub is the one on loopback."""

    def __init__(self, hub: HubServer, root: Path, home: Path, forker: Forker) -> None:
        self.hub = hub
        self._forker = forker
        self.root = root
        self.home = home
        self.work = root / "work"
        self.work.mkdir()

    def run(self, *arguments: object, program: str | None = None, **environment: str) -> Result:
        """Run the command line, or a program; what the hub has seen before is forgotten."""
        self.hub.seen.clear()
        return self.start(*arguments, program=program, **environment).result()

    def start(self, *arguments: object, program: str | None = None, **environment: str) -> Fork:
        """Start the command line, or a program."""
        own = self.hub.environment(self.home, PYTHONPATH=str(ROOT), **environment)
        return self._forker.start(arguments, program=program, cwd=self.work, environment=own)

    @property
    def large_bytes(self) -> int:
        """Bytes of large files that the last command moved."""
        return sum(seen.sent for seen in self.hub.seen if seen.large)


def heads_of(root: Path) -> int:
    """Bytes moved to open the safetensors files in a directory: each header, at least 64 kB."""
    paths = list(root.glob("*.safetensors"))
    return sum(max(header_of(p), min(p.stat().st_size, 1 << 16)) for p in paths)


def header_of(path: Path) -> int:
    """Bytes of a safetensors file before its data."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every machine has its cache: huggingface_hub reads its place when it is imported."""
    return tmp_path_factory.mktemp("machine") / "home"


@pytest.fixture(scope="session")
def ports() -> tuple[int, int]:
    """Where every hub listens, for the same reason."""
    with HubServer() as hub:
        return hub.ports


@pytest.fixture(scope="session")
def forker(home: Path, ports: tuple[int, int]) -> Iterator[Forker]:
    with _forker("warm_for_the_hub", home, ports) as forker:
        yield forker


@pytest.fixture(scope="session")
def torch_forker(home: Path, ports: tuple[int, int]) -> Iterator[Forker]:
    with _forker("warm_for_both", home, ports) as forker:
        yield forker


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, home: Path, ports: tuple[int, int]
) -> Iterator[Machine]:
    """A machine, whose commands start with torch imported where a test is marked for torch."""
    has_torch = request.node.get_closest_marker("torch") is not None
    forker: Forker = request.getfixturevalue("torch_forker" if has_torch else "forker")
    with _hub(ports) as hub:
        yield Machine(hub, tmp_path, home, forker)
    shutil.rmtree(home, ignore_errors=True)


def _forker(warm: str, home: Path, ports: tuple[int, int]) -> Forker:
    with _hub(ports) as hub:
        environment = hub.environment(home, PYTHONPATH=str(ROOT))
    return Forker(warm, warnings=WARNINGS, environment=environment)


def _hub(ports: tuple[int, int]) -> HubServer:
    """Return a hub, on another port if another process has taken its own."""
    try:
        return HubServer(ports)
    except OSError:
        return HubServer()
