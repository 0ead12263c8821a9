"""The tests follow the package, and no test module is a library of another."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "vita_ckpt"
MIRRORED = ("api", "checks", "cli", "core", "model", "storage", "surgery")


def test_no_test_module_is_imported() -> None:
    """Neither by a module nor by a program that a test gives to another process."""
    modules = [
        ".".join(path.relative_to(TESTS.parent).with_suffix("").parts)
        for path in TESTS.rglob("test_*.py")
    ]
    for path in TESTS.rglob("*.py"):
        text = path.read_text()
        assert not [name for name in modules if name in text], path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (
                node.level or (node.module or "").split(".")[0] == "tests"
            ):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("test_")], path


def test_every_folder_is_a_package() -> None:
    """So that several can hold modules of one name."""
    for path in TESTS.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_folders_are_those_of_the_package() -> None:
    for name in MIRRORED:
        for path in (TESTS / name).rglob("test_*.py"):
            package = PACKAGE / path.parent.relative_to(TESTS)
            assert (package / "__init__.py").exists(), path
