"""The wheel and the sdist hold what they should, and nothing else."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from vita_ckpt import __version__

ROOT = Path(__file__).parent.parent
INFO = f"vita_ckpt-{__version__}.dist-info"

# LICENSE-2.0.txt as the Apache Software Foundation publishes it.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    home = tmp_path_factory.mktemp("sdist")
    (archive,) = SdistBuilder(str(ROOT)).build(directory=str(home), versions=["standard"])
    with tarfile.open(archive) as file:
        file.extractall(home, filter="data")
    return home / f"vita_ckpt-{__version__}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


def built(root: Path, home: Path) -> Files:
    """The files of the wheel that is built from ``root``."""
    (archive,) = WheelBuilder(str(root)).build(directory=str(home), versions=["standard"])
    with zipfile.ZipFile(archive) as file:
        return {name: file.read(name) for name in file.namelist()}


def package() -> Files:
    """What lies in the package, by its name in a wheel."""
    paths = [path for path in (ROOT / "vita_ckpt").rglob("*") if path.is_file()]
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in paths
        if path.parent.name != "__pycache__"
    }


def metadata(wheel: Files) -> Message:
    return message_from_bytes(wheel[f"{INFO}/METADATA"])


def test_the_wheel_holds_the_package_and_its_licence(wheel: Files) -> None:
    own = package()
    about = {f"{INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert wheel.keys() == own.keys() | about | {f"{INFO}/licenses/LICENSE"}
    assert {name: wheel[name] for name in own} == own
    assert wheel[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_is_for_a_platform_only_with_compiled_loops(
    wheel: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert b"Tag: py3-none-any" not in wheel[f"{INFO}/WHEEL"]
    for name, value in (("CC", "false"), ("CC", "no-compiler"), ("VITA_CKPT_PURE", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            pure = built(ROOT, tmp_path / value)
        assert wheel.keys() - pure.keys() == {"vita_ckpt/storage/tensors/native.so.1"}
        assert b"Tag: py3-none-any" in pure[f"{INFO}/WHEEL"]


def test_schemas_and_types_are_in_the_package() -> None:
    own = package()
    assert own["vita_ckpt/py.typed"] == b""
    assert sum(name.startswith("vita_ckpt/schemas/") for name in own) >= 7


def test_the_metadata_names_licence_and_authors(wheel: Files) -> None:
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("vita-ckpt", __version__)
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    assert found["Author"] == "the vita-ckpt authors"
    assert not [line for line in found.get_all("Classifier", []) if line.startswith("License")]
    assert found.get_all("Project-URL") is None


def test_the_sdist_holds_the_pages_and_builds_the_same_wheel(
    sdist: Path, wheel: Files, tmp_path: Path
) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "LICENSE"]
    for page in pages:
        assert (sdist / page.relative_to(ROOT)).read_bytes() == page.read_bytes()
    tops = {path.name for path in sdist.iterdir() if path.is_dir()}
    assert tops == {"benchmarks", "docs", "examples", "vita_ckpt"}
    assert (sdist / "hatch_build.py").exists()
    assert built(sdist, tmp_path) == wheel


def test_the_licence_is_the_standard_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    ours = "Copyright 2026 the vita-ckpt authors"
    assert text.count(ours) == 1
    standard = text.replace(ours, "Copyright [yyyy] [name of copyright owner]")
    assert hashlib.sha256(standard.encode()).hexdigest() == APACHE_2
