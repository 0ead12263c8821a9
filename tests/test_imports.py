"""Imports inside functions are rare: for start-up, or for what is installed with an extra."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "vita_ckpt"

# Each has its reason behind "noqa: PLC0415". None may hide a circle: import-linter sees them too.
MOST = 47


def test_imports_inside_functions_are_counted() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.module}"
        for path in PACKAGE.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vita_ckpt")
    ]
    assert len(found) <= MOST, "\n".join(found)
